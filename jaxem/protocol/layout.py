"""`Layout`: params as one flat vector, with paths to entries and checks of fixed and tied ones."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.paths import names_of_leaf, values_of_leaf
from jaxem.protocol.held import Held
from jaxem.protocol.spaces import Positive, PositiveDefinite, Simplex, UnitInterval

SUM_TOLERANCE = 1e-5
"""The largest deviation from 1 of the sum of the fixed entries of a probability vector."""


class Layout:
    """The leaves of params in one flat vector, in the order of `ravel_pytree`.

    A block is the set of entries that a space constrains jointly: the last axis of a simplex, the
    last two axes of a positive definite matrix, else a single entry.

    A group is a set of tied entries. It is given as an integer array (p,) with, for every entry,
    the first flat index of its group: that of the entry itself where it is not tied.
    """

    def __init__(self, params, spaces):
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(params)
        self.paths = [path for path, _ in leaves]
        self.names = [" and ".join(names_of_leaf(path)) for path in self.paths]
        self.values = [leaf for _, leaf in leaves]
        self.shapes = [np.shape(leaf) for leaf in self.values]
        self.spaces = jax.tree.leaves(spaces)
        sizes = [math.prod(shape) for shape in self.shapes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self.size = int(self.starts[-1])

    def leaves(self):
        """(name, space, flat indices in the shape of the leaf) of every leaf."""
        for i, (name, space) in enumerate(zip(self.names, self.spaces, strict=True)):
            entries = np.arange(self.starts[i], self.starts[i + 1]).reshape(self.shapes[i])
            yield name, space, entries

    def places(self, path: str):
        """The flat indices of the entries that a path names, one array a leaf, or value of a leaf.

        ValueError where it names none.
        """
        matched = re.fullmatch(r"([^\[\]]*)(?:\[([-\d\s:,]*)\])?", path)
        values = {}
        for leaf_path, (_, _, entries) in zip(self.paths, self.leaves(), strict=True):
            values |= values_of_leaf(leaf_path, entries)
        known_leaves = ", ".join(f"{name} {entries.shape}" for name, entries in values.items())
        if not matched:
            raise ValueError(f"{path!r} is no path such as 'components.mean[0]' or 'weights'")
        name, index = matched.groups()
        leaves = [
            entries
            for n, entries in values.items()
            if not name or n == name or n.startswith(name + ".")
        ]
        try:
            places = [entries[_parsed_index(index)] if index else entries for entries in leaves]
        except (IndexError, ValueError):
            places = []
        if not places or any(entries.size == 0 for entries in places):
            raise ValueError(f"{path!r} names no entry of the params, which are: {known_leaves}")
        return places

    def tie(self, group, tie) -> None:
        """Joins the groups of the entries that a tie names, in place.

        tie: a path, whose first axis is tied, or several paths to entries of the same shapes.
        """
        if isinstance(tie, str):
            parts = [
                [entries[i] for i in range(len(entries))]
                for entries in self.places(tie)
                if entries.ndim
            ]
            if not parts:
                raise ValueError(f"tied: {tie!r} has no axis along which it could be equal")
        else:
            named = [self.places(path) for path in tie]
            shapes = [[entries.shape for entries in places] for places in named]
            if len(named) < 2 or any(s != shapes[0] for s in shapes):
                raise ValueError(
                    f"tied: {tie} must be two or more paths to entries of the same shapes, got "
                    f"{shapes}"
                )
            parts = zip(*named, strict=True)
        for first, *others in parts:
            for other in others:
                for a, b in zip(np.ravel(first), np.ravel(other), strict=True):
                    low, high = sorted((group[a], group[b]))
                    if low != high:
                        group[group == high] = low

    def held(self, mask, group):
        """A tree like params with a `Held` for every leaf; None where a tie joins two leaves."""
        held = []
        for _, _, entries in self.leaves():
            local_group = group[entries] - (entries.flat[0] if entries.size else 0)
            if ((local_group < 0) | (local_group >= entries.size)).any():
                return None
            held.append(Held(mask[entries], local_group))
        return jax.tree.unflatten(self.tree, held)

    def require(self, held, given, group) -> None:
        """ValueError where these entries cannot be fixed or tied together.

        held (p,): all fixed entries. given (p,): those with a given value; the other fixed entries
        keep their initial values.
        """
        tied = np.bincount(group, minlength=self.size)[group] > 1
        held_in_group = np.bincount(group[held], minlength=self.size)[group]
        all_held = held_in_group == np.bincount(group, minlength=self.size)[group]
        for name, space, entries in self.leaves():
            if (tied[entries] & space.constant(entries.shape)).any():
                raise ValueError(f"{name} has entries that are constant: leave them out of a tie")
            if (tied & (given | (held_in_group > 0) & ~all_held))[entries].any():
                raise ValueError(
                    f"{name} has entries that are both fixed and tied to others: fix every one of "
                    "them instead"
                )
            if space.freedom(entries.shape) is not None:
                if tied[entries].any() or (held[entries].any() and not held[entries].all()):
                    raise ValueError(
                        f"{name} holds covariances with common parts: fix all of them, or none"
                    )
                continue
            block = _block_size(space, entries.shape)
            if block == 1:
                continue
            rows = entries.reshape(-1, block)
            leader = group[rows]
            offset = leader - leader[:, :1]
            whole_rows = (offset == np.arange(block)).all(1) & (
                (leader[:, 0] - rows[0, 0]) % block == 0
            )
            within_row = ((leader >= rows[:, :1]) & (leader <= rows[:, -1:])).all(1)
            if isinstance(space, PositiveDefinite):
                partly_held = held[rows].any(1) & ~held[rows].all(1)
                if partly_held.any() or not whole_rows.all():
                    raise ValueError(
                        f"{name} holds matrices of shape {entries.shape[-2:]}: fix or tie whole "
                        "ones, not a part of one"
                    )
            elif not (whole_rows | within_row).all():
                raise ValueError(
                    f"{name} holds shares: tie entries of one row of them, or whole rows"
                )

    def require_columns(self, group) -> None:
        """ValueError where a tie joins entries that standardised data transform differently."""
        for name, space, entries in self.leaves():
            if isinstance(space, Simplex):
                continue  # probabilities have no unit
            width = max(1, math.prod(entries.shape[1:]))
            local_group = group[entries] - (entries.flat[0] if entries.size else 0)
            column = np.arange(entries.size).reshape(entries.shape) % width
            if (
                (local_group < 0) | (local_group >= entries.size) | (local_group % width != column)
            ).any():
                raise ValueError(
                    f"tied: {name} is tied to another column or leaf, which jaxem standardises "
                    "differently: tie entries of different components"
                )

    def require_values(self, values, mask) -> None:
        """ValueError where a fixed value is outside the space of its leaf."""
        for name, space, entries in self.leaves():
            value, is_fixed = values[entries], mask[entries]
            low, high = {Positive: (0, np.inf), UnitInterval: (0, 1), Simplex: (0, 1)}.get(
                type(space), (-np.inf, np.inf)
            )
            is_constant = is_fixed & space.constant(entries.shape)
            if np.any(value[is_constant]):
                raise ValueError(f"fixed: {name} {space.outside(value)}")
            is_wrong = is_fixed & ~((value >= low) & (value <= high) & np.isfinite(value))
            if is_wrong.any():
                raise ValueError(
                    f"fixed: {name} must be finite and in [{low}, {high}], got {value[is_wrong][0]}"
                )
            if isinstance(space, Simplex) and is_fixed.any():
                total = np.where(is_fixed, value, 0).sum(-1)
                all_fixed = is_fixed.all(-1)
                if (all_fixed & (abs(total - 1) > SUM_TOLERANCE)).any() or (
                    ~all_fixed & (total >= 1)
                ).any():
                    raise ValueError(
                        f"fixed: {name} must sum to 1 where all are fixed, and to less where some "
                        f"are, got {np.ravel(total)[0]:.6g}"
                    )

    def require_inside(self) -> None:
        """ValueError where one of these params, as NumPy arrays, lies outside its space."""
        for name, space, value in zip(self.names, self.spaces, self.values, strict=True):
            wrong = space.outside(np.asarray(value))
            if wrong is not None:
                raise ValueError(f"init {name} {wrong}")

    def freedom(self, held=None, group=None) -> int:
        """The number of free parameters: a simplex of v entries has v − 1, a symmetric matrix
        d (d + 1) / 2, a matrix of loadings its entries less the rotations; fixed entries have none
        and a group counts once."""
        held = np.zeros(self.size, bool) if held is None else held
        group = np.arange(self.size) if group is None else group
        group = self.equal()[group]
        count, scalars = 0, []
        for _, space, entries in self.leaves():
            related = space.freedom(entries.shape)
            if related is not None:
                count += 0 if held[entries].all() else related
                continue
            block = _block_size(space, entries.shape)
            rows = entries.reshape(-1, block)
            is_leader = (group[rows] >= rows[:, :1]).all(1)
            if block == 1 and not isinstance(space, (Simplex, PositiveDefinite)):
                scalars.append(entries[~(held[entries] | space.constant(entries.shape))])
                if redundant := space.redundant(entries.shape):
                    rows = entries.reshape(-1, math.prod(entries.shape[-2:]))
                    is_free = (group[rows] >= rows[:, :1]).all(1) & ~held[rows].any(1)
                    count -= redundant * int(is_free.sum())
            elif isinstance(space, PositiveDefinite):
                d = entries.shape[-1]
                count += int((is_leader & ~held[rows].any(1)).sum()) * d * (d + 1) // 2
            else:
                for row in rows[is_leader]:
                    count += max(len(np.unique(group[row[~held[row]]])) - 1, 0)
        return count + len(np.unique(group[np.concatenate(scalars)])) if scalars else count

    def equal(self):
        """The groups of entries that the spaces of their leaves make equal."""
        group = np.arange(self.size)
        for _, space, entries in self.leaves():
            local = space.groups(entries.shape)
            if local is not None:
                group[entries] = entries.flat[0] + local
        return group

    def rescaled(self, params, held):
        """params in which the free entries of a probability vector are scaled so that they and the
        fixed ones sum to 1."""
        leaves = []
        for leaf, (_, space, entries) in zip(jax.tree.leaves(params), self.leaves(), strict=True):
            mask = held[entries]
            if isinstance(space, Simplex):
                to_rescale = mask.any(-1, keepdims=True) & ~mask
                if to_rescale.any():
                    remainder = 1 - jnp.where(mask, leaf, 0).sum(-1, keepdims=True)
                    total = jnp.where(mask, 0, leaf).sum(-1, keepdims=True)
                    even = remainder / np.maximum((~mask).sum(-1, keepdims=True), 1)
                    scaled = leaf * (remainder / jnp.where(total > 0, total, 1))
                    leaf = jnp.where(to_rescale, jnp.where(total > 0, scaled, even), leaf)
            leaves.append(leaf)
        return jax.tree.unflatten(self.tree, leaves)

    def neutral(self, like):
        """Some legal params with the shapes and dtypes of `like`."""

        def legal_leaf(leaf, space):
            value = 1.0 if isinstance(space, Positive) else 0.0
            value = 0.5 if isinstance(space, UnitInterval) else value
            value = 1 / leaf.shape[-1] if isinstance(space, Simplex) else value
            if isinstance(space, PositiveDefinite):
                value = jnp.eye(leaf.shape[-1])
            return jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape)

        pairs = zip(jax.tree.leaves(like), self.spaces, strict=True)
        return jax.tree.unflatten(self.tree, [legal_leaf(*pair) for pair in pairs])


def _block_size(space, shape) -> int:
    if isinstance(space, Simplex):
        return shape[-1]
    return shape[-1] * shape[-2] if isinstance(space, PositiveDefinite) else 1


def _parsed_index(text: str):
    """The index of a text such as "0, 1:3"."""
    parts = [part.strip() for part in text.split(",")]

    def one(part):
        ends = [int(end) if end.strip() else None for end in part.split(":")]
        return slice(*ends) if ":" in part else ends[0]

    return tuple(one(part) for part in parts)
