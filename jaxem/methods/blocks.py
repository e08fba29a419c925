"""Expectation / conditional maximisation (ECM): an M-step block by block of the params."""

from typing import Any

import jax

from jaxem.methods.em import has_stationary_map
from jaxem.methods.m_steps import Gradient
from jaxem.numerics.paths import names_of_leaf
from jaxem.numerics.tree import pytree
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.posterior import responsibilities_of, with_responsibilities
from jaxem.wrappers.restricted import hold


@pytree(static=("blocks",))
class Blocks:
    """An M-step that maximises F over each block of params in turn, with the others fixed.

    Each block has the M-step in closed form of the model `Restricted` to that block, else a
    gradient rule. F never falls. Source: Meng & Rubin 1993.

    Args:
      blocks: a sequence of blocks, each a path to leaves such as "components.mean", or a tuple of
        paths. Every leaf is in exactly one.
      otherwise: the rule for blocks without a closed form.

    Each block takes one pass over the data, or several by a gradient rule. Raises TypeError for
    blocks that are no paths, ValueError, in `fit`, where a leaf is in no block or in two.

    `EM(m_step=Blocks(["weights", "components.mean", "components.covariance"]))` is ECM.
    """

    blocks: Any
    otherwise: Any = Gradient()

    def __post_init__(self):
        is_sequence = isinstance(self.blocks, (tuple, list))
        if not is_sequence or not all(isinstance(b, (str, tuple, list)) for b in self.blocks):
            raise TypeError(
                "blocks must be a sequence of paths or of tuples of paths, such as "
                f"('weights', 'components'), got {self.blocks!r}"
            )
        blocks = tuple((b,) if isinstance(b, str) else tuple(b) for b in self.blocks)
        object.__setattr__(self, "blocks", blocks)
        if not callable(getattr(self.otherwise, "improve", None)):
            raise TypeError(
                f"otherwise must be a rule such as jaxem.Gradient(), got {self.otherwise!r}"
            )

    @property
    def steady(self):
        """Whether the M-step is the same map at every evaluation."""
        return self.otherwise.steady

    def stationary(self, model, closed):
        """The `stationary` of the rule `otherwise`."""
        return has_stationary_map(self.otherwise) and self.otherwise.stationary(model, closed)

    def start(self, model, params, x, weights):
        """The state of the rule `otherwise` for every block, () for one with a closed form."""
        parts = self._parts(model, params)
        return tuple(
            () if exact else self.otherwise.start(part, params, x, weights) for part, exact in parts
        )

    def improve(self, model, params, x, weights, q, memory):
        """(params, memory) after one cycle, from params at which q was computed."""
        memories = []
        for (part, exact), block_memory in zip(self._parts(model, params), memory, strict=True):
            if exact:
                block_q = q
                if has(model, FiniteLatents):  # other parts of q depend on params
                    block_q = with_responsibilities(
                        model.posterior(params, x)[0], responsibilities_of(q)
                    )
                stats = model.statistics(params, x, block_q, weights)
                params = part.maximize(params, stats)
            else:
                params, block_memory = self.otherwise.improve(
                    part, params, x, weights, q, block_memory
                )
            memories.append(block_memory)
        return params, tuple(memories)

    def _parts(self, model, params):
        """For every block, the model restricted to it, and whether its M-step has a closed form."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        names = [name for path, _ in leaves for name in names_of_leaf(path)]
        inside = [[n for n in names if _under(n, block)] for block in self.blocks]
        for name in names:
            count = sum(name in block for block in inside)
            if count != 1:
                raise ValueError(
                    f"blocks must hold every leaf of params once, {name!r} stands in {count} of "
                    f"them: the leaves are {', '.join(names)}"
                )
        parts = [hold(model, [n for n in names if n not in block]) for block in inside]
        has_m_step = defines(model, "statistics", "maximize")
        return [(part, has_m_step and part.step(params) is not None) for part in parts]


def _under(name: str, paths) -> bool:
    return any(not p or name == p or name.startswith(p + ".") for p in paths)
