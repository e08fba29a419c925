"""Components of different families on the same columns."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.numerics import rows
from jaxem.numerics.tree import CONSTRUCTORS
from jaxem.protocol import domains
from jaxem.protocol.capabilities import Sampled, has
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.derived import whitened
from jaxem.protocol.hyperparameters import integer
from jaxem.protocol.model import Bank, name_of
from jaxem.protocol.restriction import restricted
from jaxem.protocol.units import Standardized, inward, outward, standardized


class Components(Bank):
    """A bank whose components are of different families. A component has the log density of its
    family, and −∞ where a unit lies outside the support of that family.

    Args:
      parts: {"name": (bank, count)}: count components of that bank. Their order is that of the
        parts; k of the mixture or chain is the sum of the counts.

    x: (n, d), every unit in the support of at least one part. Params, posterior and statistics are
    dicts by name. `Components({"zero": (PointMass(0.0), 1), "n": (Poisson(), 1)})` is a
    zero-inflated Poisson, with `Gamma` in its place a hurdle: densities are with respect to a
    measure with a point mass at 0 (`PointMass`).

    Raises TypeError for a part that is no pair of a bank and a count, ValueError where the counts
    do not sum to k, or for a part with missing=True. Sources: zero inflation, Lambert 1992;
    hurdles, Cragg 1971.
    """

    def __init__(self, parts):
        if not isinstance(parts, Mapping) or not parts:
            raise TypeError(
                'parts must be a dict such as {"zero": (jaxem.PointMass(0.0), 1), "body": '
                f"(jaxem.Gamma(), 2)}}, got {parts!r:.60}"
            )
        for name, part in parts.items():
            is_pair = isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], Bank)
            if not is_pair or not isinstance(part[0].domain, domains.Matrix):
                raise TypeError(
                    f"part {name!r} must be a pair of a bank of rows and the number of its "
                    f"components, such as (jaxem.Gamma(), 2), got {part!r:.60}"
                )
            if part[0].domain.missing:
                raise ValueError(
                    f"part {name!r} has missing=True, and a row with a missing cell belongs to no "
                    "support: Components take complete rows"
                )
        self.names = tuple(parts)
        self.families = tuple(family for family, _ in parts.values())
        self.counts = tuple(
            integer(n, f"the count of part {p!r}", 1) for p, (_, n) in parts.items()
        )
        self.packed = False  # whether data are those of `standardize`

    def __eq__(self, other):
        return isinstance(other, Components) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        return f"Components({ {n: (f, count) for n, f, count, _ in self._parts()} })"

    def init(self, key, x, weights):
        """Every unit's weight goes to components whose support it lies in."""
        parts = {n: self._part(x, i) for i, n in enumerate(self.names)}
        allowed = [jnp.repeat(parts[n][1][:, None], c, 1) for n, _, c, _ in self._parts()]
        allowed = jnp.concatenate(allowed, axis=1)
        kept = jnp.where(allowed, weights, 0)
        total, of_kept = weights.sum(1, keepdims=True), kept.sum(1, keepdims=True)
        even = jnp.where(allowed, total / jnp.maximum(allowed.sum(1, keepdims=True), 1), 0)
        kept = jnp.where(of_kept > 0, kept * (total / jnp.where(of_kept > 0, of_kept, 1)), even)
        # A component without a unit starts from all units of its support.
        kept = jnp.where(is_empty(kept.sum(0)), jnp.where(allowed, total, 0), kept)
        kept = jnp.where(is_empty(kept.sum(0)), total, kept)
        keys = jax.random.split(key, len(self.names))
        return {
            n: f.init(one, parts[n][0], kept[:, place])
            for one, (n, f, _, place) in zip(keys, self._parts(), strict=True)
        }

    def posterior(self, params, x):
        inner, evidence = {}, []
        for i, (name, family, count, _) in enumerate(self._parts()):
            data, inside, volume = self._part(x, i)
            inner[name], density = family.posterior(params[name], data)
            density = jnp.where(inside[:, None], density, -jnp.inf) - volume[:, None]
            evidence.append(jnp.broadcast_to(density, (density.shape[0], count)))
        evidence = jnp.concatenate(evidence, axis=1)
        return inner, evidence if self.packed else self.domain.outside(x, evidence)

    def statistics(self, params, x, q, weights):
        found = {}
        for i, (name, family, _, place) in enumerate(self._parts()):
            data, inside, _ = self._part(x, i)
            kept = jnp.where(inside[:, None], weights[:, place], 0)
            found[name] = family.statistics(params[name], data, q[name], kept)
        return found

    def _size_of_terms(self, params, stats):
        return sum(f._size_of_terms(params[n], stats[n]) for n, f, _, _ in self._parts())

    def maximize(self, params, stats):
        return {n: f.maximize(params[n], stats[n]) for n, f, _, _ in self._parts()}

    def restricted(self, held):
        steps = {n: restricted(f, held[n]) for n, f, _, _ in self._parts()}
        if any(step is None for step in steps.values()):
            return None
        return lambda params, stats: {n: steps[n](params[n], stats[n]) for n in self.names}

    def spaces(self, params):
        return {n: f.spaces(params[n]) for n, f, _, _ in self._parts()}

    def whitened(self, params, step):
        return {n: whitened(f, params[n], step[n]) for n, f, _, _ in self._parts()}

    def log_prior(self, params):
        return sum(f.log_prior(params[n]) for n, f, _, _ in self._parts())

    def degenerate(self, params):
        flags = [jnp.any(jnp.asarray(f.degenerate(params[n]))) for n, f, _, _ in self._parts()]
        return jnp.any(jnp.stack(flags))

    def n_parameters(self, params):
        return sum(f.n_parameters(params[n]) for n, f, _, _ in self._parts())

    def sample(self, key, params, z):
        """Rows (n, d), row i of component z[i]. NotImplementedError where a part draws none."""
        draws = None
        keys = jax.random.split(key, len(self.names))
        parts = zip(keys, self._parts(), strict=True)
        for one, (name, family, count, place) in sorted(
            parts, key=lambda part: not jax.tree.leaves(params[part[1][0]])
        ):  # parts without params do not know the number of columns
            if not has(family, Sampled):
                raise NotImplementedError(f"{name_of(family)} does not define sample")
            local = jnp.clip(z - place.start, 0, count - 1)
            draw = family.sample(one, params[name], local)
            is_own = ((z >= place.start) & (z < place.stop))[:, None]
            draws = draw if draws is None else jnp.where(is_own, draw.astype(draws.dtype), draws)
        return draws

    def embed(self, x):
        """Points of the parts that have them. Units outside the support of a part lie apart, at the
        mean of the others in all other directions."""
        points = []
        for i, (_, family, _, _) in enumerate(self._parts()):
            data, inside, _ = self._part(x, i)
            found = family.embed(data)
            if found is None:
                continue
            inside = inside[:, None].astype(found.dtype)
            mean = (inside * found).sum(0) / safe(inside.sum(0))
            spread = jnp.sqrt((inside * jnp.square(found - mean)).sum() / safe(inside.sum()))
            points += [inside * (found - mean), 2 * spread * inside]
        return jnp.concatenate(points, axis=1) if points else None

    @property
    def domain(self):
        words = "; or ".join(f"{n!r}: {f.domain.words}" for n, f, _, _ in self._parts())
        is_discrete = any(f.domain.discrete for f in self.families)
        return ComponentsDomain(words, bank=self, discrete=is_discrete, counted=sum(self.counts))

    def standardize(self, x, weights):
        """For every part, side by side: its data, whether they lie in its support, and its log
        volume."""
        columns, models, units = [], [], {}
        for i, (name, family, _, _) in enumerate(self._parts()):
            data, inside, _ = self._part(x, i)
            kept = jnp.where(inside, weights, 0)
            part = standardized(family, data, jnp.where(jnp.any(kept > 0), kept, weights))
            volume = jnp.broadcast_to(part.log_volume, inside.shape).astype(x.dtype)
            volume = jnp.where(inside, volume, 0)
            columns += [part.data, inside[:, None].astype(x.dtype), volume[:, None]]
            models.append(part.model)
            units[name] = part.units
        model = _unflatten((self.names, self.counts, True), models)
        return Standardized(model, jnp.concatenate(columns, axis=1), units)

    def inward(self, units, params):
        return {n: inward(f, units[n], params[n]) for n, f, _, _ in self._parts()}

    def outward(self, units, params):
        return {n: outward(f, units[n], params[n]) for n, f, _, _ in self._parts()}

    def _part(self, x, i):
        """(data, which units lie in the support (n,), log volume (n,)) of part i. Units outside it
        have the values of a unit inside, so that they enter no sum with what is not finite."""
        if self.packed:
            width = x.shape[1] // len(self.names)
            block = x[:, i * width : (i + 1) * width]
            return block[:, :-2], block[:, -2] > 0, block[:, -1]
        inside = self.families[i].domain.valid(x).all(1)
        row = jnp.where(jnp.any(inside), rows.unit(x, rows.first(inside)), jnp.ones((), x.dtype))
        return jnp.where(inside[:, None], x, row), inside, jnp.zeros(x.shape[0], x.dtype)

    def _parts(self):
        """(name, family, count, its place among the components) of every part."""
        stops = [sum(self.counts[: i + 1]) for i in range(len(self.counts))]
        places = [slice(stop - c, stop) for c, stop in zip(self.counts, stops, strict=True)]
        return zip(self.names, self.families, self.counts, places, strict=True)

    def _key(self):
        return self.names, self.families, self.counts, self.packed


@dataclasses.dataclass(frozen=True)
class ComponentsDomain(domains.Matrix):
    """The union of the domains of the parts: a unit lies in at least one of them as a whole."""

    bank: Any = None

    def valid(self, x):
        if self.bank.packed:
            return x == x
        masks = [f.domain.valid(x) for f in self.bank.families]
        is_inside, cells = masks[0].all(-1), masks[0]
        for mask in masks[1:]:
            is_inside, cells = is_inside | mask.all(-1), cells | mask
        return is_inside[..., None] | (cells & ~cells.all(-1)[..., None])

    def check(self, x, name):
        super().check(x, name)
        for family in self.bank.families:
            family.domain.check(x, name_of(family))


def _flatten(bank: Components) -> tuple[tuple[Any, ...], tuple]:
    return bank.families, (bank.names, bank.counts, bank.packed)


def _unflatten(structure, families) -> Components:
    bank = object.__new__(Components)
    bank.names, bank.counts, bank.packed = structure
    bank.families = tuple(families)
    return bank


jax.tree_util.register_pytree_node(Components, _flatten, _unflatten)
CONSTRUCTORS[Components] = lambda bank: {
    "parts": {name: (family, count) for name, family, count, _ in bank._parts()}
}
