"""One problem: data in safe units, where it starts, and what its finished state says."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import Structure, float_dtype, in_dtype, merge, pytree
from jaxem.passes.sweep import prepared, sweep, total_of
from jaxem.protocol.status import Status
from jaxem.solver import loop
from jaxem.solver.lanes import Lanes

FOLDED = 4096


class Spec(NamedTuple):
    """What a program is compiled for. `structure` is that of (model, method, start rule)."""

    structure: Structure
    criterion: str
    clean: bool  # every unit is known to be valid, and weights are None
    given: bool  # starts are params, not keys
    lanes: Lanes = Lanes()
    joint: Any = None  # the `jaxem.joint.Joint` for which fits are `Ended`


@pytree(eq=False)
class Fit:
    """One climb: where it ended and how.

    params: the best iterate. log_likelihood: Σ w·log p(x | params) at exactly those params.
    objective: what was climbed: log_likelihood + log p(params), with a free energy in place of the
    log-likelihood where the rule for q says so (`Hard`, `Constrained`). n_iter: applications of the
    EM map that led to params. status: a `Status`, as an integer. With restarts every field has a
    leading axis.
    """

    params: Any
    log_likelihood: Any
    objective: Any
    n_iter: Any
    status: Any

    @property
    def converged(self):
        """Whether status is CONVERGED."""
        return self.status == int(Status.CONVERGED)


@pytree(eq=False)
class Ended(Fit):
    """A `Fit`, and what the gradient through it needs beside params: q, unless exact."""

    q: Any

    @property
    def fit(self):
        return Fit(self.params, self.log_likelihood, self.objective, self.n_iter, self.status)


class Problem:
    """One data set in safe units, with the model that is climbed there. `absent`: whether units of
    weight 0 stay what they are, because their weight has a gradient."""

    def __init__(self, spec: Spec, numeric, x, weights, absent: bool = False):
        dtype = float_dtype(x)
        numeric = [in_dtype(leaf, dtype) for leaf in numeric]
        self.model, self.method, self.rule = merge(numeric, spec.structure)
        self.spec = spec
        if spec.clean:
            self.status = jnp.asarray(Status.RUNNING, jnp.int32)
            self.weights = _ones(jax.tree.leaves(x)[0].shape[0], dtype)
        else:
            x, self.weights, self.status = sanitize(self.model, x, weights, absent)
        self.x = x
        self.view = self.model.view(x, self.weights)
        self.data = self.view.data
        self.total = self.weights.sum()

    @property
    def volume(self):
        """Σ w·log_volume."""
        return total_of(self.weights, self.total, self.view.log_volume)

    def ready(self):
        """The same, with what passes over the data have in common computed."""
        self.data = prepared(self.climbed, self.data, self.method)
        return self

    @property
    def climbed(self):
        """The model that is climbed."""
        return self.view.model

    def stand(self, start):
        """The state at a start: a key, or given params."""
        params = self.begin(start)
        memory = self.method.start(self.view.model, params, self.view.data, self.weights)
        return loop.start(params, self.weights.dtype, self.status, memory)

    def begin(self, start):
        """Params to start from, in safe units, from a key or from given params."""
        model, data, weights = self.view.model, self.view.data, self.weights
        if self.spec.given:
            params = self.view.inward(start)
        elif self.rule is None:
            params = model.init(start, data, weights)
        else:
            params = self.rule.params(model, start, data, weights)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.asarray(a).dtype), params)

    def evaluate(self, params, memory):
        return self.method.evaluate(self.view.model, params, self.data, self.weights, memory)

    def map(self, params):
        """One plain step, whatever the method makes of it."""
        return self.method.map(self.view.model, params, self.view.data, self.weights)


def sanitize(model, x, weights, absent: bool = False):
    """Data and weights in which every unit is present and valid or has weight 0, and a status.

    A unit that is absent or outside the model's support becomes a copy of the first that is not, so
    that nothing it holds, NaN included, can reach a sum. `absent`: valid ones of weight 0 stay.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    valid = jnp.ones(n, bool)
    for mask in jax.tree.leaves(model.valid(x)):
        valid &= jnp.all(mask.reshape(n, -1), axis=1)
    if weights is None:
        weights = jnp.ones(n, float_dtype(x))
    present = weights > 0
    wrong = jnp.any((present & ~valid) | ~((weights >= 0) & jnp.isfinite(weights)))
    status = jnp.where(wrong, Status.BAD_INPUT, Status.RUNNING)
    status = jnp.where(jnp.any(present) | wrong, status, Status.EMPTY)

    use = (weights >= 0 if absent else present) & valid & jnp.isfinite(weights)
    some = jnp.any(use)
    first = jnp.argmax(use)

    def clean(leaf):
        stand_in = jnp.where(some, leaf[first], jnp.ones((), leaf.dtype))
        return jnp.where(use.reshape((n,) + (1,) * (leaf.ndim - 1)), leaf, stand_in)

    return jax.tree.map(clean, x), jnp.where(use | ~some, jnp.where(some, weights, 1), 0), status


