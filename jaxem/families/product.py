"""Product components: columns of mixed types, each group of columns its own family."""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import CONSTRUCTORS
from jaxem.protocol import domains
from jaxem.protocol.capabilities import Sampled, defines, has
from jaxem.protocol.derived import whitened
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.restriction import restricted
from jaxem.protocol.units import Standardized, inward, outward, standardized


class Product(Bank):
    """Independent groups of columns: log p(x | k) = Σ_groups log p_group(x[:, columns] | k)

    Of `Data` with responses y (n, m), the columns are those of y. Parts that are regressions share
    the regressors x, offset and trials; other parts take their columns of y alone.

    Args:
      parts: {"name": (family, columns)}; columns are an int, a list of ints or a slice with ends.

    x: (n, d). Params, posterior and statistics are dicts by name. For two measurements and a count:
    `Product({"size": (Normal(), [0, 1]), "n": (Poisson(), 2)})`. Raises TypeError for parts that
    are no banks, ValueError where a column is used twice or lies beyond the data. Source: Hunt &
    Jorgensen 1999.
    """

    def __init__(self, parts):
        if not isinstance(parts, Mapping):
            raise TypeError(
                'parts must be a dict such as {"size": (jaxem.Normal(), [0, 1])}, got '
                f"{parts!r:.60}"
            )
        names, families, columns = [], [], []
        for name, part in parts.items():
            family, where = part if isinstance(part, tuple) and len(part) == 2 else (part, None)
            if not isinstance(family, Bank) or where is None:
                raise TypeError(
                    f"part {name!r} must be a pair of a bank and its columns, such as "
                    f"(jaxem.Normal(), [0, 1]), got {part!r:.60}"
                )
            names.append(name)
            families.append(family)
            columns.append(_columns(where))
        used = [c for group in columns for c in group]
        if not used or len(set(used)) < len(used):
            raise ValueError(f"every column belongs to one part, got columns {columns}")
        self.names, self.families, self.columns = tuple(names), tuple(families), tuple(columns)

    def __eq__(self, other):
        return isinstance(other, Product) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return f"Product({ {n: (f, list(c)) for n, f, c in self._parts()} })"

    def init(self, key, x, weights):
        keys = dict(zip(self.names, jax.random.split(key, len(self.names)), strict=True))
        return {n: f.init(keys[n], part_of(x, n, f, c), weights) for n, f, c in self._parts()}

    def posterior(self, params, x):
        parts = {n: f.posterior(params[n], part_of(x, n, f, c)) for n, f, c in self._parts()}
        evidence = sum(evidence for _, evidence in parts.values())
        return {n: q for n, (q, _) in parts.items()}, evidence

    def mean(self, params, x):
        """E[y | x] at params of every row under every component, by part: each (n, k); no y is
        needed. TypeError where a part has no `mean`."""
        for name, family, _ in self._parts():
            if not defines(family, "mean"):
                raise TypeError(f"part {name!r}, {name_of(family)}, has no response to predict")
        return {n: f.mean(params[n], x) for n, f, c in self._parts()}

    def statistics(self, params, x, q, weights):
        return {
            n: f.statistics(params[n], part_of(x, n, f, c), q[n], weights)
            for n, f, c in self._parts()
        }

    def _size_of_terms(self, params, stats):
        return sum(f._size_of_terms(params[n], stats[n]) for n, f, _ in self._parts())

    def maximize(self, params, stats):
        return {n: f.maximize(params[n], stats[n]) for n, f, _ in self._parts()}

    def restricted(self, held):
        steps = {n: restricted(f, held[n]) for n, f, _ in self._parts()}
        if any(step is None for step in steps.values()):
            return None
        return lambda params, stats: {n: steps[n](params[n], stats[n]) for n in self.names}

    def variational(self):
        return Product({n: (f.variational(), c) for n, f, c in self._parts()})

    @property
    def informed(self):
        lacking = any(f.informed is not None for f in self.families)
        return self._informed if lacking else None

    def _informed(self, x, weights, k):
        def one(family, columns):
            return family if family.informed is None else family.informed(columns, weights, k)

        return Product({n: (one(f, part_of(x, n, f, c)), c) for n, f, c in self._parts()})

    @property
    def separate(self):
        return all(f.separate for f in self.families)

    def predictive(self, params, x):
        """log E_q[p(x | k)], (n, k), of parts that are variational banks."""
        return sum(f.predictive(params[n], part_of(x, n, f, c)) for n, f, c in self._parts())

    def spaces(self, params):
        return {n: f.spaces(params[n]) for n, f, _ in self._parts()}

    def whitened(self, params, step):
        return {n: whitened(f, params[n], step[n]) for n, f, _ in self._parts()}

    def log_prior(self, params):
        return sum(f.log_prior(params[n]) for n, f, _ in self._parts())

    def degenerate(self, params):
        flags = [jnp.any(jnp.asarray(f.degenerate(params[n]))) for n, f, _ in self._parts()]
        return jnp.any(jnp.stack(flags))

    def sample(self, key, params, z):
        """Rows (n, d), row i of component z[i]. NotImplementedError where a part draws none."""
        for family in self.families:  # those without a distribution of their rows say so
            if not has(family, Sampled):
                raise NotImplementedError(f"{name_of(family)} does not define sample")
        width = 1 + max(max(c) for c in self.columns)
        keys = jax.random.split(key, len(self.names))
        draws = [
            (c, f.sample(one, params[n], z))
            for one, (n, f, c) in zip(keys, self._parts(), strict=True)
        ]
        x = jnp.zeros((z.shape[0], width), jnp.result_type(*(draw for _, draw in draws)))
        for c, draw in draws:
            x = x.at[:, c].set(draw)
        return x

    def embed(self, x):
        points = [f.embed(part_of(x, n, f, c)) for n, f, c in self._parts()]
        return None if any(p is None for p in points) else jnp.concatenate(points, axis=1)

    def elemental(self, key, x, weights, k, group=None):
        """The sum of the distances of the parts that have them, each in units of its mean distance
        to the nearest component. All parts draw the same units. group (n,): units of few groups
        are drawn together."""
        total = 0.0
        for n, f, c in self._parts():
            if defines(f, "elemental"):
                distance = f.elemental(key, part_of(x, n, f, c), weights, k, group)
                size = distance.min(1).mean()
                total = total + distance / jnp.where(size > 0, size, 1)
        return total

    def separated(self, params, x, weights):
        """Which components have, in any part, coefficients without a finite estimate, (k,)."""
        flags = [
            f.separated(params[n], part_of(x, n, f, c), weights)
            for n, f, c in self._parts()
            if defines(f, "separated")
        ]
        return functools.reduce(operator.or_, flags)

    def _defines(self, name):
        if name in ("elemental", "separated"):
            return any(defines(f, name) for f in self.families)
        return super()._defines(name)

    def n_parameters(self, params):
        return sum(f.n_parameters(params[n]) for n, f, _ in self._parts())

    @property
    def domain(self):
        is_discrete = any(f.domain.discrete for f in self.families)
        takes = {field for f in self.families for field in f.domain.takes or ()} - {"noise"}
        words = "; ".join(self._words())
        return ProductDomain(words, product=self, discrete=is_discrete, takes=tuple(sorted(takes)))

    def _words(self):
        return [f"columns {list(c)}: {f.domain.words}" for _, f, c in self._parts()]

    def standardize(self, x, weights):
        parts = {n: standardized(f, part_of(x, n, f, c), weights) for n, f, c in self._parts()}
        if takes_fields(x):
            data = {n: part.data for n, part in parts.items()}
            data = dataclasses.replace(x, x=data, y=None, offset=None, trials=None)
        else:
            data = jnp.asarray(x)
            for n, _, c in self._parts():
                data = data.at[:, c].set(parts[n].data)
        model = Product({n: (parts[n].model, list(c)) for n, _, c in self._parts()})
        units = {n: part.units for n, part in parts.items()}
        return Standardized(model, data, units, sum(p.log_volume for p in parts.values()))

    def inward(self, units, params):
        return {n: inward(f, units[n], params[n]) for n, f, _ in self._parts()}

    def outward(self, units, params):
        return {n: outward(f, units[n], params[n]) for n, f, _ in self._parts()}

    def _parts(self):
        return zip(self.names, self.families, map(list, self.columns), strict=True)

    def _key(self):
        return self.names, self.families, self.columns


