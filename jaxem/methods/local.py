"""The E-step of models whose q has no closed form: a few steps from the q of the last E-step."""

from typing import Any, NamedTuple

from jaxem.methods.em import Exact, summed
from jaxem.numerics.tree import pytree
from jaxem.passes.chunks import Sums
from jaxem.passes.collect import Prepared
from jaxem.protocol.capabilities import SmoothMap, has


class LocalMemory(NamedTuple):
    """q after the last E-step."""

    q: Any


@pytree
class LocalAscent(Exact):
    """The model's `improve_q`, from the q of the last E-step; the first q is from `init_q`.

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
