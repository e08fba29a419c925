"""Restricted models: some entries of the params are fixed, frozen or tied.

A path names entries of params: the field names from the root to a leaf, joined by dots, and an
index for a part of the leaf: "weights", "components.mean", "components.mean[0]",
"components.mean[:, 1]". A path to a subtree names all its leaves: "components[0]" is the whole
first component.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient

from jaxem.numerics.tree import is_traced, pytree
from jaxem.protocol.capabilities import Bound, FiniteLatents, defines, has
from jaxem.protocol.derived import check_params
from jaxem.protocol.held import averaged
from jaxem.protocol.layout import Layout
from jaxem.protocol.model import Model
from jaxem.protocol.restriction import restricted
from jaxem.protocol.spaces import Coordinates
from jaxem.protocol.units import inward, outward, standardized
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopt import adopt


class Plan(NamedTuple):
    """The restrictions of params of one shape, entry by entry of the flat vector of params.

    given: which entries are fixed at a value. frozen: which entries keep their value of the start.
    source: for given entries, the index among all given values. group: the index of the first of
    the entries to which an entry is tied, its own index where it is free.
    """

    layout: Layout
    given: np.ndarray
    frozen: np.ndarray
    source: np.ndarray
    group: np.ndarray

    @property
    def held(self):
        return self.given | self.frozen


@pytree(static=("tied",), eq=False)
class Restricted(Wrapper):
    """A model with some of its params fixed, frozen or tied: a smaller model of the same data.

    Its params are a tree like those of the model, with the fixed values bit for bit; given starts
    are changed to satisfy the restrictions. EM maximises the same objective over the free entries,
    with the model's M-step where it has a closed form under the restrictions, else by `Gradient()`.
    `n_parameters`, BIC and AIC count free entries. The gradient through a fit includes the
    derivatives by the fixed values.

    The M-step has a closed form for: any restriction of weights; any restriction of whole
    components; entries of rates and probabilities; means of a normal (whole means where it is full
    or tied), with moments about the fixed means; covariances fixed or shared by some components;
    the shape of a gamma.

    Args:
      model: the model to restrict.
      fixed: {path: value}; None in place of a value freezes the entries at their start, as does a
        path or a list of paths without values. Values broadcast.
      tied: a sequence of ties. A tuple of paths: the entries that they name are equal, such as
        ("components.rate[0]", "components.rate[1]"). One path: entries are equal along its first
        axis, so that "components.covariance" is one covariance for all.

    `Restricted(Mixture(Normal(), k=2), fixed={"weights": [0.5, 0.5]})` is a mixture of equal
    shares.

    Raises ValueError, when it is fitted, for a path that names nothing, a value of another shape or
    outside its space, an entry both fixed and tied, a part of a covariance matrix, and ties that a
    change of units would break; TypeError for a model or paths of another type. Functions that are
    not listed are those of the model.
    """

    model: Any
    fixed: Any = None
    tied: Any = ()

    def __post_init__(self):
        if isinstance(self.model, type):
            raise TypeError(f"model must be an instance, got the class {self.model.__name__}")
        if not isinstance(self.model, Model) and not defines(self.model, "init"):
            raise TypeError(f"model must be a model, got {self.model!r:.60}")
        for name in ("fixed", "tied"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, Mapping, list, tuple)):
                raise TypeError(
                    f"{name} must be a path such as 'components.mean', or a sequence of paths"
                    f"{', or a dict {path: value}' * (name == 'fixed')}, got {value!r:.60}"
                )
        fixed = [self.fixed] if isinstance(self.fixed, str) else self.fixed or {}
        fixed = dict(fixed) if isinstance(fixed, Mapping) else dict.fromkeys(fixed)
        tied = (self.tied,) if isinstance(self.tied, str) else self.tied
        fixed = {path: None if v is None else _values(v) for path, v in fixed.items()}
        tied = tuple(tie if isinstance(tie, str) else tuple(tie) for tie in tied)
        model = adopt(self.model)
        if isinstance(model, Restricted):
            known, tied, model = model.fixed, model.tied + tied, model.model
            fixed = known | {p: v for p, v in fixed.items() if v is not None or p not in known}
        for name, value in (("model", model), ("fixed", fixed), ("tied", tied)):
            object.__setattr__(self, name, value)

    def __eq__(self, other):
        if not isinstance(other, Restricted) or self.fixed.keys() != other.fixed.keys():
            return False
        values = ((self.fixed[p] or (), other.fixed[p] or ()) for p in self.fixed)
        same = all(len(a) == len(b) and all(map(np.array_equal, a, b)) for a, b in values)
        return same and (self.model, self.tied) == (other.model, other.tied)

    def __hash__(self):
        return hash((self.model, frozenset(self.fixed), self.tied))

    smooth_map = restricted = None

    @property
    def wrapped(self):
        return self.model

    @property
    def informed(self):
        return None if self.model.informed is None else self._informed

    def _informed(self, x, weights):
        return Restricted(self.model.informed(x, weights), self.fixed, self.tied)

    def _defines(self, name):
        known = super()._defines(name)
        is_start = name in ("from_responsibilities", "template", "refined")
        return known and (not is_start or defines(self.model, name))

    @property
    def domain(self):
        return self.model.domain.also(self._check)

    def _check(self, x):
        """Raises where a restriction does not match the params for data shaped like x."""
        params_shape = jax.eval_shape(self._shape, x)
        plan = self._plan(params_shape)

        def units(x):
            weights = jnp.ones(jax.tree.leaves(x)[0].shape[0])
            lacks = self.model.informed is not None
            model = self.model.informed(x, weights) if lacks else self.model
            return standardized(model, x, weights).units

        if jax.tree.leaves(jax.eval_shape(units, x)):
            plan.layout.require_columns(plan.group)
        if not is_traced(self.fixed):
            self._check_values(plan, params_shape)

    def restrict(self, params, old):
        """params with fixed entries at their values, frozen entries as in `old`, and tied entries
        at their mean."""
        plan = self._plan(params)
        vector, unravel = ravel_pytree(params)
        vector = averaged(plan.group, vector)
        frozen_values = stop_gradient(ravel_pytree(old)[0])
        held_values = jnp.where(plan.given, self._given(plan, vector.dtype), frozen_values)
        vector = jnp.where(plan.held, held_values, vector)
        return plan.layout.rescaled(unravel(vector), plan.held)

    def closed(self, x):
        """As in `Model`. TypeError where there is no M-step at all."""
        is_closed = []

        def record(x):
            weights = jnp.ones(jax.tree.leaves(x)[0].shape[0])
            inner = self.standardize(x, weights)
            params = inner.model.init(jax.random.key(0), inner.data, weights)
            is_closed.append(self.model.closed(x) and inner.model.step(params) is not None)
            return params

        jax.eval_shape(record, x)
        bound = has(self.model, FiniteLatents) or has(self.model, Bound)
        if not is_closed[0] and not bound:
            raise TypeError(
                f"there is no M-step in closed form for {self!r}, and its model defines no "
                "log_joint(params, x) for one by gradients"
            )
        return is_closed[0]

    def maximize(self, params, stats):
        step = self.step(params)
        if step is None:
            raise TypeError(
                "these restrictions leave no M-step in closed form: use m_step=jaxem.Gradient()"
            )
        return self.restrict(step(params, stats), params)

    def coordinates(self, params):
        """The coordinates of the free entries."""
        plan = self._plan(params)
        return Reduced(self, Coordinates(self.model.spaces(params), params), params, plan)

    def n_parameters(self, params):
        plan = self._plan(params)
        removed = plan.layout.freedom() - plan.layout.freedom(plan.held, plan.group)
        return self.model.n_parameters(params) - removed

    def init(self, key, x, weights):
        return self._restrict_itself(self.model.init(key, x, weights))

    def from_responsibilities(self, key, x, responsibilities, weights):
        start = self.model.from_responsibilities(key, x, responsibilities, weights)
        return self._restrict_itself(start)

    def template(self, is_cyclic):
        """That of the model, with the restrictions: a function of (key, x, weights). is_cyclic: in
        a cycle, else from left to right."""
        start = self.model.template(is_cyclic)
        return lambda key, x, weights: self._restrict_itself(start(key, x, weights))

    def standardize(self, x, weights):
        inner = standardized(self.model, x, weights)
        params_shape = jax.eval_shape(self._shape, x)
        plan = self._plan(params_shape)
        vector, unravel = ravel_pytree(plan.layout.neutral(params_shape))
        given = self._given(plan, vector.dtype)
        standard_params = inward(
            self.model, inner.units, unravel(jnp.where(plan.given, given, vector))
        )
        standard_params = ravel_pytree(standard_params)[0]
        fixed = {
            path: None
            if v is None
            else tuple(standard_params[at] for at in plan.layout.places(path))
            for path, v in self.fixed.items()
        }
        return inner._replace(model=Restricted(inner.model, fixed, self.tied))

    def inward(self, units, params):
        return inward(self.model, units, self._restrict_itself(params))

    def outward(self, units, params):
        return self._restrict_itself(outward(self.model, units, params))

    def _restrict_itself(self, params):
        return self.restrict(params, params)

    def step(self, params):
        """The M-step in closed form, before `restrict`, or None."""
        plan = self._plan(params)
        held = plan.layout.held(plan.held, plan.group)
        return None if held is None else restricted(self.model, held)

    def _shape(self, x):
        weights = jnp.ones(jax.tree.leaves(x)[0].shape[0])
        return self.model.init(jax.random.key(0), x, weights)

    def _plan(self, params) -> Plan:
        """The `Plan` for params of these shapes."""
        layout = Layout(params, self.model.spaces(params))
        given, frozen = np.zeros(layout.size, bool), np.zeros(layout.size, bool)
        source, group, count = np.zeros(layout.size, int), np.arange(layout.size), 0
        for path, values in self.fixed.items():
            places = layout.places(path)
            if values is None:
                for at in places:
                    frozen[at] = True
                continue
            if len(values) != len(places):
                raise ValueError(
                    f"fixed[{path!r}] must hold {len(places)} arrays, one a leaf of params, got "
                    f"{len(values)}: name one leaf, or give a tree like these params"
                )
            for at, value in zip(places, values, strict=True):
                try:
                    where = np.broadcast_to(
                        np.arange(np.size(value)).reshape(value.shape), at.shape
                    )
                except ValueError:
                    raise ValueError(
                        f"fixed[{path!r}] must broadcast to shape {at.shape}, got {np.shape(value)}"
                    ) from None
                if given[at].any():
                    raise ValueError(f"fixed[{path!r}] holds entries that another path fixes too")
                given[at], source[at] = True, count + where
                count += np.size(value)
        for tie in self.tied:
            layout.tie(group, tie)
        frozen &= ~given
        plan = Plan(layout, given, frozen, source, group)
        layout.require(plan.held, given, group)
        return plan

    def _given(self, plan, dtype):
        """The fixed values, entry by entry, for the entries of `plan.given`."""
        values = [jnp.ravel(v) for vs in self.fixed.values() for v in vs or ()]
        if not values:
            return jnp.zeros(plan.layout.size, dtype)
        return jnp.concatenate(values).astype(dtype)[plan.source]

    def _check_values(self, plan, like):
        """Raises ValueError where a fixed value lies outside its space."""
        with jax.ensure_compile_time_eval():
            vector, unravel = ravel_pytree(plan.layout.neutral(like))
            given = np.asarray(self._given(plan, vector.dtype))
            params = unravel(jnp.where(plan.given, given, vector))
            params = jax.tree.map(np.asarray, plan.layout.rescaled(params, plan.held))
        plan.layout.require_values(given, plan.given)
        try:
            check_params(self.model, jax.tree.map(lambda leaf: leaf[None], params))
        except ValueError as error:
            raise ValueError(f"fixed: {error}") from None


class Reduced(Coordinates):
    """The coordinates of the free entries, one for each group of tied entries."""

    def __init__(self, model, inner, params, plan):
        self.model, self.inner, self.kept, self.plan = model, inner, params, plan
        free = np.flatnonzero((plan.group == np.arange(plan.layout.size)) & ~plan.held)
        place = np.zeros(plan.layout.size, int)
        place[free] = np.arange(len(free))
        self.place = place[plan.group]
        self.full, self._of_free = inner.origin, free
        self.origin = self.full[free]

    def of_entries(self, values):
        return self.inner.of_entries(values)[self._of_free]

    def params(self, vector):
        full = self.full
        if vector.size:
            full = jnp.where(self.plan.held, full, vector[self.place])
        return self.model.restrict(self.inner.params(full), self.kept)


def _values(value):
    """The arrays of a fixed value, one a leaf."""
    if isinstance(value, (list, tuple)) and all(isinstance(v, Real) for v in value):
        value = np.asarray(value)
    leaves = jax.tree.leaves(value, is_leaf=lambda node: isinstance(node, list))
    return tuple(v if isinstance(v, jax.Array) else np.asarray(v, float) for v in leaves)


def coordinates(model, params) -> Coordinates:
    """params as one vector without constraints; of a `Restricted` model only the free entries."""
    if isinstance(model, Restricted):
        return model.coordinates(params)
    return Coordinates(model.spaces(params), params)


def with_restrictions(model, params, old):
    """params under the restrictions of a `Restricted` model, with frozen entries as in `old`."""
    return model.restrict(params, old) if isinstance(model, Restricted) else params


def hold(model, paths) -> Restricted:
    """The model with the entries of the paths frozen."""
    return Restricted(model, {path: None for path in paths})
