"""Mixtures that differ in k alone, fitted in one compiled program.

A mixture of k components is padded to a larger number with absent components, of weight 0, which
change no density and no statistic. Compilation takes about a second for every k. With a few absent
components the fit of a small problem takes hardly longer.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_weights
from jaxem.data.batch import Batch, as_blocks, check_data_sets
from jaxem.data.check_starts import shapes_of_params
from jaxem.families.product import Product
from jaxem.fit import fit
from jaxem.methods.em import EM
from jaxem.models.mixing import MixtureParams
from jaxem.models.mixture import Mixture
from jaxem.numerics import tuning
from jaxem.numerics.tree import float_dtype, pytree, split
from jaxem.protocol.model import Model, name_of
from jaxem.protocol.spaces import REAL
from jaxem.protocol.starts import Start
from jaxem.results.result import Result
from jaxem.solver.axes import keys_of_restarts, typed
from jaxem.solver.problem import Fit, Plan, Problem, rank
from jaxem.solver.programs import Program, run_once
from jaxem.solver.stopping import Aitken


@pytree(eq=False)
class PaddedParams:
    """Params of a padded mixture: only the first k components are present. k is floating-point, as
    accelerators take coordinates, in which it never moves."""

    weights: Any
    components: Any
    k: Any

    @property
    def mixture(self):
        return MixtureParams(self.weights, self.components)


@pytree(static=("banked",))
class Padded(Model):
    """A mixture of at most `mixture.k` components. Absent ones are copies of the first.

    banked: for every leaf of the components' params, whether it has an axis of components.
    """

    mixture: Mixture
    banked: tuple[bool, ...]

    @property
    def k(self):
        return self.mixture.k

    @property
    def domain(self):
        return self.mixture.domain

    def init(self, key, x, weights):
        params = self.mixture.init(key, x, weights)
        return PaddedParams(
            params.weights, params.components, jnp.asarray(self.k, params.weights.dtype)
        )

    def log_joint(self, params, x):
        return self.mixture.log_joint(params.mixture, x)

    def posterior(self, params, x):
        return self.mixture.posterior(params.mixture, x)

    def statistics(self, params, x, q, weights):
        return self.mixture.statistics(params.mixture, x, q, weights)

    def _size_of_terms(self, params, stats):
        return self.mixture._size_of_terms(params.mixture, stats)

    def maximize(self, params, stats):
        updated = self.mixture.maximize(params.mixture, stats)
        components = completed(self.banked, updated.components, self._present(params))
        return PaddedParams(updated.weights, components, params.k)

    def spaces(self, params):
        inner = self.mixture.spaces(params.mixture)
        return PaddedParams(inner.weights, inner.components, REAL)

    def whitened(self, params, step):
        inner = self.mixture.whitened(params.mixture, step.mixture)
        return PaddedParams(inner.weights, inner.components, step.k)

    def degenerate(self, params):
        vanished = params.weights < jnp.finfo(params.weights.dtype).eps
        floored = self.mixture.components.degenerate(params.components)
        return jnp.any(floored) | jnp.any(vanished & self._present(params))

    def standardize(self, x, weights):
        inner = self.mixture.standardize(x, weights)
        return inner._replace(model=Padded(inner.model, self.banked))

    def inward(self, units, params):
        inner = self.mixture.inward(units, params.mixture)
        return PaddedParams(inner.weights, inner.components, params.k)

    def outward(self, units, params):
        inner = self.mixture.outward(units, params.mixture)
        return PaddedParams(inner.weights, inner.components, params.k)

    def _present(self, params):
        return jnp.arange(self.k) < params.k


def over(banked, change, components):
    """The tree with `change` applied to the leaves that have an axis of components."""
    leaves, tree = jax.tree.flatten(components)
    pairs = zip(leaves, banked, strict=True)
    return jax.tree.unflatten(tree, [change(leaf) if has else leaf for leaf, has in pairs])


def completed(banked, components, present):
    """The components' params with the first ones in place of those that are not present (k,)."""

    def complete(leaf):
        return jnp.where(present.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, leaf[:1])

    return over(banked, complete, components)


def groups(models, x, restarts, method) -> list[list[int]]:
    """Groups of indices of the models that are faster to fit together; other models are in no
    group.

    A group has mixtures of one bank of jaxem without priors, so that absent components are known to
    change nothing, and few enough units that compilation takes longer than the fits.
    """
    by_bank: dict[Any, list[int]] = {}
    is_plain = isinstance(method, EM) and method.plain and method.always is None
    size = _size(x)
    if not (is_plain and isinstance(restarts, int)) or size is None:
        return []
    units, features, programs = size
    for i, model in enumerate(models):
        is_plain = type(model) is Mixture and model.prior is None and model.gate is None
        is_plain = is_plain and model.noise is None  # its params are others
        if is_plain and _known(model.components):
            numbers, structure = split(model.components)
            values = tuple((np.asarray(v).dtype.str, np.asarray(v).tolist()) for v in numbers)
            by_bank.setdefault((structure, repr(values)), []).append(i)
    work = units * features**2 * restarts

    def is_faster(group):
        sizes = [models[i].k for i in group]
        absent = len(sizes) * max(sizes) - sum(sizes)
        return 0 < work * absent <= tuning.PADDED_WORK * (len(set(sizes)) - 1) * programs

    return [group for group in by_bank.values() if is_faster(group)]


