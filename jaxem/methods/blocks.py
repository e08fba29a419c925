"""Expectation / conditional maximisation: the M-step as a cycle over blocks of leaves."""

from typing import Any

import jax

from jaxem.methods.em import knows_rest
from jaxem.methods.m_steps import Gradient
from jaxem.numerics.tree import pytree
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.posterior import shares, with_shares
from jaxem.wrappers.restricted import hold


@pytree(static=("blocks",))
class Blocks:
    """The M-step as a cycle: each block of params is maximised over with the others held (ECM).

    Every part has the M-step in closed form that `Restricted` knows, else a gradient rule. F never
    falls. Source: Meng & Rubin 1993.

    Args:
      blocks: a sequence of blocks, each a path to leaves such as "components.mean", or a tuple of
        paths. Every leaf stands in exactly one.
      otherwise: the rule for blocks without a closed form.

    Each block takes a pass over the data, a gradient rule more. Raises ValueError, in `fit`, where
    a leaf is missing or stands in two blocks.
    """

    blocks: Any
    otherwise: Any = Gradient()

    def __post_init__(self):
        blocks = tuple((b,) if isinstance(b, str) else tuple(b) for b in self.blocks)
        object.__setattr__(self, "blocks", blocks)
        if not callable(getattr(self.otherwise, "improve", None)):
            raise TypeError(
                f"otherwise must be a rule such as jaxem.Gradient(), got {self.otherwise!r}"
            )

    @property
    def steady(self):
        """Whether it is one and the same map at every step."""
        return self.otherwise.steady

    def stationary(self, model, closed):
        return knows_rest(self.otherwise) and self.otherwise.stationary(model, closed)

    def start(self, model, params, x, weights):
        parts = self._parts(model, params)
        return tuple(
            () if exact else self.otherwise.start(part, params, x, weights) for part, exact in parts
        )

    def improve(self, model, params, x, weights, q, memory):
        """(params, memory) after one cycle, from params at which q was taken."""
        kept = []
        for (part, exact), own in zip(self._parts(model, params), memory, strict=True):
            if exact:
                here = q
                if has(model, FiniteLatents):  # what else q holds belongs to these params
                    here = with_shares(model.posterior(params, x)[0], shares(q))
                stats = model.statistics(params, x, here, weights)
                params = part.maximize(params, stats)
            else:
                params, own = self.otherwise.improve(part, params, x, weights, q, own)
            kept.append(own)
        return params, tuple(kept)

    def _parts(self, model, params):
        """For every block, the model of it alone, and whether that has a closed form."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        names = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves]
        inside = [[n for n in names if _under(n, block)] for block in self.blocks]
        for name in names:
            many = sum(name in block for block in inside)
            if many != 1:
                raise ValueError(
                    f"blocks must hold every leaf of params once, {name!r} stands in {many} of "
                    f"them: the leaves are {', '.join(names)}"
                )
        parts = [hold(model, [n for n in names if n not in block]) for block in inside]
        able = defines(model, "statistics", "maximize")
        return [(part, able and part.step(params) is not None) for part in parts]


def _under(name: str, paths) -> bool:
    return any(not p or name == p or name.startswith(p + ".") for p in paths)
