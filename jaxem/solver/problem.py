"""One data set in the units of the arithmetic: its start, its evaluations and its final `Fit`."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics import rows, tuning
from jaxem.numerics.special import safe_entr
from jaxem.numerics.tree import (
    Structure,
    float_dtype,
    in_dtype,
    merge,
    over_units,
    pytree,
    split,
)
from jaxem.passes.chunks import in_chunks, total_of
from jaxem.passes.collect import chunk_rows, prepared, unprepared
from jaxem.protocol.capabilities import FiniteLatents, LocalPosterior, defines, has
from jaxem.protocol.counts import total_range
from jaxem.protocol.posterior import responsibilities_of
from jaxem.protocol.status import Status
from jaxem.protocol.units import inward, outward, standardized
from jaxem.solver import loop
from jaxem.solver.lanes import Lanes


class Plan(NamedTuple):
    """The static options of a call, for which its programs are compiled. Hashable.

    structure: of (model, method, start rule), as returned by `split`. stopping: the stopping rule.
    clean: whether every unit is known to be valid and weights are None. given: whether starts are
    params, not keys. restarts: the number of starts, or a `Restarts`. batched: whether the data
    have an axis of data sets. stationary_map: the map whose fixed point is differentiated, with
    which fits are `Ended`; None where it is the EM map. entropy: whether the program computes that
    of the responsibilities; a plain fit computes it when it is asked for. spread: over which
    devices the fits are spread, a `devices.Spread`, or None. shards: over which devices the units
    of one data set are sharded, as in `rows.sharded`, or None. platform: on which the programs run;
    sizes of chunks and lanes depend on it.
    """

    structure: Structure
    stopping: Any
    clean: bool
    given: bool
    lanes: Lanes = Lanes()
    restarts: Any = 1
    batched: bool = False
    stationary_map: Any = None
    entropy: bool = True
    spread: Any = None
    shards: Any = None
    platform: str = "cpu"


@pytree(eq=False)
class Fit:
    """The end of one climb: the steps of EM from one start.

    params: the best iterate. log_likelihood: Σ w·log p(x | params) at exactly those params, in
    nats. objective: the maximised function at params, log_likelihood + log p(params), with a free
    energy in place of the log-likelihood for rules such as `Hard` and `Constrained`. n_iter:
    applications of the EM map that led to params. status: a `Status`, as an integer.
    posterior_entropy: −Σ_i w_i Σ_k r_ik log r_ik at params, in nats; None where there is no
    `log_joint` (n, k), and of fits outside `jit`, `vmap` and `grad`, of which `Result.entropy`
    computes it when it is called. With restarts every field has a leading axis.
    """

    params: Any
    log_likelihood: Any
    objective: Any
    n_iter: Any
    status: Any
    posterior_entropy: Any = field(default=None, kw_only=True)

    @property
    def converged(self):
        """Whether status is CONVERGED."""
        return self.status == int(Status.CONVERGED)


@pytree(eq=False)
class Ended(Fit):
    """A `Fit` with q, which the gradient through it needs where q is not the exact posterior."""

    q: Any

    @property
    def fit(self):
        return Fit(**{name: value for name, value in vars(self).items() if name != "q"})


@dataclass(frozen=True, eq=False)
class Problem:
    """One data set, its model and its method in the units of the arithmetic. Built once a fit.

    It is a pytree, so that programs can take and return it. Its models and its method may be of a
    user's own classes; they are split into arrays and structure when it is flattened.

    model: the given model, in the units of the data. climbed: the same model in the units of the
    arithmetic. rule: the start rule, or None. data: in the units of the arithmetic, or `Prepared`;
    None where they are the given data and are passed separately. weights (n,). total: Σ w. units,
    log_volume: as in `Standardized`. status: the status before the first step.
    """

    plan: Plan
    model: Any
    climbed: Any
    method: Any
    rule: Any
    data: Any
    weights: Any
    units: Any
    log_volume: Any
    total: Any
    status: Any

    @classmethod
    def of(cls, plan: Plan, numeric, x, weights, absent: bool = False):
        """The problem of raw data. absent: whether units of weight 0 keep their values, which the
        gradient by their weight needs."""
        dtype = float_dtype(x)
        numeric = [in_dtype(leaf, dtype) for leaf in numeric]
        model, method, rule = merge(numeric, plan.structure)
        if plan.clean:
            status = jnp.asarray(Status.RUNNING, jnp.int32)
            weights = _ones(jax.tree.leaves(x)[0].shape[0], dtype)
        else:
            x, weights, status = sanitize(model, x, weights, absent)
        if plan.batched and model.informed is not None:
            model = model.informed(x, weights)
        standard = standardized(model, x, weights)
        volume = jnp.asarray(standard.log_volume)
        units, total = standard.units, weights.sum()
        arrays = (weights, units, volume, total, status)
        return cls(plan, model, standard.model, method, rule, standard.data, *arrays)

    def prepared(self, keep: bool = False):
        """The same problem with `Prepared` data, for methods that take them; see `prepared`."""
        if not self.method.prepares:
            return self
        return replace(self, data=prepared(self.climbed, self.data, keep))

    def without(self, x):
        """The same problem without its data where these are x, so that they are not copied."""
        return replace(self, data=None) if self.data is x else self

    def on(self, x):
        """The same problem with the data x (B, …) where it is `without` them."""
        return replace(self, data=x) if self.data is None else self

    @property
    def volume(self):
        """Σ w·log_volume."""
        return total_of(self.weights, self.total, self.log_volume)

    def inward(self, params):
        """Params in the units of the data, converted to those of the arithmetic."""
        return inward(self.model, self.units, params)

    def outward(self, params):
        """Params in the units of the arithmetic, converted to those of the data."""
        return outward(self.model, self.units, params)

    def initial_state(self, start):
        """The state before the first evaluation. start: a key, or given params."""
        params, status = self.initial_params(start), self.status
        if self.plan.given:
            is_wrong = (status == Status.RUNNING) & ~self._are_legal(start)
            status = jnp.where(is_wrong, Status.NONFINITE, status)
        memory = self.method.start(self.climbed, params, self.plain_data, self.weights)
        return loop.initial_state(params, self.weights.dtype, status, memory)

    def _are_legal(self, params):
        """Whether given params, in the units of the data, lie in the spaces of their leaves."""
        spaces = self.model.spaces(params)
        held = [s.holds(p) for s, p in zip(*map(jax.tree.leaves, (spaces, params)), strict=True)]
        return jnp.all(jnp.stack(held))

    def initial_params(self, start):
        """The params at the start, in the units of the arithmetic. start: a key, or given
        params."""
        if self.plan.given:
            params = self.inward(start)
        elif self.rule is None:
            params = self.climbed.init(start, self.plain_data, self.weights)
        else:
            params = self.rule.params(self.climbed, start, self.plain_data, self.weights)
        return jax.tree.map(lambda a: jnp.asarray(a, jnp.asarray(a).dtype), params)

    @property
    def plain_data(self):
        """The data themselves where they are `Prepared`."""
        return unprepared(self.data)

    def evaluate(self, state):
        """An `Evaluation` by the method, at the proposal of a `loop.State`."""
        stopping, options = self.plan.stopping, {}
        if stopping.accelerates:
            options = {"is_slow": stopping.is_slow(state.memory), "total": self.total}
        args = (self.climbed, state.proposal, self.data, self.weights, state.method)
        return self.method.evaluate(*args, **options)

    def map(self, params):
        """One step of the method's map, without its accelerator."""
        return self.method.map(self.climbed, params, self.plain_data, self.weights)

    def measured(self, params):
        """(Σ w·log p(x | params) in the units of the data, the entropy of the responsibilities),
        each None where it is not needed or not defined.

        The first where log_volume is (n,), by whatever method: it is subtracted unit by unit, so
        that large terms cancel before they are summed; and where the data are in their own units,
        the given model scores them, which has no volume. The second for a finite latent variable.
        """
        model, log_volume = self.climbed, self.log_volume
        if not jax.tree.leaves(self.units):
            model, log_volume = self.model, jnp.zeros_like(log_volume)
        by_unit = bool(self.log_volume.ndim)
        is_finite = has(model, FiniteLatents) and not has(model, LocalPosterior)
        is_finite = is_finite and not defines(model, "latents") and self.plan.entropy
        if not by_unit and not is_finite:
            return None, None

        def expect(params, x, weights):
            data, volume = x
            q, evidence = model.posterior(params, data)
            each = safe_entr(responsibilities_of(q)).sum(-1) if is_finite else jnp.zeros(())
            entropy = jnp.where(weights > 0, weights * each, 0).sum()
            return entropy, evidence - volume if by_unit else jnp.zeros_like(weights)

        volume = log_volume if by_unit else jnp.zeros_like(self.weights)
        x, size = (self.plain_data, volume), chunk_rows(model, self.plain_data)
        sums = in_chunks(expect, size, params, x, self.weights)
        return sums.evidence if by_unit else None, sums.statistics if is_finite else None


