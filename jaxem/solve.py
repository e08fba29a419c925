"""From data and starts to finished fits: one climb, or many through the lanes, under any transform.

Many climbs have one canonical form: data of B data sets, and starts (B, R), R restarts of each. A
batch is R = 1, restarts are B = 1, and `jax.vmap` of a fit arrives here through a batching rule
that folds the new axis into B, or into R where the data are shared.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxem import lanes, loop
from jaxem.check import check_step
from jaxem.pytree import Structure, float_dtype, merge, pytree, split
from jaxem.status import Status

FOLDED = 4096


class Spec(NamedTuple):
    """What a program is compiled for. `structure` is that of (model, method, start rule)."""

    structure: Structure
    criterion: str
    clean: bool  # every unit is known to be valid, and weights are None
    given: bool  # starts are params, not keys


@pytree(eq=False)
class Fit:
    """One climb: where it ended and how.

    params: the best iterate. log_likelihood: Σ w·log p(x | params) at exactly those params.
    objective: log_likelihood + log p(params). n_iter: applications of the EM map that led to
    params. status: a `Status`, as an integer. With restarts every field has a leading axis.
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


class Problem:
    """One data set in safe units, with the model that is climbed there."""

    def __init__(self, spec: Spec, numeric, x, weights):
        dtype = float_dtype(x)
        numeric = [in_dtype(leaf, dtype) for leaf in numeric]
        self.model, self.method, self.rule = merge(numeric, spec.structure)
        self.spec = spec
        if spec.clean:
            self.status = jnp.asarray(Status.RUNNING, jnp.int32)
            self.weights = _ones(jax.tree.leaves(x)[0].shape[0], dtype)
        else:
            x, self.weights, self.status = sanitize(self.model, x, weights)
        self.view = self.model.view(x, self.weights)
        self.total = self.weights.sum()

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

    def evaluate(self, params):
        return self.method.evaluate(self.view.model, params, self.view.data, self.weights)


def single(spec: Spec, numeric, x, weights, start, tol, max_iter) -> Fit:
    """One climb, by the plain loop."""
    problem = Problem(spec, numeric, x, weights)
    first = problem.begin(start)
    state = loop.start(first, problem.weights.dtype, problem.status)
    limits = {"tol": tol * problem.total, "max_iter": max_iter, "criterion": spec.criterion}
    try:
        state = loop.run(state, problem.evaluate, **limits)
    except TypeError:
        check_step(problem.view.model, first, problem.evaluate)
        raise
    return finish(problem, state)


def many(spec: Spec, data, starts, limits) -> Fit:
    """All climbs of the canonical form: data (B, …), starts (B, R, …), limits two arrays (B, R)."""
    sets, restarts = limits[0].shape
    if sets == restarts == 1:
        one = jax.tree.map(lambda a: a[0], data)
        rest = jax.tree.map(lambda a: a[0, 0], (starts, *limits))
        return jax.tree.map(lambda a: a[None, None], single(spec, *one, *rest))
    structure = method = None

    def prepare(data, starts):
        nonlocal structure, method
        problem = Problem(spec, *data)
        method = problem.method
        numeric, structure = split(problem.view.model)
        numeric = [in_dtype(leaf, problem.weights.dtype) for leaf in numeric]
        block = max(1, width // min(sets, width))
        first = jax.lax.map(problem.begin, starts, batch_size=min(restarts, block))
        states = jax.vmap(lambda p: loop.start(p, problem.weights.dtype, problem.status))(first)
        return (numeric, problem.view.data, problem.weights), states, problem.total

    def evaluate(work, params):
        numeric, x, weights = work
        return method.evaluate(merge(numeric, structure), params, x, weights)

    leaf = jax.tree.leaves(data[1])[0]
    k = getattr(merge(jax.tree.map(lambda a: a[0], data[0]), spec.structure)[0], "k", 1)
    floats = k * leaf[0].size
    width = lanes.width_for(sets * restarts, floats, 4, jax.default_backend())
    work, queue, total = over_sets(prepare, (data, starts), width)
    queue = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), queue)
    tol, max_iter = limits
    ends = ((tol * total[:, None]).ravel(), max_iter.ravel())
    queue = lanes.run(
        queue, (work, ends), restarts, evaluate, criterion=spec.criterion, width=width
    )
    queue = jax.tree.map(lambda a: a.reshape(sets, restarts, *a.shape[1:]), queue)

    def end(data, states):
        problem = Problem(spec, *data)
        return jax.vmap(lambda state: finish(problem, state))(states)

    return over_sets(end, (data, queue), width)


