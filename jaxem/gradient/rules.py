"""What differentiates through a fit: one object for every value of `fit(..., gradient=...)`.

Each says with `check` whether a call can be differentiated so, with `suited` what it becomes for a
model and a method, and with `fit` solves the call so that its result has that gradient.
"""

from dataclasses import dataclass

import jax
from jax.lax import stop_gradient

from jaxem.data.arrays import plan_to_unroll
from jaxem.methods.em import EM, has_stationary_map
from jaxem.numerics.tree import is_traced
from jaxem.protocol.capabilities import LocalPosterior, has
from jaxem.protocol.model import name_of
from jaxem.solver.programs import search
from jaxem.wrappers.factored import factored


@dataclass(frozen=True)
class AtTheEnd:
    """The derivative of where a fit ends, whatever led there.

    solves: whether the whole map has come to rest (a linear solve), else one step of it. refusal:
    why there is no derivative, None where there is one.
    """

    solves: bool = True
    refusal: str | None = None

    def check(self, method, max_iter, restarts) -> None:
        """Nothing is refused before it is differentiated."""

    def suited(self, plan, method, model, x):
        """(the rule for this model and method, the plan with the map that stands still)."""
        if self.refusal is not None or (method.plain and _reversible(model)):
            return self, plan
        still = method.stationary(model, x) if has_stationary_map(method) else None
        return (UNKNOWN if still is None else self), plan._replace(stationary_map=still)

    def fit(self, plan, *args):
        """The best `Fit`, every restart's, and whether the gradient of the best can be trusted,
        None where nothing is traced. args: as of `search`."""
        if not is_traced(args):
            return *search(*args, plan=plan._replace(stationary_map=None)), None
        # The search itself is not differentiated: under `grad` alone its inputs are plain arrays.
        still = jax.tree.map(lambda a: stop_gradient(a) if is_traced(a) else a, args)
        best, every = search(*still, plan=plan)
        from jaxem.gradient.implicit import attached  # a plain fit starts sooner without it

        numeric, x, weights, *_ = args
        return attached(numeric, x, weights, best, every, plan=plan, rule=self)


@dataclass(frozen=True)
class Unrolled:
    """The derivative of exactly max_iter steps."""

    def check(self, method, max_iter, restarts) -> None:
        """TypeError where there is no fixed number of steps from every start."""
        if not isinstance(method, EM):
            raise TypeError('gradient="unrolled" walks back through steps of jaxem.EM() alone')
        plan_to_unroll(max_iter, restarts)

    def suited(self, plan, method, model, x):
        if not _reversible(model):
            raise TypeError(f'{name_of(model)} has no gradient: leave gradient="implicit"')
        return self, plan

    def fit(self, plan, *args):
        from jaxem.gradient.unrolled import unrolled  # a plain fit starts sooner without it

        return unrolled(*args[:-1], max_iter=args[-1], plan=plan)


def _reversible(model) -> bool:
    """Whether `jax.grad` can walk back through an E-step: it is no loop that ends by itself."""
    return factored(model) is None and not has(model, LocalPosterior)


UNKNOWN = AtTheEnd(
    refusal="the gradient through a fit is not known for Hard() and Constrained(), for rules "
    "without `stationary`, for Stochastic() without steps and OnlineEM() without passes, which do "
    "not converge, and for LDA by any but the exact rules: use method=jaxem.EM(), or "
    "jax.lax.stop_gradient on what goes into the fit"
)
GRADIENTS = {
    "implicit": AtTheEnd(),
    "unrolled": Unrolled(),
    "one_step": AtTheEnd(solves=False),
    "none": AtTheEnd(
        refusal='the result of a fit with gradient="none" is being differentiated: use '
        'gradient="implicit", or jax.lax.stop_gradient on what goes into the fit'
    ),
}