@dataclasses.dataclass(frozen=True)
class ProductDomain(domains.Matrix):
    """The domain of each part for its columns; columns of no part may have any value."""

    product: Any = None

    def with_variance(self, d):
        parts = [(f.domain, c) for _, f, c in self.product._parts()]
        return sorted(c[i] for domain, c in parts for i in domain.with_variance(len(c)))

    def is_observed(self, x):
        if isinstance(x, dict) or takes_fields(x):
            return None
        parts = [f.domain.is_observed(x[..., c]) for _, f, c in self.product._parts()]
        return None if any(p is None for p in parts) else functools.reduce(operator.or_, parts)

    def observations(self, x):
        return self.is_observed(x)

    def valid(self, x):
        if isinstance(x, dict):
            return {n: f.domain.valid(x[n]) for n, f, _ in self.product._parts()}
        fields = takes_fields(x)
        columns = as_columns(x.y) if fields else x
        are_valid, others = (columns == columns) | (columns != columns), {}
        for name, family, places in self.product._parts():
            mask = family.domain.valid(part_of(x, name, family, places))
            if fields and "y" in (family.domain.takes or ()):
                for field in ("x", "offset", "trials"):
                    if (value := getattr(mask, field)) is not None:
                        others[field] = value
                mask = as_columns(mask.y)
            for position, column in enumerate(places):
                of_column = mask[:, position : position + 1]
                elsewhere = jnp.arange(columns.shape[1])[None] != column
                are_valid = are_valid & (of_column | elsewhere)
        if not fields:
            return are_valid
        return dataclasses.replace(x, y=are_valid.reshape(x.y.shape), **others)

    def check(self, x, name):
        if not takes_fields(x):
            domains.require_matrix(x, name)
            width, what = x.shape[1], "the data have"
        else:
            width, what = (x.y.shape[1] if x.y.ndim == 2 else 1), "data.y has"
        domains.Domain.check(self, x, name)
        last = max(max(columns) for columns in self.product.columns)
        if last >= width:
            raise ValueError(f"Product uses column {last}, {what} {width} columns")
        for part_name, family, columns in self.product._parts():
            part = jax.eval_shape(lambda a: part_of(a, part_name, family, columns), x)  # noqa: B023
            family.domain.check(part, name_of(family))

    def check_values(self, x, weights):
        for name, family, columns in self.product._parts():
            family.domain.check_values(part_of(x, name, family, columns), weights)

    def accepted(self, path, values):
        found = (f.domain.accepted(path, values)[0] for f in self.product.families)
        return (self.words if path in ("", ".x", ".y") else next(found)), ""


