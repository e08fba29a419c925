"""EM by compiled PyTorch, as a competent user writes it, for `gpu`: fleets, large fits, topics.

Every function is batched, in float32 at full precision, and compiled by `torch.compile` on a GPU;
where the compiler fails, the plain function runs and `Compiled.error` says so. Importing this
module imports PyTorch.
"""

import math

import numpy as np
import torch

CHECK = 8
"""EM steps of a fleet between two looks at which fits have finished: each waits for the device."""

LEAST = 64
"""The smallest batch out of which finished fits are taken."""

ROUNDING = 4
"""The rounding error of a log-likelihood a row is at most ROUNDING · ε · (|ℓ| + 1)."""


WINDOW = 32
"""A climb whose gain over this many steps is within rounding errors has converged."""

COMPILED = {"cuda"}
"""Devices for which functions are compiled: for a CPU that takes longer than a rehearsal."""


class Compiled:
    """A function compiled by PyTorch, or the function itself where the compiler fails.

    dynamic: whether one program serves all shapes.
    """

    def __init__(self, function, device, dynamic=False):
        self.function, self.run, self.error = function, function, None
        if device.type in COMPILED:
            self.run = torch.compile(function, dynamic=dynamic)

    def __call__(self, *args):
        try:
            return self.run(*args)
        except Exception as error:
            if self.run is self.function:
                raise
            self.run, self.error = self.function, type(error).__name__
            return self.run(*args)


def version():
    return torch.__version__


