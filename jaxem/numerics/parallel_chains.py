"""The recursions of `chains` by associative scans: log2(t) levels in place of t steps, for devices
on which every step is a launch. The products of matrices take k times the arithmetic.

A filter is a product of matrices (p(z_{t+1} | z_t) · p(x_{t+1} | z_{t+1})). Every row of a product
is normalised by itself, with the logarithm of its sum beside it, so that none underflows
(Hassan, Särkkä & García-Fernández 2021).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


def filtered(chain, logs, first):
    """p(z_t | x_1 … x_t) (t, k, n) of a `chains.Chain`, from log densities (t, k, n) and p(z) (k,
    n) of the first row."""
    t, k, n = logs.shape
    before = jax.tree.map(lambda a: a[:-1], chain.inputs)
    shape = (t - 1, k, k, n)
    if callable(chain.transition):
        matrices = jnp.broadcast_to(jax.vmap(chain.transition)(before), shape)
    else:
        matrices = jnp.broadcast_to(chain.transition, shape)
    first = jnp.broadcast_to(first[None, None], (1, k, k, n))
    rows = _normalised(jnp.concatenate([first, matrices.astype(logs.dtype)]), logs[:, None])
    return jax.lax.associative_scan(_product, rows)[0][:, 0]


def smoothed(predicted, filtered_rows, chain, is_last, after, moved_back):
    """The fields of `chains.Smoothed`, from the predicted and filtered states (t, k, n). after (k,
    n): the ratio of the rows that follow, 0 where there are none. moved_back: Σ_j matrix_ij ·
    ratio_j."""
    t = len(filtered_rows)
    if callable(chain.transition):
        matrices = jax.vmap(chain.transition)(chain.inputs)
    else:
        matrices = jnp.broadcast_to(chain.transition, (t, *chain.transition.shape))
    ahead = jnp.concatenate([predicted[1:], jnp.ones_like(predicted[:1])])
    is_zero = ahead <= 0
    joint = filtered_rows[:, :, None] * matrices / jnp.where(is_zero, 1, ahead)[:, None]
    back = jnp.swapaxes(jnp.where(is_zero[:, None], 0, joint), 1, 2)  # from z_{t+1} to z_t
    has_after = (after.sum(0) > 0) & ~is_last[-1]
    end = filtered_rows[-1] * moved_back(after, matrices[-1])
    end = jnp.where(has_after, end / jnp.where(has_after, end.sum(0), 1), filtered_rows[-1])
    back = jnp.where(is_last[:, None, None], filtered_rows[:, None], back).at[-1].set(end[None])

    def combined(later, earlier):
        product = jnp.einsum("tijn,tjkn->tikn", later, earlier, precision="highest")
        total = product.sum(2, keepdims=True)
        return product / jnp.where(total > 0, total, 1)

    marginals = jax.lax.associative_scan(combined, back, reverse=True)[:, 0]
    following = marginals[1:] / jnp.where(is_zero, 1, ahead)[:-1]
    is_before_end = jnp.flip(jnp.cumsum(jnp.flip(is_last, 0), axis=0), 0) - is_last > 0
    goes_on = is_before_end | has_after
    following = jnp.concatenate([jnp.where(is_zero[:-1], 0, following), after[None]])
    ratio = jnp.where((goes_on & ~is_last)[:, None], following, 0)
    is_inside = (predicted[0] > 0) & (goes_on | is_last)[0]
    first = jnp.where(is_inside, marginals[0] / jnp.where(is_inside, predicted[0], 1), 0)
    if chain.pairs is None and not callable(chain.transition):
        sums = jnp.einsum("tin,tjn->ijn", filtered_rows, ratio, precision="highest")
        return marginals, sums * chain.transition, first
    pairs = filtered_rows[:, :, None] * matrices * ratio[:, None]
    if chain.pairs is not None:
        pairs = jax.vmap(chain.pairs)(pairs, chain.inputs)
    return marginals, jax.tree.map(partial(jnp.sum, axis=0), pairs), first


def _normalised(weights, logs):
    """(rows that sum to 1, the logarithms of the sums) of weights · exp(logs), along axis 2."""
    logs = jnp.broadcast_to(logs, weights.shape)
    possible = jnp.where(weights > 0, logs, -jnp.inf)
    largest = stop_gradient(possible.max(2, keepdims=True))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    scaled = weights * jnp.exp(jnp.where(weights > 0, logs - largest, -jnp.inf))
    total = scaled.sum(2)
    is_zero = total <= 0
    level = jnp.where(is_zero, -jnp.inf, jnp.log(jnp.where(is_zero, 1, total)) + largest[:, :, 0])
    return scaled / jnp.where(is_zero, 1, total)[:, :, None], level


def _product(first, second):
    """The product of matrices whose rows are normalised, (rows (t, k, k, n), levels (t, k, n))."""
    rows, level = first
    next_rows, next_level = second
    weighted, more = _normalised(rows, next_level[:, None])
    product = jnp.einsum("tijn,tjkn->tikn", weighted, next_rows, precision="highest")
    return product, jnp.where(jnp.isfinite(more), level + more, -jnp.inf)
