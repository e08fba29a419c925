"""`Grouped`: rows of which those of one group share their component; each group is a unit."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_data
from jaxem.data.cells import widths_of
from jaxem.data.sequences import Sequences
from jaxem.numerics.tree import is_traced, pytree


class Layout(NamedTuple):
    """How the arrays of a tree, (n, ...) each, lie beside each other in one array (n, c): the tree,
    and the shape of a row of every leaf. Hashable."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]

    def unpacked(self, rows):
        """The tree of arrays (r, ...) from rows (r, c)."""
        sizes = [math.prod(shape) for shape in self.shapes]
        ends = np.cumsum([0, *sizes]).tolist()
        parts = [rows[:, a:b] for a, b in itertools.pairwise(ends)]
        parts = [rows] if len(parts) == 1 else parts
        leaves = [p.reshape(len(rows), *s) for p, s in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.tree, leaves)


def packed(data):
    """(rows (r, c), `Layout`) of a tree of arrays (r, ...), in its widest floating-point dtype."""
    leaves, tree = jax.tree.flatten(data)
    xp = jnp if is_traced(leaves) or any(isinstance(a, jax.Array) for a in leaves) else np
    floats = [a.dtype for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = jnp.result_type(*floats) if floats else jnp.result_type(float)
    parts = [xp.asarray(a, dtype).reshape(a.shape[0], -1) for a in leaves]
    rows = parts[0] if len(parts) == 1 else xp.concatenate(parts, 1)
    return rows, Layout(tree, tuple(tuple(a.shape[1:]) for a in leaves))


@pytree(static=("layout",), eq=False)
class Grouped:
    """Rows in groups; what `Data.grouped()` returns. A pytree, so that it crosses `jit`.

    rows: `Sequences` with one sequence a group, in the order of the sorted names of groups; gate:
    (n, g), covariates of the mixing weights of every group, or None; labels: (n,), or None. Padding
    has the values of the last row of the group.
    """

    rows: Sequences
    gate: Any
    labels: Any
    layout: Layout

    def __len__(self):
        return len(self.rows)

    @property
    def plain(self):
        """The arrays of all rows, padding included, (r, ...) each."""
        return self.layout.unpacked(self.rows.flat())

    def with_plain(self, data):
        """The same groups with other arrays (r, ...) in place of `plain`."""
        rows, layout = packed(data)
        return Grouped(self.rows.with_flat(rows), self.gate, self.labels, layout)

    def summed(self, values):
        """Σ of values (r, ...) over the rows of every group, (n, ...)."""
        parts = zip(self.rows.split(values), self.rows.stacks(), strict=True)
        return self.rows.to_units([jnp.where(_of(s, v), v, 0).sum(1) for v, s in parts])

    def spread(self, values):
        """Values (n, ...) of groups for all rows (r, ...), 0 for padding."""
        parts = zip(self.rows.from_units(values), self.rows.stacks(), strict=True)
        spread = [jnp.where(_of(s, v[:, None]), v[:, None], 0) for v, s in parts]
        spread = [v.reshape(-1, *v.shape[2:]) for v in spread]
        return spread[0] if len(spread) == 1 else jnp.concatenate(spread)

    def rows_in_order(self, names: "Names"):
        """The index, in `plain`, of every row (n,) in the order in which rows were given."""
        stored, place = self.rows.stored[1], self.rows.place
        widths = [part.shape[1] for part in ([stored] if place is None else stored)]
        counts = [part.shape[0] for part in ([stored] if place is None else stored)]
        begin = np.cumsum([0, *counts])
        cells = np.cumsum([0, *np.multiply(counts, widths)])
        stack_row = np.arange(len(self)) if place is None else np.asarray(place)
        stack = np.searchsorted(begin, stack_row, "right") - 1
        first = cells[stack] + (stack_row - begin[stack]) * np.asarray(widths)[stack]
        within = np.empty(len(names.place), int)
        start = np.cumsum(names.count) - names.count
        within[names.order] = np.arange(len(within)) - np.repeat(start, names.count)
        return first[names.place] + within

    @property
    def unit_shape(self) -> tuple:
        """The shape of a row in the first array."""
        return self.layout.shapes[0]

    @property
    def longest(self) -> int:
        return self.rows.longest

    @property
    def widths(self):
        """What the data sets of a batch must share."""
        gate = None if self.gate is None else np.shape(self.gate)[-1]
        return self.layout, gate, self.labels is not None

    def widened(self, t: int):
        """The same groups as one stack of t rows each."""
        return Grouped(self.rows.widened(t), self.gate, self.labels, self.layout)

    def shapes(self):
        """The arrays of `plain` as `jax.ShapeDtypeStruct`s."""
        stored, dtype = self.rows.stored[1], self.rows.dtype
        parts = [stored] if self.rows.place is None else stored
        r = sum(math.prod(part.shape[-3:-1]) for part in parts)
        leaves = [jax.ShapeDtypeStruct((r, *shape), dtype) for shape in self.layout.shapes]
        return jax.tree.unflatten(self.layout.tree, leaves)

    def worst(self, valid):
        """The arrays (n, ...) of one row of every group, one that is not valid where there is one.
        valid: a function of arrays (r, ...) that returns a tree of booleans."""
        stored, place = self.rows.stored[1], self.rows.place
        xp = jnp if is_traced(self.rows) else np

        def of_part(part):
            part = xp.asarray(part)
            m, t, c = part.shape
            are_valid = xp.ones(m * t, bool)
            for mask in jax.tree.leaves(valid(self.layout.unpacked(part.reshape(m * t, c)))):
                are_valid = are_valid & mask.reshape(m * t, -1).all(1)
            row = xp.argmin(are_valid.reshape(m, t), axis=1)[:, None, None]
            return xp.take_along_axis(part, row, axis=1)[:, 0]

        if place is None:
            return self.layout.unpacked(of_part(stored))
        return self.layout.unpacked(xp.concatenate([of_part(p) for p in stored])[place])

    def __repr__(self):
        return f"Grouped({len(self)} groups of at most {self.longest} rows)"


def _of(stack, values):
    """Which rows (m, t) of a stack are not padding, with axes for those of values (m, t, ...)."""
    return stack.inside.reshape(*stack.inside.shape, *(1,) * (values.ndim - 2))


class Names(NamedTuple):
    """place: the number (n,) of the group of every row; first: a row of every group (G,)."""

    place: np.ndarray
    first: np.ndarray
    count: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, groups, name: str = "data.groups"):
        """Those of the names of groups (n,), integers or strings, sorted."""
        if is_traced(groups):
            raise TypeError(
                f"{name} are traced, and the number of groups must be known: group outside of the "
                "transformation, x = jaxem.Data(..., groups=groups).grouped(), and pass x"
            )
        values = np.asarray(groups)
        if values.ndim != 1:
            raise ValueError(f"{name} must have shape (n,), one per row, got {values.shape}")
        if values.dtype == object:
            values = _of_objects(values, name)
        if values.dtype.kind not in "biuUS":
            raise TypeError(
                f"{name} must be integers or strings, got {values.dtype}: give the name of the "
                "group of every row, such as frame['subject'].astype(str)"
            )
        _, first, place, count = np.unique(
            values, return_index=True, return_inverse=True, return_counts=True
        )
        return cls(place, first, count, np.argsort(place, kind="stable"))

    def constant(self, values, name: str):
        """One value a group of values (n, ...). ValueError where they differ within a group and
        are not traced."""
        if not is_traced(values):
            host = np.asarray(values)
            same = (host == host[self.first][self.place]) | (host != host)
            differs = ~same.reshape(len(host), -1).all(1)
            if differs.any():
                row = int(np.argmax(differs))
                raise ValueError(
                    f"{name} must be the same in all rows of a group, and row {row} differs from "
                    f"row {int(self.first[self.place[row]])} of its group"
                )
        return values[self.first]

    def weights(self, weights, name: str = "weights"):
        """Weights of groups (G,) from those, or from weights of rows (n,) that do not differ within
        a group. Where every group has one row they are those of rows."""
        if weights is None:
            return None
        is_of_rows = np.shape(weights) == self.place.shape
        if np.shape(weights) == self.first.shape and not is_of_rows:
            return weights
        if not is_of_rows:
            raise ValueError(
                f"{name} must have shape {self.first.shape}, one per group in the order of their "
                f"sorted names, or {self.place.shape}, one per row, got {np.shape(weights)}"
            )
        weights = weights if isinstance(weights, jax.Array) else np.asarray(weights)
        return self.constant(weights, name)

    def labels(self, labels):
        """The labels of groups (G,): −1 beside a label is that label."""
        if is_traced(labels):
            return jnp.full(len(self.first), -1, labels.dtype).at[self.place].max(labels)
        host = np.asarray(labels)
        found = np.full(len(self.first), -1, host.dtype)
        np.maximum.at(found, self.place, host)
        wrong = (host != found[self.place]) & (host != -1)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"data.labels must be the same in all rows of a group, or -1, and row {row} has "
                f"{host[row]}, another row of its group {found[self.place[row]]}"
            )
        return found


