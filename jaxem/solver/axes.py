"""The canonical form of a call, B data sets with R starts each, and its results without it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.solver.problem import rank


def canonical(numeric, x, weights, start, tol, max_iter, *, plan):
    """Data, starts and limits with the axes of data sets and of restarts that `solve` takes.

    start: given params, or a key and the numbers of the data sets in the batch, or else those of
    the restarts.
    """
    batched, restarts = plan.batched, plan.restarts
    sets = jax.tree.leaves(x)[0].shape[0] if batched else 1
    if plan.given:
        starts = start if batched else jax.tree.map(lambda a: a[None], start)
    elif not batched:
        starts = keys_of_restarts(*start)[None]
    else:
        key, index = start
        keys = jax.vmap(jax.random.fold_in, (None, 0))(typed(key), index)
        starts = jax.vmap(lambda key: keys_of_restarts(key, np.arange(restarts)))(keys)
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


def keys_of_restarts(key, index):
    """The keys of the restarts with these numbers. Each depends on its number and `key` alone; that
    of restart 0 is `key`."""
    key = typed(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jnp.where(index == 0, key, keys)
