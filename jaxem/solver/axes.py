"""The canonical form of a call, B data sets with R starts each, and its results without it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.solver.problem import rank


def canonical(numeric, x, weights, start, tol, max_iter, *, plan):
    """Data, starts and limits with the axes of data sets and of restarts that `solve` takes."""
    batched, restarts = plan.batched, plan.restarts
    sets = jax.tree.leaves(x)[0].shape[0] if batched else 1
    if not batched:
        starts = jax.tree.map(lambda a: a[None], each_start(start, restarts, plan.given))
    elif plan.given:
        starts = start
    else:
        key, index = start
        keys = jax.vmap(jax.random.fold_in, (None, 0))(typed(key), index)
        starts = jax.vmap(lambda key: each_start(key, restarts, False))(keys)
    limits = tuple(jnp.broadcast_to(v, (sets, restarts)) for v in (tol, max_iter))
    return data_sets(numeric, x, weights, sets, batched), starts, limits


def data_sets(numeric, x, weights, sets, batched):
    """Hyperparameters, data and weights with an axis of data sets."""
    numeric = [jnp.broadcast_to(leaf, (sets, *jnp.shape(leaf))) for leaf in numeric]
    return numeric, *as_sets((x, weights), batched)


def as_sets(x, batched):
    """Data with an axis of data sets."""
    return x if batched else jax.tree.map(lambda a: a[None], x)


def best_of(every, batched):
    """The best restart, of every data set."""

    def pick(fits):
        return jax.tree.map(lambda a: a[rank(fits)], fits)

    return jax.vmap(pick)(every) if batched else pick(every)


def typed(key):
    """A typed key from an int or a legacy key; key 0 for None, where nothing is random."""
    key = np.uint32(0) if key is None else key
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key) if key.ndim else jax.random.key(key)


def each_start(start, restarts, given):
    """Given params unchanged, or a key for every restart, which depends on `start` and the index of
    the restart alone."""
    if given:
        return start
    key = typed(start)
    if restarts == 1:
        return key[None]
    other_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1, restarts))
    return jnp.concatenate([key[None], other_keys])