def takes_fields(x) -> bool:
    """Whether data are `jaxem.Data` with responses, of which columns are those of y."""
    return dataclasses.is_dataclass(x) and hasattr(x, "y") and x.y is not None


def as_columns(y):
    """Responses (n,) or (n, m) as (n, m)."""
    return y if y.ndim == 2 else y[:, None]


def part_of(x, name, family, columns):
    """The data of a part: its columns, of `Data` those of y with the other fields that the family
    takes; of data that are a dict by name, its own."""
    if isinstance(x, dict):
        return x[name]
    if not takes_fields(x):
        return x[:, columns]
    takes, y = family.domain.takes or (), as_columns(x.y)[:, columns]
    if "y" not in takes:
        return y
    others = {field: None for field in ("offset", "trials") if field not in takes}
    return dataclasses.replace(x, y=y, **others)


def _columns(where) -> tuple[int, ...]:
    if isinstance(where, slice):
        if where.stop is None or where.stop < 0 or (where.start or 0) < 0:
            raise ValueError(f"a slice of columns needs ends counted from 0, got {where}")
        return tuple(range(where.start or 0, where.stop, where.step or 1))
    many = where if isinstance(where, (list, tuple, range)) else [where]
    columns = tuple(operator.index(c) for c in many)
    if not columns or min(columns) < 0:
        raise ValueError(f"columns are ints counted from 0, got {where!r}")
    return columns


def _flatten(product: Product) -> tuple[tuple[Any, ...], tuple]:
    return product.families, (product.names, product.columns)


def _unflatten(structure, families) -> Product:
    product = object.__new__(Product)
    product.names, product.columns = structure
    product.families = tuple(families)
    return product


jax.tree_util.register_pytree_node(Product, _flatten, _unflatten)
CONSTRUCTORS[Product] = lambda product: {
    "parts": {name: (family, columns) for name, family, columns in product._parts()}
}
