"""Screening of restarts: many short climbs, of which the best are continued."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxem.data.options import integer
from jaxem.protocol.status import Status


@dataclass(frozen=True)
class Restarts:
    """A plan for `fit(..., restarts=...)`: a few steps from many starts, then climbs from the best.

    `result.restarts` holds all of them; those not continued have the status MAX_ITER of the
    screening. At equal cost, many short climbs find the best optimum more often than few full ones
    (Biernacki, Celeux & Govaert 2003, "small EM").

    Args:
      count: the number of starts.  screen_iters: EM steps of each in the screening.
      keep: the number of starts that are continued, 1 to count.

    Raises TypeError or ValueError where these are not such ints.
    """

    count: int
    screen_iters: int = 50
    keep: int = 1

    def __post_init__(self):
        for name in ("count", "screen_iters", "keep"):
            object.__setattr__(self, name, integer(getattr(self, name), name, 1))
        if self.keep > self.count:
            raise ValueError(f"keep must be at most count = {self.count}, got {self.keep}")


def promising(every, keep: int):
    """The best `keep` of the restarts, the last axis of `every.status`, and their params."""
    is_usable = (every.status == Status.CONVERGED) | (every.status == Status.MAX_ITER)
    score = jnp.where(is_usable & ~jnp.isnan(every.objective), every.objective, -jnp.inf)
    index = jax.lax.top_k(score, keep)[1]
    return index, jax.tree.map(lambda a: a[_at(index)], every.params)


def continued(every, index, later):
    """`every` with the fits at `index` replaced by their continuations `later`."""
    later = replace(later, n_iter=later.n_iter + every.n_iter[_at(index)])
    return jax.tree.map(lambda a, b: a.at[_at(index)].set(b), every, later)


def _at(index):
    """The index with which restarts `index` (..., keep) are taken from arrays (..., restarts,
    ...)."""
    return index if index.ndim == 1 else (jnp.arange(index.shape[0])[:, None], index)
