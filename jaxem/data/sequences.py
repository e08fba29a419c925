"""`Sequences`: series of rows in time, of any lengths; each sequence is a unit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.arrays import as_array
from jaxem.data.cells import widths_of
from jaxem.numerics.tree import SharedLeaves, is_traced, register


class Stack(NamedTuple):
    """Sequences padded to one length t: rows (m, t, d), observed (m, t) booleans, inputs (m, t, g)
    or None, length (m,)."""

    rows: Any
    observed: Any
    inputs: Any
    length: Any

    @property
    def inside(self):
        """Which rows are not padding (m, t)."""
        return jnp.arange(self.observed.shape[1]) < self.length[:, None]

    @property
    def is_last(self):
        """Which row is the last one of its sequence (m, t)."""
        return jnp.arange(self.observed.shape[1]) == self.length[:, None] - 1


class Sequences(SharedLeaves):
    """Series of rows in time; each sequence is a unit.

    Args:
      data: a list of arrays (t_i, d) of any lengths t_i, or (t_i,) for one feature; an array
        (n, t, d), n sequences of one length; or an array (t, d) or (t,), one sequence. A row of
        NaN is missing: it takes its place in time and contributes nothing.
      inputs: covariates of the transitions, one row for every row of the data, in the same form.
        Those of row t act on the transition from row t to row t + 1. None: there are none.

    Fields: length (n,), the number of rows of each; rows (n, T, d), observed (n, T) and inputs
    (n, T, g), padded to the longest. `len(sequences)` is n. A pytree.

    Memory: padded to one length, or to few lengths with at most twice as many cells as there are
    rows where that saves much; the padded fields above are then computed when they are read.

    Raises ValueError or TypeError where the arrays are not of one width, or inputs do not fit.
    """

    def __init__(self, data, inputs=None):
        if isinstance(data, Sequences):
            raise TypeError("data are Sequences already: use them as they are")
        sequences = _listed(data, "data")
        inputs = None if inputs is None else _listed(inputs, "inputs")
        if inputs is not None:
            _require_matching(sequences, inputs)
        length = np.array([len(s) for s in sequences], np.int32)
        if not length.any():
            raise ValueError("all sequences are empty: pass at least one row")
        widths = widths_of(length)
        parts = [sequences, *([inputs] if inputs else [])]
        masks = [_observed(s) for s in sequences]
        filler = _filler(sequences, masks)
        if not is_traced(masks) and not any(mask.any() for mask in masks):
            raise ValueError("data hold no number: every row is missing")
        if len(widths) == 1:
            stacks, place = [_padded(parts, masks, filler, range(len(length)), widths[0])], None
        else:
            class_of = np.searchsorted(widths, length)
            members = [np.flatnonzero(class_of == i) for i in range(len(widths))]
            stacks = [
                _padded(parts, masks, filler, m.tolist(), width)
                for m, width in zip(members, widths, strict=True)
            ]
            place = np.empty(len(length), np.int32)
            place[np.concatenate(members)] = np.arange(len(length))
        rows, observed, given = zip(*stacks, strict=True)
        given = None if inputs is None else given
        if place is None:
            rows, observed, given = rows[0], observed[0], given and given[0]
        self._set(length, rows, observed, given, place)

    def _set(self, length, rows, observed, inputs, place=None):
        """place None: rows (n, T, d); else tuples of (n_c, T_c, d), one of each padded length, and
        place (n,), the position of each sequence when these are counted from the first one."""
        fields = {"length": length, "rows": rows, "observed": observed, "inputs": inputs}
        self.__dict__.update(fields, place=place)
        return self

    @classmethod
    def of(cls, *fields):
        """Sequences with the fields length, rows, observed, inputs and place, as they are
        stored."""
        return object.__new__(cls)._set(*fields)

    def __setattr__(self, name, value):
        raise AttributeError(f"Sequences cannot be changed: {name}")

    def __len__(self):
        return self.length.shape[0]

    def __getitem__(self, index):
        """The sequences of a slice, or of an array of numbers or of booleans."""
        index = np.arange(len(self))[index]
        if index.ndim != 1:
            raise TypeError("sequences are indexed by a slice or an array: sequences[i : i + 1]")
        return self.over_units(lambda leaf: leaf[index])

    @property
    def stored(self):
        """(length, rows, observed, inputs, place), as in `of`."""
        return tuple(self.__dict__[name] for name in FIELDS)

    def replace(self, **changes):
        """The same sequences with other fields, changes."""
        return Sequences.of(*(changes.get(n, self.__dict__[n]) for n in FIELDS))

    def over_units(self, function):
        length, rows, observed, inputs, place = self.stored
        if place is not None:
            return Sequences.of(function(length), rows, observed, inputs, function(place))
        inputs = None if inputs is None else function(inputs)
        return Sequences.of(function(length), function(rows), function(observed), inputs)

    @property
    def dtype(self):
        """That of the rows."""
        return self._parts[0].dtype

    @property
    def is_converted(self) -> bool:
        """Whether all arrays are on the host, in a dtype that JAX computes in."""
        are_on_host = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(self))
        return are_on_host and self.dtype == jax.dtypes.canonicalize_dtype(self.dtype)

    @property
    def longest(self) -> int:
        """The padded length of the longest sequence."""
        return max(part.shape[-2] for part in self._parts)

    @property
    def widths(self):
        """The numbers of features and of inputs, None without inputs."""
        inputs = self.stored[3]
        inputs = inputs if inputs is None or self.place is None else inputs[0]
        return self._parts[0].shape[-1], None if inputs is None else inputs.shape[-1]

    @property
    def _parts(self):
        rows = self.stored[1]
        return [rows] if self.place is None else rows

    def widened(self, t: int):
        """The same sequences as one stack of t rows each."""
        stack = self.padded()

        def wide(leaf, is_edge=False):
            more = (leaf.shape[0], t - leaf.shape[1], *leaf.shape[2:])
            xp = jnp if is_traced(leaf) else np
            last = leaf[:, -1:] if is_edge else xp.zeros((), leaf.dtype)
            return xp.concatenate([leaf, xp.broadcast_to(last, more)], 1) if more[1] else leaf

        inputs = None if stack.inputs is None else wide(stack.inputs)
        return Sequences.of(stack.length, wide(stack.rows, True), wide(stack.observed), inputs)

    def lagged(self, lags: int):
        """The sequences without their first `lags` rows, and every row followed by the `lags` rows
        before it, nearest first: (t − lags, (1 + lags)·d). A row counts as missing where one of
        those is."""
        if not lags:
            return self

        def later(a):
            return a[:, lags:]

        def joined(rows, observed):
            t = rows.shape[1]
            before = [slice(lags - lag, t - lag) for lag in range(lags + 1)]
            are_observed = jnp.stack([observed[:, at] for at in before]).all(0)
            return jnp.concatenate([rows[:, at] for at in before], -1), are_observed

        stacks = [self.padded()] if self.place is None else self.stacks()
        rows, observed = zip(*(joined(s.rows, s.observed & s.inside) for s in stacks), strict=True)
        given = None if stacks[0].inputs is None else tuple(later(s.inputs) for s in stacks)
        length = jnp.maximum(self.length - lags, 0)
        if self.place is None or len(stacks) == 1:
            return Sequences.of(length, rows[0], observed[0], given and given[0])
        return Sequences.of(length, rows, observed, given, self.place)

    def with_inputs(self, function):
        """The same sequences with `function` applied to their inputs."""
        return self.replace(inputs=jax.tree.map(function, self.stored[3]))

    def largest_inputs(self):
        """The largest absolute value of every input (g,), 1 where all are 0."""
        parts = jax.tree.leaves(self.stored[3])
        most = jnp.stack([jnp.abs(part).max((0, 1)) for part in parts]).max(0)
        return jnp.where(most > 0, most, 1)

    def stacks(self) -> list[Stack]:
        """The sequences as stored, each of one length. Those that are in no place have length 0;
        their rows, and padding, have the values of the first row that is inside."""
        length, rows, observed, inputs, place = self.stored
        if place is None:
            return [Stack(rows, observed, inputs, length)]
        counts = [r.shape[0] for r in rows]
        if 2 * place.shape[0] < sum(counts):
            return [self.padded()]
        length = jnp.zeros(sum(counts), length.dtype).at[place].max(length)
        inputs = [None] * len(rows) if inputs is None else inputs
        lengths = jnp.split(length, np.cumsum(counts)[:-1])
        return [Stack(*stack) for stack in zip(rows, observed, inputs, lengths, strict=True)]

    def to_units(self, values):
        """Values (n, ...) of the sequences from `values`, a list of those of `stacks`."""
        if self.place is None or len(values) == 1:
            return values[0]
        return jnp.concatenate(values)[self.place]

    def from_units(self, values):
        """A list of values (m, ...) for `stacks` from those (n, ...) of the sequences: sums where a
        sequence is in several places."""
        stacks = self.stacks()
        if self.place is None or len(stacks) == 1:
            return [values]
        counts = [len(stack.length) for stack in stacks]
        placed = (
            jnp.zeros((sum(counts), *values.shape[1:]), values.dtype).at[self.place].add(values)
        )
        return jnp.split(placed, np.cumsum(counts)[:-1])

    def flat(self):
        """All rows of `stacks`, one after the other (r, d)."""
        rows = [stack.rows.reshape(-1, stack.rows.shape[-1]) for stack in self.stacks()]
        return rows[0] if len(rows) == 1 else jnp.concatenate(rows)

    def split(self, values) -> list:
        """`values` (r, ...) of the rows of `flat` as those (m, t, ...) of `stacks`."""
        shapes = [stack.observed.shape for stack in self.stacks()]
        ends = np.cumsum([m * t for m, t in shapes])[:-1]
        parts = jnp.split(values, ends) if len(shapes) > 1 else [values]
        return [p.reshape(*s, *values.shape[1:]) for p, s in zip(parts, shapes, strict=True)]

    def with_flat(self, rows):
        """The same sequences with other rows (r, d), in the order of `flat`."""
        parts = self.split(rows)
        if self.place is None:
            return self.replace(rows=parts[0])
        if len(parts) == len(self.stored[1]):
            return self.replace(rows=tuple(parts))
        stack = self.padded()
        return Sequences.of(stack.length, parts[0], stack.observed, stack.inputs)

    def row_weights(self, weights):
        """The weights (r,) of the rows of `flat`: that of the sequence, 0 where a row is missing or
        padding."""
        pairs = zip(self.stacks(), self.from_units(weights), strict=True)
        parts = [jnp.where(s.observed & s.inside, w[:, None], 0).reshape(-1) for s, w in pairs]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def observations(self):
        """The number of rows of every sequence that are not missing, (n,); of sequences with
        further axes before those of a stack, (..., n)."""
        _, _, observed, _, place = self.stored
        xp = jnp if is_traced(self) else np
        parts = [observed] if place is None else observed
        counts = [xp.asarray(part).sum(-1) for part in parts]
        counts = counts[0] if place is None else xp.concatenate(counts, -1)
        return counts if place is None else xp.take_along_axis(counts, xp.asarray(place), -1)

    def padded(self) -> Stack:
        """All sequences, padded to the longest."""
        length, rows, observed, inputs, place = self.stored
        if place is None:
            return Stack(rows, observed, inputs, length)
        longest = max(r.shape[1] for r in rows)

        def joined(leaves):
            wide = [
                jnp.pad(a, ((0, 0), (0, longest - a.shape[1]), *((0, 0),) * (a.ndim - 2)), "edge")
                for a in leaves
            ]
            return jnp.concatenate(wide)[place]

        inside = jnp.arange(longest) < length[:, None]
        inputs = None if inputs is None else joined(inputs)
        return Stack(joined(rows), joined(observed) & inside, inputs, length)

    def __repr__(self):
        return f"Sequences({len(self)} of at most {self.longest} rows of {self.widths[0]} features)"


FIELDS = ("length", "rows", "observed", "inputs", "place")
register(Sequences, FIELDS, ())


def _listed(data, name) -> list:
    """The sequences of an argument as a list of arrays (t_i, d)."""
    if isinstance(data, (list, tuple)) and data and all(np.ndim(s) >= 1 for s in data):
        arrays = [as_array(s, f"{name}[{i}]") for i, s in enumerate(data)]
    else:
        array = as_array(data, name)
        arrays = list(array) if array.ndim == 3 else [array]
    if not arrays:
        raise ValueError(f"{name} hold no sequence: pass at least one")
    arrays = [a[:, None] if a.ndim == 1 else a for a in arrays]
    for i, array in enumerate(arrays):
        if array.ndim != 2:
            raise ValueError(
                f"{name}[{i}] has shape {array.shape}: a sequence is an array (t, d), or (t,) for "
                "one feature"
            )
        if array.shape[1] != arrays[0].shape[1] or not array.shape[1]:
            raise ValueError(
                f"{name}[{i}] has {array.shape[1]} features, {name}[0] has {arrays[0].shape[1]}: "
                "all sequences must have the same ones"
            )
    if not is_traced(arrays):
        arrays = [np.asarray(a) for a in arrays]
    return arrays


def _require_matching(sequences, inputs):
    if len(sequences) != len(inputs):
        raise ValueError(
            f"inputs are of {len(inputs)} sequences, data of {len(sequences)}: give one array of "
            "inputs for each sequence"
        )
    for i, (one, given) in enumerate(zip(sequences, inputs, strict=True)):
        if len(one) != len(given):
            raise ValueError(
                f"inputs[{i}] has {len(given)} rows, data[{i}] {len(one)}: give a row of inputs "
                "for every row of the data"
            )


def _observed(sequence):
    """Which rows are not missing: those that hold a number."""
    return ~(sequence != sequence).all(1)


def _filler(sequences, masks):
    """The first row that is observed, which stands in the place of missing rows and of padding; 1
    where there is none."""
    if not is_traced(sequences):
        for sequence, observed in zip(sequences, masks, strict=True):
            if observed.any():
                return sequence[np.argmax(observed)]
        return np.ones_like(sequences[0], shape=sequences[0].shape[1:])
    rows, observed = jnp.concatenate(sequences), jnp.concatenate(masks)
    return jnp.where(observed.any(), rows[jnp.argmax(observed)], 1)


def _padded(parts, masks, filler, members, t: int):
    """(rows (m, t, d), observed (m, t), inputs (m, t, g) or None) of some sequences."""
    xp = jnp if is_traced(parts, masks) else np

    def stacked(arrays, value):
        out = []
        for array in arrays:
            rest = xp.broadcast_to(value, (t - len(array), *array.shape[1:])).astype(array.dtype)
            out.append(xp.concatenate([array, rest]))
        return xp.stack(out)

    rows = [xp.where(masks[i][:, None], parts[0][i], filler) for i in members]
    inputs = stacked([parts[1][i] for i in members], 0) if len(parts) > 1 else None
    return stacked(rows, filler), stacked([masks[i] for i in members], False), inputs
