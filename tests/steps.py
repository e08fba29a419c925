"""The programs that the tests of families and priors share: densities and M-steps of one case."""

import jax
import numpy as np
from oracles import N, float64, moved

DIRECTIONS = range(4)


def cast(tree, dtype):
    """Every leaf as a NumPy array of dtype."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)


@jax.jit
def density(bank, params, x):
    return bank.posterior(params, x)[1]


@jax.jit
def _steps(bank, params, x, every):
    def step(weights):
        q, _ = bank.posterior(params, x)
        return bank.maximize(params, bank.statistics(params, x, q, weights))

    return jax.lax.map(step, every)


def setting(case, dtype, seed=0):
    """Random params, data and (n, k) weights, rounded to dtype: for JAX, and for the oracle."""
    rng = np.random.default_rng(seed)
    params, x = case.params(rng), case.data(rng)
    k = jax.tree.leaves(params)[0].shape[0]
    weights = rng.dirichlet(np.ones(k), N) * rng.uniform(0.5, 2, (N, 1))
    ours = cast((params, x, weights), dtype)
    return ours, float64(ours)


def _only_first(weights, share):
    return np.where(np.arange(len(weights))[:, None] == 0, share, 0 * weights)


SITUATIONS = {
    "all units": lambda w: w,
    "component 1 empty": lambda w: w * (np.arange(w.shape[1]) != 1),
    "no unit": lambda w: 0 * w,
    "one unit": lambda w: _only_first(w, 1),
    "a bit of one unit": lambda w: _only_first(w, 1e-9),
    "next to nothing of one unit": lambda w: _only_first(w, 1e-12),
}


_done = {}
"""The M-steps of every (case, dtype), by the identity of the case: banks need not be hashable."""


def step(case, dtype, situation="all units"):
    """The E-step within components and the M-step; one program does those of all situations."""
    if (id(case), dtype) not in _done:
        params, x, weights = setting(case, dtype)[0]
        every = np.stack([weigh(weights).astype(dtype) for weigh in SITUATIONS.values()])
        new = _steps(cast(case.bank, dtype), params, x, every)
        _done[id(case), dtype] = jax.tree.map(np.asarray, new)
    place = list(SITUATIONS).index(situation)
    return jax.tree.map(lambda leaf: leaf[place], _done[id(case), dtype])


def newton_step(objective, kinds, params, seed, h):
    """How far from params the parabola through three points of a random curve has its top."""
    low, at, high = (objective(moved(kinds, params, seed, s)) for s in (-h, 0, h))
    assert low + high - 2 * at < 0
    return h / 2 * abs((high - low) / (low + high - 2 * at))


def assert_maximum(objective, kinds, params, dtype):
    h, tol = (3e-3, 1e-5) if dtype == np.float64 else (3e-2, 2e-3)
    top = objective(params)
    for seed in DIRECTIONS:
        assert newton_step(objective, kinds, params, seed, h) < tol
        assert all(objective(moved(kinds, params, seed, s)) < top for s in (-1, -0.1, 0.1, 1))
        off = moved(kinds, params, seed + 10, 0.1)
        assert newton_step(objective, kinds, off, seed + 10, h) > 10 * tol  # the test can fail
