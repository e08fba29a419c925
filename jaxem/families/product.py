"""Product components: columns of mixed types, each group of columns its own family."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import CONSTRUCTORS
from jaxem.protocol import domains
from jaxem.protocol.derived import whitened
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.restriction import restricted
from jaxem.protocol.units import Standardized, inward, outward, standardized


class Product(Bank):
    """Independent groups of columns: log p(x | k) = Σ_groups log p_group(x[:, columns] | k)

    Args:
      parts: {"name": (family, columns)}; columns are an int, a list of ints or a slice with ends.

    Params, posterior and statistics are dicts by name. Raises ValueError where a column is used
    twice or lies beyond the data.
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
        return {n: f.init(keys[n], x[:, c], weights) for n, f, c in self._parts()}

    def posterior(self, params, x):
        parts = {n: f.posterior(params[n], x[:, c]) for n, f, c in self._parts()}
        evidence = sum(evidence for _, evidence in parts.values())
        return {n: q for n, (q, _) in parts.items()}, evidence

    def statistics(self, params, x, q, weights):
        return {n: f.statistics(params[n], x[:, c], q[n], weights) for n, f, c in self._parts()}

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

        return Product({n: (one(f, x[:, c]), c) for n, f, c in self._parts()})

    @property
    def separate(self):
        return all(f.separate for f in self.families)

    def predictive(self, params, x):
        return sum(f.predictive(params[n], x[:, c]) for n, f, c in self._parts())

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
        points = [f.embed(x[:, c]) for _, f, c in self._parts()]
        return None if any(p is None for p in points) else jnp.concatenate(points, axis=1)

    def n_parameters(self, params):
        return sum(f.n_parameters(params[n]) for n, f, _ in self._parts())

    @property
    def domain(self):
        is_discrete = any(f.domain.discrete for f in self.families)
        return ProductDomain("; ".join(self._words()), product=self, discrete=is_discrete)

    def _words(self):
        return [f"columns {list(c)}: {f.domain.words}" for _, f, c in self._parts()]

    def standardize(self, x, weights):
        parts = {n: standardized(f, x[:, c], weights) for n, f, c in self._parts()}
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

    def valid(self, x):
        is_valid = (x == x) | (x != x)
        for _, family, columns in self.product._parts():
            mask = family.domain.valid(x[:, columns])
            for position, column in enumerate(columns):
                of_column = mask[:, position : position + 1]
                elsewhere = jnp.arange(x.shape[1])[None] != column
                is_valid = is_valid & (of_column | elsewhere)
        return is_valid

    def check(self, x, name):
        super().check(x, name)
        last = max(max(columns) for columns in self.product.columns)
        if last >= x.shape[1]:
            raise ValueError(f"Product uses column {last}, the data have {x.shape[1]} columns")
        for _, family, columns in self.product._parts():
            part = jax.eval_shape(lambda a: a[:, columns], x)  # noqa: B023 - x may be a mere shape
            family.domain.check(part, name_of(family))


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