def _flatten(problem: Problem):
    models = (problem.model, problem.climbed, problem.method, problem.rule)
    numeric, structure = split(models)
    return (numeric, *(getattr(problem, name) for name in ARRAYS)), (problem.plan, structure)


def _unflatten(static, children) -> Problem:
    plan, structure = static
    numeric, *arrays = children
    return Problem(plan, *merge(numeric, structure), *arrays)


ARRAYS = ("data", "weights", "units", "log_volume", "total", "status")
jax.tree_util.register_pytree_node(Problem, _flatten, _unflatten)


def sanitize(model, x, weights, absent: bool = False):
    """Data and weights in which every unit is valid, and a status.

    A unit of weight 0, without an observed value or outside the model's support gets weight 0 and
    the values of a unit that is none of these, by default the first, so that its own values, NaN
    included, enter no sum. absent: whether valid units of weight 0 keep their values.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    valid = jnp.ones(n, bool)
    for mask in jax.tree.leaves(model.domain.valid(x)):
        valid &= jnp.all(mask.reshape(n, -1), axis=1)
    if weights is None:
        weights = jnp.ones(n, float_dtype(x))
    observed = model.domain.is_observed(x)
    if observed is not None:
        weights = jnp.where(observed, weights, jnp.where(weights > 0, 0, weights))
    present = weights > 0
    is_wrong = jnp.any((present & ~valid) | ~((weights >= 0) & jnp.isfinite(weights)))
    total, (least, most) = jnp.where(present, weights, 0).sum(), total_range(weights.dtype)
    is_wrong |= (total > 0) & ~((total > least) & (total < most))
    status = jnp.where(is_wrong, Status.BAD_INPUT, Status.RUNNING)
    status = jnp.where(jnp.any(present) | is_wrong, status, Status.EMPTY)

    is_usable = (weights >= 0 if absent else present) & valid & jnp.isfinite(weights)
    any_usable = jnp.any(is_usable)
    substitute = model.domain.substitute(x, is_usable)

    def clean(leaf):
        replacement = jnp.where(any_usable, rows.unit(leaf, substitute), jnp.ones((), leaf.dtype))
        return jnp.where(is_usable.reshape((n,) + (1,) * (leaf.ndim - 1)), leaf, replacement)

    return (
        over_units(clean, x),
        jnp.where(is_usable | ~any_usable, jnp.where(any_usable, weights, 1), 0),
        status,
    )


def finish(problem: Problem, state) -> Fit:
    """The `Fit` of a climb that has ended, in the units of the data."""
    model, climbed = problem.model, problem.climbed
    inner, objective, n_iter = loop.last_accepted(state)
    measured = problem.method.measures(n_iter)
    if measured is not True:
        objective = jax.lax.cond(measured, lambda: objective, lambda: problem.map(inner).objective)
    params = problem.outward(inner)
    # DEGENERATE is decided at the last params, also where they were refused and the params
    # before them are returned; and after a change of units, since a variance may underflow in
    # those of the data.
    last_params = problem.inward(problem.outward(state.params))
    degenerate = jnp.any(jnp.asarray(climbed.degenerate(last_params)))
    degenerate &= jnp.isfinite(loop.zero_or_nan(last_params))
    status = jnp.where(degenerate, Status.DEGENERATE, state.status)
    status = jnp.where(jnp.isfinite(loop.zero_or_nan(params)), status, Status.NONFINITE)
    has_begun = (state.status < Status.DEGENERATE) & (state.n_iter >= 0)
    status = jnp.where(has_begun, status, state.status)
    evaluated = objective - climbed.log_prior(inner)  # of the data in the units of the arithmetic
    evidence = problem.method.log_likelihood(climbed, inner, problem.plain_data, problem.weights)
    above = 0.0 if evidence is None else evaluated - evidence
    evidence = evaluated if evidence is None else evidence
    by_unit, entropy = problem.measured(inner)
    log_likelihood = evidence - problem.volume if by_unit is None else by_unit
    is_wrong = (status == Status.CONVERGED) & ~jnp.isfinite(log_likelihood)
    status = jnp.where(is_wrong, Status.NONFINITE, status)
    evaluated = (log_likelihood + above).astype(objective.dtype)
    log_likelihood = log_likelihood.astype(objective.dtype)
    fit = Fit(
        params=jax.tree.map(_clip, params),
        log_likelihood=log_likelihood,
        objective=(evaluated + model.log_prior(params)).astype(objective.dtype),
        n_iter=n_iter,
        status=status.astype(jnp.int32),
        posterior_entropy=entropy,
    )
    stationary_map = problem.plan.stationary_map
    return fit if stationary_map is None else Ended(**vars(fit), q=stationary_map.q_of(state))


def _ones(n, dtype):
    """Weights of 1. XLA folds constants, which is of use for small n and takes seconds of compile
    time for large n; a barrier prevents it."""
    ones = jnp.ones(n, dtype)
    return ones if n <= tuning.CONSTANT_UNITS else jax.lax.optimization_barrier(ones)


def _clip(leaf):
    """A leaf with overflown entries at the largest finite number of their sign."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.clip(leaf, jnp.finfo(leaf.dtype).min, jnp.finfo(leaf.dtype).max)


def rank(every: Fit):
    """The index of the best restart: fits that did not fail first, then by objective, then
    converged ones; NaN never wins."""
    tiers = jnp.asarray([5, 0, 0, 1, 3, 2, 4, 4])
    objective = jnp.where(jnp.isnan(every.objective), -jnp.inf, every.objective)
    tier = tiers[every.status]
    is_best_tier = tier == tier.min()
    top = jnp.where(is_best_tier, objective, -jnp.inf).max()
    tied = is_best_tier & (objective >= top)
    converged = tied & (every.status == Status.CONVERGED)
    return jnp.argmax(jnp.where(jnp.any(converged), converged, tied))