def finish(problem: Problem, state) -> Fit:
    """The state of a finished loop in the units of the data."""
    model, view = problem.model, problem.view
    inner, objective, n_iter = loop.settled(state)
    measured = problem.method.measures(n_iter)
    if measured is not True:
        objective = jax.lax.cond(measured, lambda: objective, lambda: problem.map(inner).objective)
    params = view.outward(inner)
    # A step refused because it collapsed is a collapse, although the params kept are sound; and so
    # is a variance that vanishes in the units of the data.
    last = view.inward(view.outward(state.params))
    degenerate = jnp.any(jnp.asarray(view.model.degenerate(last)))
    degenerate &= jnp.isfinite(loop.blemish(last))
    status = jnp.where(degenerate, Status.DEGENERATE, state.status)
    status = jnp.where(jnp.isfinite(loop.blemish(params)), status, Status.NONFINITE)
    status = jnp.where(state.status < Status.DEGENERATE, status, state.status)
    log_likelihood = objective - view.model.log_prior(inner) - problem.volume
    if jnp.ndim(view.log_volume) and problem.method.plain:  # large terms that cancel, unit by unit
        log_likelihood = sweep(model, params, problem.x, problem.weights).evidence
    log_likelihood = climbed = log_likelihood.astype(objective.dtype)
    other = problem.method.log_likelihood(view.model, inner, view.data, problem.weights)
    if other is not None:
        log_likelihood = (other - problem.volume).astype(objective.dtype)
    fit = Fit(
        params=jax.tree.map(_clip, params),
        log_likelihood=log_likelihood,
        objective=(climbed + model.log_prior(params)).astype(objective.dtype),
        n_iter=n_iter,
        status=status.astype(jnp.int32),
    )
    joint = problem.spec.joint
    return fit if joint is None else Ended(**vars(fit), q=joint.kept(state))


def _ones(n, dtype):
    """Weights of 1. XLA folds constants: welcome for small n, seconds of compile time for large."""
    ones = jnp.ones(n, dtype)
    return ones if n <= FOLDED else jax.lax.optimization_barrier(ones)


def _clip(leaf):
    """The nearest finite value, for params that overflow in the units of the data."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.clip(leaf, jnp.finfo(leaf.dtype).min, jnp.finfo(leaf.dtype).max)


def rank(every: Fit):
    """The index of the best restart: sound ones first, then by objective; NaN never wins."""
    tiers = jnp.asarray([5, 0, 0, 1, 3, 2, 4, 4])
    objective = jnp.where(jnp.isnan(every.objective), -jnp.inf, every.objective)
    tier = tiers[every.status]
    best = tier == tier.min()
    top = jnp.where(best, objective, -jnp.inf).max()
    return jnp.argmax(best & (objective >= top))
