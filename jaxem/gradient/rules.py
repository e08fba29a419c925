"""Gradients through a fit: one rule for every value of `fit(..., gradient=...)`.

A rule has `check`, which raises where a call cannot be differentiated by it; `suited`, the rule and
the plan for a model and a method; and `fit`, which solves the call and attaches the gradient.
"""

from dataclasses import dataclass

import jax
from jax.lax import stop_gradient

from jaxem.data.options import plan_to_unroll
from jaxem.methods.em import EM, has_stationary_map
from jaxem.numerics.tree import is_traced
from jaxem.numerics.tuning import full_products
from jaxem.protocol.capabilities import LocalPosterior, has
from jaxem.protocol.model import name_of
from jaxem.solver.programs import search
from jaxem.wrappers.factored import factored


@dataclass(frozen=True)
class OfFixedPoint:
    """The derivative of the fixed point at which a fit ends, not of its steps.

    solves: whether it is that of the fixed point, by a linear solve, or else of one step of the
    map. refusal: the message of the TypeError where there is no derivative, else None.
    """

    unrolls = False
    solves: bool = True
    refusal: str | None = None

    def check(self, method, max_iter, restarts) -> None:
        """No call raises before its result is differentiated."""

    def suited(self, plan, method, model, x):
        """(the rule for this model and method, the plan with its stationary map)."""
        if self.refusal is not None or (method.plain and _differentiable(model)):
            return self, plan
        stationary_map = method.stationary(model, x) if has_stationary_map(method) else None
        return (UNKNOWN if stationary_map is None else self), plan._replace(
            stationary_map=stationary_map
        )

    def fit(self, plan, *args):
        """The best `Fit`, the fits of all restarts, and whether the gradient of the best can be
        trusted, None where nothing is traced. args: as of `search`."""
        if not is_traced(args):
            return *search(*args, plan=plan._replace(stationary_map=None)), None
        # The search itself is not differentiated: under `grad` alone its inputs are plain arrays.
        constants = jax.tree.map(lambda a: stop_gradient(a) if is_traced(a) else a, args)
        best, every = search(*constants, plan=plan)
        from jaxem.gradient.implicit import attached  # a fit without gradient does not import it

        numeric, x, weights, *_ = args
        with full_products():
            return attached(numeric, x, weights, best, every, plan=plan, rule=self)


@dataclass(frozen=True)
class Unrolled:
    """The derivative of exactly max_iter steps, by reverse differentiation through them."""

    unrolls = True

    def check(self, method, max_iter, restarts) -> None:
        """TypeError where there is no fixed number of steps from every start."""
        if not isinstance(method, EM):
            raise TypeError('gradient="unrolled" walks back through steps of jaxem.EM() alone')
        plan_to_unroll(max_iter, restarts)

    def suited(self, plan, method, model, x):
        if not _differentiable(model):
            raise TypeError(f'{name_of(model)} has no gradient: leave gradient="implicit"')
        return self, plan

    def fit(self, plan, *args):
        from jaxem.gradient.unrolled import unrolled  # a fit without gradient does not import it

        with full_products():
            return unrolled(*args[:-1], max_iter=args[-1], plan=plan)


def _differentiable(model) -> bool:
    """Whether `jax.grad` can differentiate an E-step: it has no loop of unknown length."""
    return factored(model) is None and not has(model, LocalPosterior)


UNKNOWN = OfFixedPoint(
    refusal="the gradient through a fit is not known for Hard() and Constrained(), for rules "
    "without `stationary`, for Stochastic() without steps and OnlineEM() without passes, which do "
    "not converge, and for LDA by any but the exact rules: use method=jaxem.EM(), or "
    "jax.lax.stop_gradient on what goes into the fit"
)
GRADIENTS = {
    "implicit": OfFixedPoint(),
    "unrolled": Unrolled(),
    "one_step": OfFixedPoint(solves=False),
    "none": OfFixedPoint(
        refusal='the result of a fit with gradient="none" is being differentiated: use '
        'gradient="implicit", or jax.lax.stop_gradient on what goes into the fit'
    ),
}
