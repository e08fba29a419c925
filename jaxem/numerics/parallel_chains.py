"""The recursions of `chains` by associative scans: log2(t) levels in place of t steps, for devices
on which every step is a launch. The products of matrices take k times the arithmetic.

A filter is a product of matrices (p(z_{t+1} | z_t) · p(x_{t+1} | z_{t+1})). Every row of a product
is normalised by itself, with the logarithm of its sum beside it, so that none underflows
(Särkkä & García-Fernández 2021, in this form for finite states).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient


def filtered(chain, logs):
    """p(z_t | x_1 … x_t) (t, k, n) of a `chains.Chain`, from log densities (t, k, n)."""
    t, k, n = logs.shape
    before = jax.tree.map(lambda a: a[:-1], chain.inputs)
    shape = (t - 1, k, k, n)
    if callable(chain.transition):
        matrices = jnp.broadcast_to(jax.vmap(chain.transition)(before), shape)
    else:
        matrices = jnp.broadcast_to(chain.transition, shape)
    first = jnp.broadcast_to(chain.initial, (k, n))
    first = jnp.broadcast_to(first[None, None], (1, k, k, n)).astype(logs.dtype)
    rows = _normalised(jnp.concatenate([first, matrices.astype(logs.dtype)]), logs[:, None])
    return jax.lax.associative_scan(_product, rows)[0][:, 0]


def smoothed(predicted, filtered_rows, chain, is_last):
    """(p(z_t | x) (t, k, n), Σ_t p(z_t, z_{t+1} | x) or the sums of `chain.pairs`), from the
    predicted and filtered states (t, k, n)."""
    t = len(filtered_rows)
    if callable(chain.transition):
        matrices = jax.vmap(chain.transition)(chain.inputs)
    else:
        matrices = jnp.broadcast_to(chain.transition, (t, *chain.transition.shape))
    ahead = jnp.concatenate([predicted[1:], jnp.ones_like(predicted[:1])])
    is_zero = ahead <= 0
    joint = filtered_rows[:, :, None] * matrices / jnp.where(is_zero, 1, ahead)[:, None]
    back = jnp.swapaxes(jnp.where(is_zero[:, None], 0, joint), 1, 2)  # from z_{t+1} to z_t
    is_end = is_last | (jnp.arange(t) == t - 1)[:, None]
    back = jnp.where(is_end[:, None, None], filtered_rows[:, None], back)

    def after(later, earlier):
        product = jnp.einsum("tijn,tjkn->tikn", later, earlier, precision="highest")
        total = product.sum(2, keepdims=True)
        return product / jnp.where(total > 0, total, 1)

    marginals = jax.lax.associative_scan(after, back, reverse=True)[:, 0]
    following = jnp.concatenate([marginals[1:], jnp.zeros_like(marginals[:1])])
    is_before_end = jnp.flip(jnp.cumsum(jnp.flip(is_last, 0), axis=0), 0) - is_last > 0
    has_ratio = is_before_end[:, None] & ~is_zero
    ratio = jnp.where(has_ratio, following / jnp.where(is_zero, 1, ahead), 0)
    if chain.pairs is None and not callable(chain.transition):
        sums = jnp.einsum("tin,tjn->ijn", filtered_rows, ratio, precision="highest")
        return marginals, sums * chain.transition
    pairs = filtered_rows[:, :, None] * matrices * ratio[:, None]
    if chain.pairs is not None:
        pairs = jax.vmap(chain.pairs)(pairs, chain.inputs)
    return marginals, jax.tree.map(partial(jnp.sum, axis=0), pairs)


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
