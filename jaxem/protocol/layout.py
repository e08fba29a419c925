"""Which entries of params are held and which are equal, and what the spaces of the leaves make of
it: paths, blocks (a simplex, a matrix), free parameters, checks."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.protocol.held import Held
from jaxem.protocol.spaces import Positive, PositiveDefinite, Simplex, UnitInterval

OFF = 1e-5
"""How far from 1 the sum of fixed shares may be."""


class Layout:
    """The leaves of params in one flat vector, in the order of `ravel_pytree`.

    A block is what a space takes as one: the last axis of a simplex, the last two of a positive
    definite matrix, else a single entry.
    """

    def __init__(self, params, spaces):
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(params)
        self.names = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves]
        self.values = [leaf for _, leaf in leaves]
        self.shapes = [np.shape(leaf) for leaf in self.values]
        self.spaces = jax.tree.leaves(spaces)
        sizes = [math.prod(shape) for shape in self.shapes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self.size = int(self.starts[-1])

    def leaves(self):
        """(name, space, flat indices in the leaf's shape) of every leaf."""
        for i, (name, space) in enumerate(zip(self.names, self.spaces, strict=True)):
            at = np.arange(self.starts[i], self.starts[i + 1]).reshape(self.shapes[i])
            yield name, space, at

    def places(self, path: str):
        """Flat indices of what a path names, one array a leaf. ValueError where that is nothing."""
        matched = re.fullmatch(r"([^\[\]]*)(?:\[([-\d\s:,]*)\])?", path)
        listed = ", ".join(f"{n} {s}" for n, s in zip(self.names, self.shapes, strict=True))
        if not matched:
            raise ValueError(f"{path!r} is no path such as 'components.mean[0]' or 'weights'")
        name, index = matched.groups()
        under = [
            at for n, _, at in self.leaves() if not name or n == name or n.startswith(name + ".")
        ]
        try:
            places = [at[_index(index)] if index else at for at in under]
        except (IndexError, ValueError):
            places = []
        if not places or any(at.size == 0 for at in places):
            raise ValueError(f"{path!r} names no entry of the params, which are: {listed}")
        return places

    def tie(self, group, tie) -> None:
        """Joins what a tie names, in place: (p,) first entries."""
        if isinstance(tie, str):
            parts = [[at[i] for i in range(len(at))] for at in self.places(tie) if at.ndim]
            if not parts:
                raise ValueError(f"tied: {tie!r} has no axis along which it could be equal")
        else:
            named = [self.places(path) for path in tie]
            shapes = [[at.shape for at in places] for places in named]
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
        """A tree like params of `Held`, or None where a tie joins two leaves."""
        found = []
        for _, _, at in self.leaves():
            local = group[at] - (at.flat[0] if at.size else 0)
            if ((local < 0) | (local >= at.size)).any():
                return None
            found.append(Held(mask[at], local))
        return jax.tree.unflatten(self.tree, found)

    def require(self, held, given, group) -> None:
        """ValueError where entries cannot be held as they are."""
        tied = np.bincount(group, minlength=self.size)[group] > 1
        part = np.bincount(group[held], minlength=self.size)[group]
        whole = part == np.bincount(group, minlength=self.size)[group]
        for name, space, at in self.leaves():
            if (tied & (given | (part > 0) & ~whole))[at].any():
                raise ValueError(
                    f"{name} has entries that are both fixed and tied to others: fix every one of "
                    "them instead"
                )
            block = _block(space, at.shape)
            if block == 1:
                continue
            rows = at.reshape(-1, block)
            leader = group[rows]
            apart = leader - leader[:, :1]
            aligned = (apart == np.arange(block)).all(1) & (
                (leader[:, 0] - rows[0, 0]) % block == 0
            )
            inside = ((leader >= rows[:, :1]) & (leader <= rows[:, -1:])).all(1)
            if isinstance(space, PositiveDefinite):
                some = held[rows].any(1) & ~held[rows].all(1)
                if some.any() or not aligned.all():
                    raise ValueError(
                        f"{name} holds matrices of shape {at.shape[-2:]}: fix or tie whole ones, "
                        "not a part of one"
                    )
            elif not (aligned | inside).all():
                raise ValueError(
                    f"{name} holds shares: tie entries of one row of them, or whole rows"
                )

    def require_columns(self, group) -> None:
        """ValueError where a tie joins entries that a change of units moves differently."""
        for name, _, at in self.leaves():
            width = max(1, math.prod(at.shape[1:]))
            local = group[at] - (at.flat[0] if at.size else 0)
            column = np.arange(at.size).reshape(at.shape) % width
            if ((local < 0) | (local >= at.size) | (local % width != column)).any():
                raise ValueError(
                    f"tied: {name} is tied to another column or leaf, which jaxem standardises "
                    "differently: tie entries of different components"
                )

    def require_values(self, values, mask) -> None:
        """ValueError where a fixed value lies outside its space."""
        for name, space, at in self.leaves():
            v, some = values[at], mask[at]
            low, high = {Positive: (0, np.inf), UnitInterval: (0, 1), Simplex: (0, 1)}.get(
                type(space), (-np.inf, np.inf)
            )
            wrong = some & ~((v >= low) & (v <= high) & np.isfinite(v))
            if wrong.any():
                raise ValueError(
                    f"fixed: {name} must be finite and in [{low}, {high}], got {v[wrong][0]}"
                )
            if isinstance(space, Simplex) and some.any():
                total = np.where(some, v, 0).sum(-1)
                full = some.all(-1)
                if (full & (abs(total - 1) > OFF)).any() or (~full & (total >= 1)).any():
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
        """The number of free parameters, by the spaces of the leaves."""
        held = np.zeros(self.size, bool) if held is None else held
        group = np.arange(self.size) if group is None else group
        count, single = 0, []
        for _, space, at in self.leaves():
            block = _block(space, at.shape)
            rows = at.reshape(-1, block)
            own = (group[rows] >= rows[:, :1]).all(1)
            if block == 1 and not isinstance(space, (Simplex, PositiveDefinite)):
                single.append(at[~held[at]])
            elif isinstance(space, PositiveDefinite):
                d = at.shape[-1]
                count += int((own & ~held[rows].any(1)).sum()) * d * (d + 1) // 2
            else:
                for row in rows[own]:
                    count += max(len(np.unique(group[row[~held[row]]])) - 1, 0)
        return count + len(np.unique(group[np.concatenate(single)])) if single else count

    def rescaled(self, params, held):
        """params whose free shares fill what the held ones of their row leave."""
        leaves = []
        for leaf, (_, space, at) in zip(jax.tree.leaves(params), self.leaves(), strict=True):
            mask = held[at]
            if isinstance(space, Simplex):
                part = mask.any(-1, keepdims=True) & ~mask
                if part.any():
                    left = 1 - jnp.where(mask, leaf, 0).sum(-1, keepdims=True)
                    total = jnp.where(mask, 0, leaf).sum(-1, keepdims=True)
                    even = left / np.maximum((~mask).sum(-1, keepdims=True), 1)
                    scaled = leaf * (left / jnp.where(total > 0, total, 1))
                    leaf = jnp.where(part, jnp.where(total > 0, scaled, even), leaf)
            leaves.append(leaf)
        return jax.tree.unflatten(self.tree, leaves)

    def neutral(self, like):
        """Legal params of these shapes and dtypes."""

        def one(leaf, space):
            value = 1.0 if isinstance(space, Positive) else 0.0
            value = 0.5 if isinstance(space, UnitInterval) else value
            value = 1 / leaf.shape[-1] if isinstance(space, Simplex) else value
            if isinstance(space, PositiveDefinite):
                value = jnp.eye(leaf.shape[-1])
            return jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape)

        pairs = zip(jax.tree.leaves(like), self.spaces, strict=True)
        return jax.tree.unflatten(self.tree, [one(*pair) for pair in pairs])


def _block(space, shape) -> int:
    if isinstance(space, Simplex):
        return shape[-1]
    return shape[-1] * shape[-2] if isinstance(space, PositiveDefinite) else 1


def _index(text: str):
    """The index that is written between brackets."""
    parts = [part.strip() for part in text.split(",")]

    def one(part):
        ends = [int(end) if end.strip() else None for end in part.split(":")]
        return slice(*ends) if ":" in part else ends[0]

    return tuple(one(part) for part in parts)