def _of_objects(values, name):
    """An array of strings or integers from one of objects."""
    kinds = set(map(type, values.tolist()))
    if all(issubclass(kind, str) for kind in kinds):
        return values.astype(str)
    if all(issubclass(kind, (int, np.integer)) for kind in kinds):
        return values.astype(int)
    raise TypeError(
        f"{name} must be all integers or all strings, got "
        f"{sorted(kind.__name__ for kind in kinds)}: give every row the name of its group"
    )


def grouped(plain, gate, labels, names: Names, name: str = "data") -> Grouped:
    """`Grouped` from arrays of rows (n, ...) and the names of their groups."""
    plain, n = as_data(plain, name)
    if len(names.place) != n:
        raise ValueError(
            f"{name}.groups must have shape {(n,)}, one per row, got {names.place.shape}"
        )
    rows, layout = packed(plain)
    count, start = names.count, np.cumsum(names.count) - names.count
    widths = widths_of(count)
    class_of = np.searchsorted(widths, count)
    members = [np.flatnonzero(class_of == i) for i in range(len(widths))]
    parts = []
    for member, width in zip(members, widths, strict=True):
        within = np.minimum(np.arange(width), count[member, None] - 1)
        parts.append(rows[names.order[start[member, None] + within]])
    observed = tuple(
        np.arange(width) < count[member, None]
        for member, width in zip(members, widths, strict=True)
    )
    length, parts, place = count.astype(np.int32), tuple(parts), None
    if len(widths) == 1:
        parts, observed = parts[0], observed[0]
    else:
        place = np.empty(len(count), np.int32)
        place[np.concatenate(members)] = np.arange(len(count))
    sequences = Sequences.of(length, parts, observed, None, place)
    gate = None if gate is None else names.constant(gate, f"{name}.gate")
    labels = None if labels is None else names.labels(labels)
    return Grouped(sequences, gate, labels, layout)


def unit_shape(x) -> tuple:
    """The shape of a unit in the first array of data; of `Sequences` and of groups that of a
    row."""
    if isinstance(x, Grouped):
        return x.unit_shape
    return x.widths[:1] if isinstance(x, Sequences) else tuple(jax.tree.leaves(x)[0].shape[1:])
