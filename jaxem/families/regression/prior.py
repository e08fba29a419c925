"""The prior of the coefficients: of one kind for the M-step, in both units."""

import jax.numpy as jnp

from jaxem.families.regression.units import RegressionUnits, inward_coefficients
from jaxem.protocol.priors import CoefficientPrior


def precision_and_mean(prior, m: int, intercept: bool, dtype):
    """Precisions and means (m,) of m coefficients, or None. A prior that is one number is the
    precision of all slopes."""
    if prior is None:
        return None
    if not isinstance(prior, CoefficientPrior):
        precision = jnp.broadcast_to(jnp.asarray(prior, dtype), (m,))
        return jnp.where(jnp.arange(m) >= int(intercept), precision, 0), jnp.zeros(m, dtype)
    both = (prior.precision, prior.mean)
    return tuple(jnp.broadcast_to(jnp.asarray(a, dtype), (m,)) for a in both)


def log_density(precision, mean, coefficients, shared):
    """That of coefficients (k, m), with its constants; that of the `shared` columns once."""
    is_shared = jnp.zeros(precision.shape, bool)
    if shared:
        is_shared = is_shared.at[jnp.array(shared)].set(True)
    separate = CoefficientPrior(jnp.where(is_shared, 0, precision), mean)
    of_unshared = separate.log_density(coefficients)
    if not shared:
        return of_unshared
    common = CoefficientPrior(jnp.where(is_shared, precision, 0), mean)
    return of_unshared + common.log_density(coefficients[0])


def inner_prior(units: RegressionUnits, precision, mean, intercept: bool):
    """The prior of the coefficients of standardised data. The location of regressors must be 0
    where the intercept has a prior."""
    factor = units.spread / units.scale
    if intercept:
        factor = jnp.concatenate([units.spread[None], factor])
    inner = jnp.where(precision > 0, inward_coefficients(units, mean, intercept), 0)
    return CoefficientPrior(precision * jnp.square(factor), inner)
