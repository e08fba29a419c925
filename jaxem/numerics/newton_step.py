"""Newton steps on sums of concave functions of linear predictors, which cannot lower the sum.

Let f(η) be concave with |f'''| ≤ −f'' (logarithms of Poisson, binomial and multinomial
probabilities in their natural parameter, and those of a gamma or negative binomial distribution
with a log link). Along a step δ the predictor η_i = x_i'β moves by at most R. So with the gradient
g and the negative Hessian H of Q(β) = Σ_i w_i f_i(x_i'β),

  Q(β + sδ) ≥ Q(β) + s g'δ − δ'Hδ (e^{sR} − sR − 1)/R²   for s ≥ 0.

With δ = (H + E)⁻¹g, E positive semidefinite, the bound is at least g'δ (s − (e^{sR} − sR − 1)/R²),
whose maximum is at s = log(1 + R)/R (Bach 2010). s goes to 1 where steps are small.
"""

import jax.numpy as jnp
from jax.lax import Precision

from jaxem.numerics.linalg import floored, lower_factor, lower_solve, upper_solve

SERIES_UP_TO = 0.1
"""Arguments up to which e^z − z − 1 is computed by its series."""


def expm1_minus(z):
    """e^z − 1 − z without cancellation."""
    is_small = jnp.abs(z) < SERIES_UP_TO
    small = jnp.where(is_small, z, 0)
    series = 1.0
    for i in range(10, 2, -1):
        series = 1 + small / i * series
    large = jnp.where(is_small, 1, z)
    return jnp.where(is_small, small * small / 2 * series, jnp.expm1(large) - large)


def step_length(reach):
    """s = log(1 + R)/R for the largest change R of a predictor by the whole step."""
    is_small = reach < 1e-6
    return jnp.where(is_small, 1 - reach / 2, jnp.log1p(reach) / jnp.where(is_small, 1, reach))


def least_gain(gradient, curvature, step, length, reach):
    """The lower bound on the gain of Q by `length` times `step`: gradient, step (..., m), curvature
    (..., m, m), length and reach (...)."""
    is_small = reach < 1e-6
    safe_reach = jnp.where(is_small, 1, reach)
    loss = expm1_minus(length * safe_reach) / jnp.square(safe_reach)
    loss = jnp.where(is_small, jnp.square(length) / 2, loss)
    return length * (gradient * step).sum(-1) - loss * quadratic(curvature, step)


def quadratic(matrix, vector):
    """v'Av, (...), for (..., m, m) and (..., m)."""
    product = jnp.einsum("...ij,...j->...i", matrix, vector, precision=Precision.HIGHEST)
    return (product * vector).sum(-1)


def regular(curvature):
    """Curvatures (..., m, m) with a diagonal raised as far as needed to make them positive
    definite: by rounding errors of their entries."""
    largest = jnp.max(jnp.diagonal(curvature, axis1=-2, axis2=-1), axis=-1, keepdims=True)
    tiny = float(jnp.finfo(curvature.dtype).tiny) ** 0.5
    return floored(curvature, tiny * jnp.where(largest > 0, largest, 1))


def newton_step(gradient, curvature):
    """curvature⁻¹ gradient, (..., m)."""
    lower = lower_factor(regular(curvature))
    return upper_solve(lower, lower_solve(lower, gradient[..., None]))[..., 0]


def shared_newton_step(gradient, curvature, unshared, shared, extra_gradient, extra_curvature):
    """The Newton step (k, m) of k components with `shared` entries in common, by elimination of
    their `unshared` ones. unshared, shared: static lists of positions in m. extra_gradient (q,),
    extra_curvature (q, q): what a prior adds once to those of the shared entries."""
    rows = curvature[:, unshared]
    within, across = rows[:, :, unshared], rows[:, :, shared]
    both = curvature[:, shared][:, :, shared].sum(0) + extra_curvature
    right = gradient[:, shared].sum(0) + extra_gradient
    if not unshared:
        step = newton_step(right, both)
        return jnp.broadcast_to(step, gradient.shape)
    lower = lower_factor(regular(within))
    half = lower_solve(lower, jnp.concatenate([across, gradient[:, unshared, None]], -1))
    half_across, half_unshared = half[..., :-1], half[..., -1]
    both = both - jnp.einsum("kij,kil->jl", half_across, half_across, precision=Precision.HIGHEST)
    right = right - jnp.einsum("kij,ki->j", half_across, half_unshared, precision=Precision.HIGHEST)
    of_shared = newton_step(right, both)
    rest = half_unshared - jnp.einsum(
        "kij,j->ki", half_across, of_shared, precision=Precision.HIGHEST
    )
    of_unshared = upper_solve(lower, rest[..., None])[..., 0]
    of_shared = jnp.broadcast_to(of_shared, (*of_unshared.shape[:-1], len(shared)))
    place = [0] * (len(unshared) + len(shared))
    for position, column in enumerate([*unshared, *shared]):
        place[column] = position
    return jnp.concatenate([of_unshared, of_shared], -1)[..., jnp.array(place)]