def _size(x):
    """(units, features, programs of a fit) of an array (n, d) or a `Batch` of such; None for other
    data. A batch has one program for each padded length."""
    if not isinstance(x, Batch):
        return (*x.shape, 1) if hasattr(x, "ndim") and x.ndim == 2 else None
    blocks = as_blocks(x, None)
    if not all(hasattr(block.x, "ndim") and block.x.ndim == 3 for block in blocks):
        return None
    units = sum(block.x.shape[0] * block.x.shape[1] for block in blocks)
    return units, blocks[0].x.shape[2], len(blocks)


def _known(bank) -> bool:
    """Whether a bank is one of jaxem's families, without a prior."""
    is_builtin = type(bank).__module__.startswith("jaxem.families.")
    if isinstance(bank, Product):
        return all(map(_known, bank.families))
    options = vars(bank)
    return is_builtin and "prior" in options and options["prior"] is None


def fit_padded(models, x, key, init, *, weights, restarts, method, **limits) -> list[Result]:
    """`fit` of every model from the same key, in one call; `init` is a random start rule or
    None."""
    if isinstance(x, Batch):
        limits |= {"weights": weights, "restarts": restarts, "method": method}
        return _fit_padded_batch(models, x, key, init, **limits)
    n, dtype = x.shape[0], float_dtype(x)
    smallest, largest = (pick(models, key=lambda model: model.k) for pick in (min, max))
    largest.domain.check(x, name_of(largest))
    if n < largest.k:
        raise ValueError(f"data have {n} units and a model {largest.k} components: use k <= {n}")
    weights = as_weights(weights, n, dtype)
    banked = _banked(smallest, largest, x, dtype)
    parts = [split((model, method, init)) for model in models]
    starts = BEGIN(
        "tiny" if tuning.platform() == "cpu" else "full",  # it is called once
        [numeric for numeric, _ in parts],
        x,
        weights,
        key,
        plans=tuple(Plan(structure, Aitken(), False, False) for _, structure in parts),
        sizes=tuple(model.k for model in models),
        banked=banked,
        restarts=restarts,
    )
    options = {"weights": weights, "method": method, **limits}
    starts = jax.device_get(starts)
    # Where a start is not finite, `fit` reports the cause.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(starts)):
        return [fit(m, x, key=key, init=init, restarts=restarts, **options) for m in models]
    with run_once():
        together = fit(
            Padded(largest, banked), x, init=starts, restarts=restarts * len(models), **options
        )
    every = jax.tree.map(
        lambda a: a.reshape(len(models), restarts, *a.shape[1:]), jax.device_get(together.restarts)
    )
    best = jax.device_get(_best(every.objective, every.status))
    return [
        _alone(model, jax.tree.map(lambda a, i=i: a[i], every), best[i], banked, together)
        for i, model in enumerate(models)
    ]


def _fit_padded_batch(models, batch, key, init, *, weights, restarts, method, **limits):
    """`fit_padded` of every data set of a batch: the results of batches, one a model."""
    blocks = as_blocks(batch, weights)
    smallest, largest = (pick(models, key=lambda model: model.k) for pick in (min, max))
    options = {"weights": weights, "method": method, **limits}

    def one_by_one():
        by_model = {}
        for i in sorted(range(len(models)), key=lambda i: -models[i].k):  # the first to be refused
            by_model[i] = fit(models[i], batch, key=key, init=init, restarts=restarts, **options)
        return [by_model[i] for i in range(len(models))]

    if min(block.sizes.min() for block in blocks) < largest.k:
        return one_by_one()
    shapes = check_data_sets(batch, blocks, largest.domain, name_of(largest))
    banked = _banked(smallest, largest, shapes, float_dtype(shapes))
    parts = [split((model, method, init)) for model in models]
    starts = [
        BEGIN_BATCH(
            "tiny" if tuning.platform() == "cpu" else "full",
            [numeric for numeric, _ in parts],
            block.x,
            block.weights,
            (key, block.index),
            plans=tuple(Plan(structure, Aitken(), False, False) for _, structure in parts),
            sizes=tuple(model.k for model in models),
            banked=banked,
            restarts=restarts,
        )
        for block in blocks
    ]
    order = np.argsort(np.concatenate([block.index for block in blocks]))
    starts = jax.tree.map(lambda *a: np.concatenate(a)[order], *jax.device_get(starts))
    # Where a start is not finite, `fit` reports the cause.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(starts)):
        return one_by_one()
    together = fit(
        Padded(largest, banked), batch, init=starts, restarts=restarts * len(models), **options
    )
    every = jax.tree.map(
        lambda a: np.moveaxis(a.reshape(len(order), len(models), restarts, *a.shape[2:]), 1, 0),
        jax.device_get(together.restarts),
    )
    best = jax.device_get(jax.vmap(_best)(every.objective, every.status))
    return [
        _alone(model, jax.tree.map(lambda a, i=i: a[i], every), best[i], banked, together)
        for i, model in enumerate(models)
    ]


