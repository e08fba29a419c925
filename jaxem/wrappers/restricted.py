"""Partial parameters: a model of which some entries of the params are known, kept or equal.

A path names entries: the names on the way to a leaf, joined by dots, and an index where only a part
is meant: "weights", "components.mean", "components.mean[0]", "components.mean[:, 1]". A path that
ends above the leaves names them all: "components[0]" is the whole first component.
"""

import warnings
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
from jaxem.protocol.restriction import restricted
from jaxem.protocol.spaces import Coordinates
from jaxem.protocol.status import FitWarning
from jaxem.protocol.units import inward, outward, standardized
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopt import adopt


class Plan(NamedTuple):
    """What is held of params of one shape, entry by entry of one flat vector.

    given, frozen: which entries have a value of their own, and which keep what they start with.
    source: for given entries their place among all given values. group: the first of the entries
    that an entry equals, itself where it is free.
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

    Its params are a tree like those of the model, and hold the fixed values bit for bit; given
    starts are moved onto them. EM climbs the same objective over what is free, with the model's
    M-step where one in closed form is left, else by `Gradient()`. `n_parameters`, BIC and
    AIC count what is free. The gradient through a fit includes that by fixed values.

    In closed form: weights in any way; whole components in any way; entries of rates and
    probabilities; means of a normal (whole ones where it is full or tied), moments then being about
    them; covariances fixed or shared by some components; the shape of a gamma.

    Args:
      model: what is restricted.
      fixed: {path: value}; None instead of a value keeps what the start holds, and so does a path
        or a list of paths alone. Values broadcast.
      tied: a sequence of ties. A tuple of paths: what they name is equal, such as
        ("components.rate[0]", "components.rate[1]"). One path: equal along its first axis, so that
        "components.covariance" is one covariance for all.

    Raises, when it is fitted, ValueError for a path that names nothing, a value of another shape or
    outside its space, an entry both fixed and tied, part of a covariance matrix, and ties that a
    change of units would break.
    """

    model: Any
    fixed: Any = None
    tied: Any = ()

    def __post_init__(self):
        if isinstance(self.model, type):
            raise TypeError(f"model must be an instance, got the class {self.model.__name__}")
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

    informed = smooth_map = restricted = None

    @property
    def wrapped(self):
        return self.model

    def _defines(self, name):
        known = super()._defines(name)
        return known and (name != "from_responsibilities" or defines(self.model, name))

    @property
    def domain(self):
        return self.model.domain.also(self._check)

    def _check(self, x):
        """Raises where a restriction does not fit the params that data like x have."""
        like = jax.eval_shape(self._shape, x)
        plan = self._plan(like)

        def units(x):
            return standardized(self.model, x, jnp.ones(jax.tree.leaves(x)[0].shape[0])).units

        if jax.tree.leaves(jax.eval_shape(units, x)):
            plan.layout.require_columns(plan.group)
        if not is_traced(self.fixed):
            self._check_values(plan, like)

    def restrict(self, params, old):
        """params with fixed values in place, frozen entries as in `old`, and ties by their mean."""
        plan = self._plan(params)
        vector, unravel = ravel_pytree(params)
        vector = averaged(plan.group, vector)
        keep = stop_gradient(ravel_pytree(old)[0])
        held = jnp.where(plan.given, self._given(plan, vector.dtype), keep)
        vector = jnp.where(plan.held, held, vector)
        return plan.layout.rescaled(unravel(vector), plan.held)

    def closed(self, x):
        """As in `Model`. TypeError where there is no M-step at all."""
        found = []

        def look(x):
            weights = jnp.ones(jax.tree.leaves(x)[0].shape[0])
            inner = self.standardize(x, weights)
            params = inner.model.init(jax.random.key(0), inner.data, weights)
            found.append(self.model.closed(x) and inner.model.step(params) is not None)
            return params

        jax.eval_shape(look, x)
        bound = has(self.model, FiniteLatents) or has(self.model, Bound)
        if not found[0] and not bound:
            raise TypeError(
                f"there is no M-step in closed form for {self!r}, and its model defines no "
                "log_joint(params, x) for one by gradients"
            )
        return found[0]

    def maximize(self, params, stats):
        step = self.step(params)
        if step is None:
            raise TypeError(
                "these restrictions leave no M-step in closed form: use m_step=jaxem.Gradient()"
            )
        return self.restrict(step(params, stats), params)

    def coordinates(self, params):
        """The coordinates of what is free."""
        plan = self._plan(params)
        return Reduced(self, Coordinates(self.model.spaces(params), params), params, plan)

    def n_parameters(self, params):
        plan = self._plan(params)
        lost = plan.layout.freedom() - plan.layout.freedom(plan.held, plan.group)
        return self.model.n_parameters(params) - lost

    def init(self, key, x, weights):
        return self._restrict_itself(self.model.init(key, x, weights))

    def from_responsibilities(self, key, x, responsibilities, weights):
        start = self.model.from_responsibilities(key, x, responsibilities, weights)
        return self._restrict_itself(start)

    def standardize(self, x, weights):
        inner = standardized(self.model, x, weights)
        like = jax.eval_shape(self._shape, x)
        plan = self._plan(like)
        vector, unravel = ravel_pytree(plan.layout.neutral(like))
        given = self._given(plan, vector.dtype)
        there = inward(self.model, inner.units, unravel(jnp.where(plan.given, given, vector)))
        there = ravel_pytree(there)[0]
        fixed = {
            path: None if v is None else tuple(there[at] for at in plan.layout.places(path))
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
        """The M-step before `restrict`, or None."""
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
        """The fixed values, entry by entry; 0 where there is none."""
        values = [jnp.ravel(v) for vs in self.fixed.values() for v in vs or ()]
        if not values:
            return jnp.zeros(plan.layout.size, dtype)
        return jnp.concatenate(values).astype(dtype)[plan.source]

    def _check_values(self, plan, like):
        """Raises ValueError where a fixed value lies outside its space, as the model sees it."""
        with jax.ensure_compile_time_eval():
            vector, unravel = ravel_pytree(plan.layout.neutral(like))
            given = np.asarray(self._given(plan, vector.dtype))
            params = unravel(jnp.where(plan.given, given, vector))
            params = jax.tree.map(np.asarray, plan.layout.rescaled(params, plan.held))
        plan.layout.require_values(given, plan.given)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)
                check_params(self.model, params)
        except ValueError as error:
            raise ValueError(f"fixed: {error}") from None


class Reduced(Coordinates):
    """The coordinates of what is free, each tie one of them."""

    def __init__(self, model, inner, params, plan):
        self.model, self.inner, self.kept, self.plan = model, inner, params, plan
        free = np.flatnonzero((plan.group == np.arange(plan.layout.size)) & ~plan.held)
        place = np.zeros(plan.layout.size, int)
        place[free] = np.arange(len(free))
        self.place = place[plan.group]
        self.full = inner.origin
        self.origin = self.full[free]

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
    """params as one vector without constraints; of a `Restricted` model what is free of them."""
    if isinstance(model, Restricted):
        return model.coordinates(params)
    return Coordinates(model.spaces(params), params)


def with_restrictions(model, params, old):
    """params with what a `Restricted` model holds in its place, next to `old` ones."""
    return model.restrict(params, old) if isinstance(model, Restricted) else params


def hold(model, paths) -> Restricted:
    """A model that keeps what the paths name as it is."""
    return Restricted(model, {path: None for path in paths})
