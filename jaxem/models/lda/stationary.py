"""The stationary map of LDA: a smooth map of topics and γ at once with the fixed points of a fit.

Given γ and the topics, the maximisers of F over φ and over α are in closed form; given φ and α, so
are those over γ and over the topics. So a step of the map is an exact step of coordinate ascent in
two blocks, which is smooth and has no inner loop.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.lax import Precision, stop_gradient

from jaxem.models.lda.blocks import (
    Table,
    cell_norms,
    headroom,
    mean_log,
    minus_kl_of_dirichlets,
    table_rows,
)
from jaxem.models.lda.classes import first_rows
from jaxem.models.lda.posterior import converged_gamma
from jaxem.numerics import tuning
from jaxem.numerics.special import digamma

TIGHT, SLACK = 0.7, 10
"""γ has converged where a step changes it by less than SLACK·ε^TIGHT of its mean."""


LONG = 3000
"""The most steps until γ has converged."""


@dataclass(frozen=True)
class LDAMap:
    """The stationary map of `LDA`; q is γ (n, k). Methods as in `StationaryMap`."""

    def q_of(self, state):
        return state.method.e_step.q.gamma

    def inward(self, problem, params):
        return params

    def outward(self, problem, params):
        return params

    def spaces(self, problem, params):
        return problem.model.spaces(params)

    def scale(self, problem, params, q):
        return ()

    def converge_q(self, problem, params, q):
        table = problem.model.table(params, problem.data)
        tol = jnp.finfo(q.dtype).eps ** TIGHT * q.mean(-1)
        gamma = converged_gamma(table, q, tol, jnp.asarray(LONG, jnp.int32))
        moved = jnp.abs(stepped(table, gamma, problem.weights)[0] - gamma).mean(-1)
        return gamma, jnp.all(moved <= SLACK * tol)

    def step(self, problem, params, q, scale):
        model, weights = problem.model, problem.weights
        gamma, topics, _ = stepped(model.table(params, problem.data), q, weights)
        stats = model.sums(topics, mean_log(gamma), weights)
        return model.maximize(params, stats, smooth=True), gamma

    def jacobian(self, problem):
        return None

    def value(self, problem, params, q):
        return stepped(problem.model.table(params, problem.data), q, problem.weights)[2]


def stepped(data: Table, gamma, weights):
    """(γ (n, k) after one step, Σ w·counts·φ (k, v), F at γ and the best φ (n,)).

    Documents that share a row get the γ of one of them.
    """
    if data.place is None:
        return _stepped(data, gamma, weights)
    n_rows = sum(map(len, data.words))
    document = jnp.full(n_rows, -1).at[data.place].max(jnp.arange(len(gamma)))
    weights = jnp.zeros(n_rows, weights.dtype).at[data.place].add(weights)
    first, parts = first_rows(data.words), []
    for start, words, counts in zip(first, data.words, data.counts, strict=True):
        is_used = document[start : start + len(words)] >= 0
        # Rows that no document refers to may hold anything.
        counts = jnp.where(is_used[:, None], counts, 0)
        of_class = data._replace(words=words, counts=counts, place=None)
        of_rows = gamma[document[start : start + len(words)]]
        parts.append(_stepped(of_class, of_rows, weights[start : start + len(words)]))
    gamma, total, value = zip(*parts, strict=True)
    gamma, value = (jnp.concatenate(leaves)[data.place] for leaves in (gamma, value))
    return gamma, sum(total), value


def _stepped(data: Table, gamma, weights):
    """`stepped` for rows (n, L) of one width.

    Every document has as many cells as the longest. Reverse differentiation stores nothing of a
    block. There is no headroom here: the derivative of 1 / norm would underflow.
    """
    n, k = gamma.shape
    table = data.table / headroom(gamma.dtype)
    rows = min(n, max(1, tuning.MAP_NUMBERS // (k * data.words.shape[1])))

    @jax.checkpoint
    def block(table, alpha, words, counts, gamma, weights):
        rows_of_table = table_rows(table, words)
        psi = digamma(gamma)
        top = stop_gradient(psi.max(-1, keepdims=True))
        e = jnp.exp(psi - top)
        norm = cell_norms(rows_of_table, e)
        norm = jnp.where(norm > 0, norm, 1)
        ratio = counts / norm
        shift = data.shift[words]
        is_held = shift > -jnp.inf
        log_norm = jnp.where(is_held, jnp.log(norm) + jnp.where(is_held, shift, 0) + top, 0)
        sums = jnp.einsum("wl,wkl->wk", ratio, rows_of_table, precision=Precision.HIGHEST)
        logs = (counts * log_norm).sum(-1) - counts.sum(-1) * digamma(gamma.sum(-1))
        cells = (e * weights[:, None])[:, None] * ratio[..., None]
        total = jnp.zeros_like(table).at[words.reshape(-1)].add(cells.reshape(-1, k))
        value = logs + minus_kl_of_dirichlets(alpha, gamma, mean_log(gamma))
        return total, (alpha + e * sums, value)

    leaves = data.words, data.counts, gamma, weights
    if rows == n:
        total, (gamma, value) = block(table, data.alpha, *leaves)
        return gamma, (total * table).T, value

    def add(total, part):
        block_total, out = block(table, data.alpha, *part)
        return total + block_total, out

    def cut(leaf):  # documents that fill up a block have γ = 1
        fill = jnp.ones if leaf is gamma else jnp.zeros
        padding = fill((-n % rows, *leaf.shape[1:]), leaf.dtype)
        return jnp.concatenate([leaf, padding]).reshape(-1, rows, *leaf.shape[1:])

    total, out = jax.lax.scan(add, jnp.zeros_like(table), tuple(map(cut, leaves)))
    gamma, value = (leaf.reshape(-1, *leaf.shape[2:])[:n] for leaf in out)
    return gamma, (total * table).T, value