def _banked(smallest, largest, x, dtype) -> tuple[bool, ...]:
    """For every leaf of the components' params, whether it has an axis of components."""
    small, large = (
        jax.tree.leaves(shapes_of_params(model, x, dtype).components)
        for model in (smallest, largest)
    )
    return tuple(a.shape != b.shape for a, b in zip(small, large, strict=True))


def _begin(numeric, x, weights, key, *, plans, sizes, banked, restarts):
    """The starts of all models: `PaddedParams` with a leading axis of models × restarts."""
    keys = keys_of_restarts(key, np.arange(restarts))
    problems = [Problem.of(plan, one, x, weights) for one, plan in zip(numeric, plans, strict=True)]
    largest, most = problems[int(np.argmax(sizes))], max(sizes)
    rule = largest.rule or Start.default(largest.climbed, largest.plain_data)
    if type(rule).params is Start.params:
        start = _from_responsibilities(problems, rule, largest, most, keys)
    else:
        start = _one_by_one(problems, banked, most, keys)
    size = np.repeat(sizes, restarts)
    present = np.arange(most) < size[:, None]
    components = jax.vmap(partial(completed, banked))(start.components, present)
    return PaddedParams(start.weights, components, jnp.asarray(size, start.weights.dtype))


def _from_responsibilities(problems, rule, largest, most, keys):
    """The starts of `_begin` by one M-step of the largest model, whose responsibilities are 0 where
    a component is absent: a program with an M-step for every model takes long to compile."""
    drawn = []
    for problem in problems:
        model, x, weights = problem.climbed, problem.plain_data, problem.weights
        shares = jax.vmap(lambda key, args=(model, x, weights): rule.drawn(args[0], key, *args[1:]))
        responsibilities = shares(keys)[0]  # (restarts, n, k)
        absent = most - responsibilities.shape[2]
        drawn.append(jnp.pad(responsibilities, ((0, 0), (0, 0), (0, absent))))

    def started(key, responsibilities):
        args = (key, largest.plain_data, responsibilities, largest.weights)
        return largest.outward(rule.started(largest.climbed, *args))

    return jax.vmap(started)(jnp.concatenate([keys] * len(problems)), jnp.concatenate(drawn))


def _one_by_one(problems, banked, most, keys):
    """The starts of `_begin` by the rule of every model."""
    out = []
    for problem in problems:
        start = jax.vmap(lambda key, p=problem: p.outward(p.initial_params(key)))(keys)

        def pad(leaf, absent=most - start.weights.shape[1]):
            return jnp.pad(leaf, ((0, 0), (0, absent), *[(0, 0)] * (leaf.ndim - 2)))

        out.append(MixtureParams(pad(start.weights), over(banked, pad, start.components)))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *out)


def _begin_batch(numeric, x, weights, start, **static):
    """The starts of all models for every data set of a block: those of `fit` with a `Batch`."""
    key, index = start

    def of_one(x, weights, i):
        return _begin(numeric, x, weights, jax.random.fold_in(typed(key), i), **static)

    return jax.vmap(of_one)(x, weights, index)


BEGIN = Program(_begin, "plans", "sizes", "banked", "restarts")
BEGIN_BATCH = Program(_begin_batch, "plans", "sizes", "banked", "restarts")


@jax.jit
def _best(objective, status):
    """The index of every model's best restart, from (models, restarts) arrays."""
    return jax.vmap(lambda *pair: rank(Fit(None, None, pair[0], None, pair[1])))(objective, status)


def _alone(model, every, best, banked, together) -> Result:
    """The result of one model: its restarts, with the params of the present components. Of a batch,
    every field has a leading axis of data sets."""
    padded, batched = every.params, together.shares_model
    present = (*(slice(None),) * (1 + batched), slice(model.k))
    params = MixtureParams(
        padded.weights[present], over(banked, lambda leaf: leaf[present], padded.components)
    )
    every = dataclasses.replace(every, params=params)
    chosen = (np.arange(len(best)), best) if batched else best
    chosen = jax.tree.map(lambda a: np.asarray(a[chosen]), every)
    chosen, every = (
        dataclasses.replace(fits, params=jax.tree.map(jnp.asarray, fits.params))
        for fits in (chosen, every)
    )
    result = Result.of(
        model,
        chosen,
        every,
        together.data_shape,
        total_weight=together.total_weight,
        n_units=together.n_units,
        shares_model=batched,
    )
    return result.like(together)
