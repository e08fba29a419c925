"""What a fit, or each fit of a batch, says about given data: scores, responsibilities, labels and
their entropy.

`axes` is None for one fit. For b fits it is (axis, 0, 0), the axes of b in (numeric, params, x),
None where the fits share the arrays of one model; results then have a leading axis b.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.data import of_components, with_components
from jaxem.data.grouped import Grouped
from jaxem.numerics import tuning
from jaxem.numerics.special import safe_entr
from jaxem.numerics.tree import is_traced, merge
from jaxem.protocol.capabilities import FiniteLatents, has
from jaxem.protocol.model import name_of
from jaxem.protocol.posterior import responsibilities_of
from jaxem.protocol.wrapper import Wrapper

FAR = 2.0**20
"""Units with an entry beyond this are far. Where the density of such a unit underflows under every
component, its responsibilities are those of the unit at `SHRINKAGE` of the distance, repeatedly."""

SHRINKAGE = 2.0**-10

OFF_ONE = 1e-3
"""How far from 1 the sum of responsibilities may be."""


@partial(jax.jit, static_argnums=(3, 4))
def scores(numeric, params, x, structure, axes=None):
    """log p(x | params) of every unit (n,): −∞ outside the support, NaN where x holds a NaN that
    the model does not take."""

    def of_one(numeric, params, x):
        model = merge(numeric, structure)
        return model.domain.outside(x, model.posterior(params, x)[1])

    return _over_fits(of_one, axes)(numeric, params, x)


@partial(jax.jit, static_argnums=3)
def response(numeric, params, x, structure):
    """The mean of the response of every row that the bank takes, (r,) or (r, m)."""
    model = merge(numeric, structure)
    model = model.wrapped if isinstance(model, Wrapper) else model
    return model.response(params, x)


def _over_fits(of_one, axes):
    """A function of one fit as one of b fits, a bounded number of them at once."""
    if axes is None:
        return of_one

    def of_all(*args):
        b = jax.tree.leaves(args[2])[0].shape[0]
        floats = sum(leaf.size for leaf in jax.tree.leaves(args[1:])) // b
        width = max(1, min(b, tuning.PREDICTED // max(1, floats)))
        mapped = [None if axis is None else arg for arg, axis in zip(args, axes, strict=True)]
        shared = [arg if axis is None else None for arg, axis in zip(args, axes, strict=True)]

        def of_some(own):
            return of_one(
                *(s if a is None else o for o, s, a in zip(own, shared, axes, strict=True))
            )

        return (
            jax.vmap(of_some)(mapped)
            if width == b
            else (jax.lax.map(of_some, mapped, batch_size=width))
        )

    return of_all


def responsibilities(model, numeric, params, x, structure, axes=None):
    """p(z = k | x, params), shape (n, k). Rows are NaN where x is NaN or has probability 0.

    Raises TypeError where the model has no finite latent variable.
    """
    r, is_lost, is_improper = _responsibilities(numeric, params, x, structure, axes)
    known = not is_traced((r, is_lost, is_improper))
    if known and np.any(is_improper) and not has(model, FiniteLatents):
        raise TypeError(_no_classes(model))
    if known and not np.any(is_lost):
        return r
    return _of_far_units(numeric, params, x, r, is_lost, structure, axes)


@jax.jit
def labels(r, observed=None):
    """The most probable component of every unit (n,), −1 where responsibilities (n, k) are NaN, or
    where nothing of the unit was `observed` (n,); None: of all units something was."""
    is_lost = jnp.isnan(r).any(-1)
    is_lost = is_lost if observed is None else is_lost | ~observed
    return jnp.where(is_lost, -1, jnp.argmax(r, axis=-1))


@partial(jax.jit, static_argnums=2)
def entropy(r, weights, of_batch=False):
    """−Σ_i w_i Σ_k r_ik log r_ik, from responsibilities (n, k) and weights (n,), None for 1; of a
    batch (b,)."""
    if of_batch:
        return jax.vmap(entropy)(r, weights)
    each = safe_entr(r).reshape(len(r), -1).sum(-1)
    return each.sum() if weights is None else jnp.where(weights > 0, weights * each, 0).sum()


@partial(jax.jit, static_argnums=(3, 4))
def _responsibilities(numeric, params, x, structure, axes):
    """Responsibilities; which units of the support have density 0 under every component (n,); and
    which have a density but no distribution over components (n,)."""

    def of_one(numeric, params, x):
        model = merge(numeric, structure)
        r, evidence, is_proper = _distributions(model, params, x)
        is_inside = model.domain.outside(x, jnp.zeros_like(evidence)) == 0
        has_density = evidence > -jnp.inf
        r = jnp.where(_over_last_axes(is_proper & is_inside, r), r, jnp.nan)
        return r, is_inside & ~is_proper & ~has_density, is_inside & ~is_proper & has_density

    return _over_fits(of_one, axes)(numeric, params, x)


@partial(jax.jit, static_argnums=(5, 6))
def _of_far_units(numeric, params, x, r, is_lost, structure, axes):
    """Responsibilities with those of lost units that are far."""

    def of_one(numeric, params, x, r, is_lost):
        model = merge(numeric, structure)
        plain = None if isinstance(x, Grouped) else of_components(x)
        is_points = isinstance(plain, jax.Array) and plain.ndim == 2
        if not is_points or not jnp.issubdtype(plain.dtype, jnp.floating):
            return r

        def shrink(carry):
            points, r, is_lost = carry
            is_far = is_lost & (jnp.abs(points).max(-1) > FAR)
            points = jnp.where(is_far[:, None], points * SHRINKAGE, points)
            data = with_components(x, points)
            nearer, _, is_proper = _distributions(model, params, data)
            is_found = is_far & is_proper
            return points, jnp.where(_over_last_axes(is_found, r), nearer, r), is_far & ~is_found

        first = (plain, r, is_lost)
        return jax.lax.while_loop(lambda carry: jnp.any(carry[2]), shrink, first)[1]

    axes = None if axes is None else (*axes, 0, 0)
    return _over_fits(of_one, axes)(numeric, params, x, r, is_lost)


def _distributions(model, params, x):
    """Responsibilities, evidence (n,), and which units have a distribution over components."""
    q, evidence = model.posterior(params, x)
    r = responsibilities_of(q)
    if not isinstance(r, jax.Array) or r.ndim < 2 or r.shape[0] != evidence.shape[0]:
        raise TypeError(_no_classes(model))
    is_proper = (r >= 0).all(-1) & (jnp.abs(r.sum(-1) - 1) < OFF_ONE)
    return r, evidence, is_proper.reshape(r.shape[0], -1).all(-1)


def _over_last_axes(of_units, r):
    return of_units.reshape(-1, *(1,) * (r.ndim - 1))


def _no_classes(model) -> str:
    return (
        f"{name_of(model)} has no classes to predict: its posterior is not one of probabilities "
        "(n, k) that sum to 1, but of a latent variable without finitely many values; use "
        "score_samples(x), or result.model.posterior(result.params, x)"
    )