def over_sets(function, args, width):
    """`function` of every data set, a block of `width` at a time."""
    sets = jax.tree.leaves(args)[0].shape[0]
    if sets == 1:
        return jax.tree.map(
            lambda a: jnp.asarray(a)[None], function(*jax.tree.map(lambda a: a[0], args))
        )
    return jax.lax.map(lambda each: function(*each), args, batch_size=min(sets, width))


def transformable(spec: Spec):
    """`many` with a batching rule: a vmapped fit goes through the lanes as a batch does."""

    @custom_vmap
    def climb(data, starts, limits):
        return many(spec, data, starts, limits)

    @climb.def_vmap
    def rule(size, batched, data, starts, limits):
        def spread(leaf, is_batched):
            return leaf if is_batched else jnp.broadcast_to(leaf[None], (size, *leaf.shape))

        sets, restarts = limits[0].shape[1:] if batched[2][0] else limits[0].shape
        starts, limits = jax.tree.map(spread, (starts, limits), (batched[1], batched[2]))
        if any(jax.tree.leaves(batched[0])):
            data = jax.tree.map(spread, data, batched[0])
            args = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (data, starts, limits))
            out = climb(*args)
            out = jax.tree.map(lambda a: a.reshape(size, sets, *a.shape[1:]), out)
        else:
            starts, limits = jax.tree.map(
                lambda a: jnp.moveaxis(a, 0, 1).reshape(sets, -1, *a.shape[3:]), (starts, limits)
            )
            out = climb(data, starts, limits)
            out = jax.tree.map(
                lambda a: jnp.moveaxis(a.reshape(sets, size, restarts, *a.shape[2:]), 1, 0), out
            )
        return out, jax.tree.map(lambda _: True, out)

    return climb


def in_dtype(leaf, dtype):
    """A hyperparameter in the precision of the data."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, dtype) if floating else leaf


def sanitize(model, x, weights):
    """Data and weights in which every unit is present and valid or has weight 0, and a status.

    A unit that is absent or outside the model's support becomes a copy of the first that is not, so
    that nothing it holds, NaN included, can reach a sum.
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

    use = present & valid & jnp.isfinite(weights)
    some = jnp.any(use)
    first = jnp.argmax(use)

    def clean(leaf):
        stand_in = jnp.where(some, leaf[first], jnp.ones((), leaf.dtype))
        return jnp.where(use.reshape((n,) + (1,) * (leaf.ndim - 1)), leaf, stand_in)

    return jax.tree.map(clean, x), jnp.where(use | ~some, jnp.where(some, weights, 1), 0), status


def finish(problem: Problem, state) -> Fit:
    """The state of a finished loop in the units of the data."""
    model, view, total = problem.model, problem.view, problem.total
    inner, objective, n_iter = loop.settled(state)
    params = view.outward(inner)
    # A step refused because it collapsed is a collapse, although the params kept are sound; and so
    # is a variance that vanishes in the units of the data.
    last = view.inward(view.outward(state.params))
    degenerate = jnp.any(jnp.asarray(view.model.degenerate(last)))
    degenerate &= jnp.isfinite(loop.blemish(last))
    status = jnp.where(degenerate, Status.DEGENERATE, state.status)
    status = jnp.where(jnp.isfinite(loop.blemish(params)), status, Status.NONFINITE)
    status = jnp.where(state.status < Status.DEGENERATE, status, state.status)
    log_likelihood = objective - view.model.log_prior(inner) - total * view.log_volume
    log_likelihood = log_likelihood.astype(objective.dtype)
    return Fit(
        params=jax.tree.map(_clip, params),
        log_likelihood=log_likelihood,
        objective=(log_likelihood + model.log_prior(params)).astype(objective.dtype),
        n_iter=n_iter,
        status=status.astype(jnp.int32),
    )


def _ones(n, dtype):
    """Weights of 1. XLA folds constants: welcome for small n, seconds of compile time for large."""
    ones = jnp.ones(n, dtype)
    return ones if n <= FOLDED else jax.lax.optimization_barrier(ones)


def _clip(leaf):
    """The nearest finite value, for params that overflow in the units of the data."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    largest = jnp.finfo(leaf.dtype).max
    return jnp.clip(leaf, -largest, largest)


def rank(every: Fit):
    """The index of the best restart: sound ones first, then by objective; NaN never wins."""
    tiers = jnp.asarray([5, 0, 0, 1, 3, 2, 4, 4])
    objective = jnp.where(jnp.isnan(every.objective), -jnp.inf, every.objective)
    tier = tiers[every.status]
    best = tier == tier.min()
    top = jnp.where(best, objective, -jnp.inf).max()
    return jnp.argmax(best & (objective >= top))