def free():
    """Gives memory that is not used back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_for(backend):
    """The device beside that of JAX, or None where PyTorch cannot use it."""
    if backend == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if torch.cuda.is_available() else None


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def tensor(array, device):
    return torch.from_numpy(np.array(array, np.float32)).to(device)


def normal_step(x, present, weights, mean, covariance):
    """One EM step of b fits of full normals, and the log-likelihood a row before it.

    x (b, n, d); present (b, n), 0 for rows of padding, or None; weights (b, k), mean (b, k, d),
    covariance (b, k, d, d).
    """
    n, d = x.shape[1:]
    root = torch.linalg.cholesky_ex(covariance)[0]
    eye = torch.eye(d, device=x.device).expand_as(root)
    inverse = torch.linalg.solve_triangular(root, eye, upper=False)
    away = x[:, None] - mean[:, :, None]
    distance = (away @ inverse.mT).square().sum(-1)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + d * math.log(2 * math.pi)
    joint = (weights.log() - 0.5 * log_det)[:, :, None] - 0.5 * distance
    evidence = joint.logsumexp(1)
    r = (joint - evidence[:, None]).exp()
    if present is not None:
        r, evidence = r * present[:, None], evidence * present
        n = present.sum(1)
    total = r.sum(-1).clamp_min(1e-30)
    mean = r @ x / total[:, :, None]
    away = x[:, None] - mean[:, :, None]
    covariance = (r[..., None] * away).mT @ away / total[:, :, None, None]
    weights = total / total.sum(1, keepdim=True)
    return (weights, mean, covariance), evidence.sum(1) / n


def converged(rule, value, gain, last, rate, streak, anchor, noise, step, tol):
    """(rate, streak, anchor, whether each fit has converged): "change" is |gain| < tol. "aitken"
    estimates the gain to come, as `jaxem.fit` does by default: gains shrink by the rate a, and
    gain · a / (1 − a) as well as 36 · step · gain are below tol for five steps in a row. anchor:
    the value at the last multiple of `WINDOW` steps."""
    tol = noise.clamp_min(tol)
    if rule == "change":
        return rate, streak, anchor, (step > 0) & (gain.abs() < tol)
    least = noise / 4
    size = torch.maximum(gain, least)
    rate = torch.where((last > least) & (step > 1), size / last, rate)
    horizon = torch.where(gain > least, 36 * step * size, 0)
    is_below = (size * rate < tol * (1 - rate)) & (horizon < tol)
    streak = torch.where(is_below, streak + 1, 0)
    is_end = step % WINDOW == WINDOW - 1
    is_stalled = is_end & (value - anchor <= noise)
    return rate, streak, torch.where(is_end, value, anchor), (streak >= 5) | is_stalled


def fleet(x, present, start, rule, tol, limit, device):
    """Fits of x (b, n, d) from `start`: (a function of nothing, the compiled function it uses).

    Once half of the batch has finished, the finished fits are taken out of it.
    """
    x, present = tensor(x, device), None if present is None else tensor(present, device)
    begin = tuple(tensor(a, device) for a in start)
    epsilon = torch.finfo(torch.float32).eps

    def advance(x, present, params, memory, step):
        value, gain, rate, streak, anchor, active = memory
        updated, found = normal_step(x, present, *params)
        noise = ROUNDING * epsilon * (found.abs() + 1)
        new_gain = found - value
        rate, streak, anchor, done = converged(
            rule, found, new_gain, gain, rate, streak, anchor, noise, step, tol
        )
        sound = active & found.isfinite()
        params = [
            torch.where(sound.view(-1, *[1] * (old.ndim - 1)), new, old)
            for old, new in zip(params, updated, strict=True)
        ]
        return params, (found, new_gain, rate, streak, anchor, sound & ~done), step + 1

    fast = Compiled(advance, device, dynamic=True)

    @torch.no_grad()
    def run():
        rows, there, params = x, present, [a.clone() for a in begin]
        answers, index = [a.clone() for a in begin], torch.arange(len(x), device=device)
        zero = torch.zeros(len(x), device=device)
        memory = (zero - torch.inf, zero, zero + 0.4, zero, zero - torch.inf, zero == 0)
        step = torch.zeros((), device=device)
        for _ in range(0, limit, CHECK):
            for _ in range(CHECK):
                params, memory, step = fast(rows, there, params, memory, step)
            active = memory[-1]
            left = int(active.sum())
            if left == 0:
                break
            if left <= len(active) // 2 and len(active) > LEAST:
                for answer, part in zip(answers, params, strict=True):
                    answer[index] = part
                keep = active.nonzero()[:, 0]
                rows, index = rows[keep], index[keep]
                there = None if there is None else there[keep]
                params = [a[keep] for a in params]
                memory = tuple(a[keep] for a in memory)
        for answer, part in zip(answers, params, strict=True):
            answer[index] = part
        wait(device)
        return answers

    return run, fast


def full_sums(x, weights, root_inverse, mean, log_det):
    """Sums over rows x (n, d) for k full normals: of r, r x, r x xᵀ."""
    n, d = x.shape
    k = len(weights)
    scale = root_inverse.permute(2, 0, 1).reshape(d, k * d)
    shift = (root_inverse @ mean[:, :, None]).reshape(k * d)
    distance = (x @ scale - shift).view(n, k, d).square().sum(-1)
    joint = weights.log() - 0.5 * (log_det + distance)
    r = (joint - joint.logsumexp(1, keepdim=True)).exp()
    weighted = (r[:, :, None] * x[:, None]).reshape(n, k * d)
    return r.sum(0), r.mT @ x, (weighted.mT @ x).view(k, d, d)


def diagonal_sums(x, weights, mean, variance):
    """The same for k diagonal normals: of r, r x, r x²."""
    precision, square = 1 / variance, x * x
    constant = weights.log() - 0.5 * (variance.log().sum(1) + (precision * mean * mean).sum(1))
    joint = constant + x @ (precision * mean).mT - 0.5 * (square @ precision.mT)
    r = (joint - joint.logsumexp(1, keepdim=True)).exp()
    return r.sum(0), r.mT @ x, r.mT @ square


def large(x, start, covariance, rows, device):
    """One fit of x (n, d), `rows` rows at a time: (iterations -> params, the compiled function)."""
    offset = x.mean(0, dtype=np.float64).astype(np.float32)
    pieces = tensor(x - offset, device).split(rows)
    begin = tuple(tensor(a, device) for a in start)
    centre = tensor(offset, device)
    fast = Compiled(full_sums if covariance == "full" else diagonal_sums, device)

    def prepared(weights, mean, spread):
        if covariance != "full":
            return weights, mean, spread
        root = torch.linalg.cholesky_ex(spread)[0]
        eye = torch.eye(root.shape[-1], device=device).expand_as(root)
        inverse = torch.linalg.solve_triangular(root, eye, upper=False)
        return weights, inverse, mean, 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)

    @torch.no_grad()
    def run(iterations):
        weights, mean, spread = begin[0], begin[1] - centre, begin[2]
        for _ in range(iterations):
            parts = [fast(piece, *prepared(weights, mean, spread)) for piece in pieces]
            total, first, second = (sum(part) for part in zip(*parts, strict=True))
            weights, mean = total / len(x), first / total[:, None]
            if covariance == "full":
                spread = second / total[:, None, None] - mean[:, :, None] * mean[:, None]
            else:
                spread = second / total[:, None] - mean * mean
        wait(device)
        return weights, mean + centre, spread

    return run, fast


def topic_step(counts, gamma, table, alpha):
    """One step of γ (n, k) for dense counts (n, words) and exp E[log topics] (k, words)."""
    shares = torch.digamma(gamma).exp()
    ratio = counts / (shares @ table).clamp_min(1e-30)
    return alpha + shares * (ratio @ table.mT)


def topics(counts, start, sweeps, inner, device):
    """Sweeps of LDA with Dirichlet topics: (a function of nothing -> λ, the compiled function).

    counts: a sparse matrix, held dense on the device, 4,000 documents at a time. Inner steps end as
    those of `jaxem` do, but all documents of a piece together: at a mean change below 1e-3.
    """
    pieces = [
        tensor(counts[i : i + 4000].toarray(), device) for i in range(0, counts.shape[0], 4000)
    ]
    begin, fast = tensor(start, device), Compiled(topic_step, device)
    k = len(start)

    @torch.no_grad()
    def run():
        topic = begin
        for _ in range(sweeps):
            log_table = torch.digamma(topic) - torch.digamma(topic.sum(1, keepdim=True))
            table, sums = log_table.exp(), torch.zeros_like(topic)
            for piece in pieces:
                gamma = (1 / k + piece.sum(1, keepdim=True) / k).expand(-1, k).contiguous()
                for i in range(inner):
                    last, gamma = gamma, fast(piece, gamma, table, 1 / k)
                    if i % 4 == 3 and (gamma - last).abs().mean(1).max() < 1e-3:
                        break
                shares = torch.digamma(gamma).exp()
                sums += shares.mT @ (piece / (shares @ table).clamp_min(1e-30))
            topic = 1 / k + table * sums
        wait(device)
        return topic

    return run, fast
