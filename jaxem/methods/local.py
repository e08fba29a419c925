"""The E-step of models whose q has no closed form: q is kept, and improved step by step."""

from typing import Any, NamedTuple

from jaxem.methods.em import Exact, summed
from jaxem.numerics.tree import pytree
from jaxem.passes.chunks import Sums
from jaxem.passes.collect import Prepared
from jaxem.protocol.capabilities import SmoothMap, has


class LocalMemory(NamedTuple):
    """q as the last E-step left it."""

    q: Any


@pytree
class LocalAscent(Exact):
    """q is what the model's `improve_q` makes of the q of the step before, from `init_q` on.

    For models with `init_q(params, x)`, `improve_q(params, x, q, weights) -> (q, statistics, F per
    unit (n,))`, which does not lower F, and `free_energy(params, x, q)`. The objective is F at that
    q, which never falls. `EM()` takes this rule for such models.
    """

    steady = False
    prepares = True

    def stationary(self, model, closed):
        return model.smooth_map() if has(model, SmoothMap) else None

    def start(self, model, params, x, weights):
        return LocalMemory(model.init_q(params, x.x if isinstance(x, Prepared) else x))

    def collect(self, model, params, x, weights, memory):
        q, statistics, value = model.improve_q(params, x, memory.q, weights)
        return Sums(statistics, *summed(weights, value)), LocalMemory(q)
