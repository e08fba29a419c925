"""`Each`: a model of one component, lifted to a bank."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.numerics.tree import pytree
from jaxem.protocol.capabilities import defines
from jaxem.protocol.counts import keep_empty
from jaxem.protocol.derived import whitened
from jaxem.protocol.model import Bank, Model
from jaxem.protocol.units import inward, outward, standardized
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopt import adopt


class EachStatistics(NamedTuple):
    count: Any
    inner: Any


AS_MODEL = ("sample", "standardize", "inward", "outward", "whitened", "statistics", "maximize")
"""The functions that the bank defines if its model does."""


@pytree
class Each(Wrapper, Bank):
    """Lifts a model of one component to a bank of k by `jax.vmap` over its parameters.

    `model.init(key, x, weights)`, `posterior`, `statistics` and `maximize` are written for one
    component with weights (n,); the lifted params are the same tree with a leading axis k. The
    model may be of any class: `Mixture(Each(MyComponent()), k=3)`. Raises TypeError for a class, a
    bank, or an object without `init`.

    model: a model of one component, with data x (n, d) or a tree of arrays. Functions that are not
    listed are those of the model.
    """

    model: Any

    embed = Bank.embed

    def __post_init__(self):
        if isinstance(self.model, type):
            name = self.model.__name__
            raise TypeError(f"model must be an instance, got the class: write Each({name}(...))")
        if isinstance(self.model, Bank):
            name = type(self.model).__name__
            raise TypeError(f"{name} is a bank of k components already: use it without Each")
        if not isinstance(self.model, Model) and not defines(self.model, "init"):
            raise TypeError(
                f"model must be a model of one component, with init(key, x, weights), got "
                f"{self.model!r:.60}"
            )
        object.__setattr__(self, "model", adopt(self.model))

    @property
    def wrapped(self):
        return self.model

    def _defines(self, name):
        return defines(self.model, name) if name in AS_MODEL else name in vars(Each)

    def init(self, key, x, weights):
        keys = jax.random.split(key, weights.shape[1])
        return jax.vmap(self.model.init, (0, None, 1))(keys, x, weights)

    def posterior(self, params, x):
        q, evidence = jax.vmap(self.model.posterior, (0, None))(params, x)
        return q, evidence.T

    def statistics(self, params, x, q, weights):
        one = jax.vmap(self.model.statistics, (0, None, 0, 1))
        return EachStatistics(weights.sum(0), one(params, x, q, weights))

    def _size_of_terms(self, params, stats):
        def of_component(params, stats):
            return jnp.asarray(self.model._size_of_terms(params, stats))

        return jax.vmap(of_component)(params, stats.inner).sum()

    def maximize(self, params, stats):
        updated = jax.vmap(self.model.maximize)(params, stats.inner)
        return keep_empty(stats.count, updated, params)

    def whitened(self, params, step):
        return jax.vmap(lambda p, s: whitened(self.model, p, s))(params, step)

    def log_prior(self, params):
        return jnp.sum(jax.vmap(lambda p: jnp.asarray(self.model.log_prior(p)))(params))

    def degenerate(self, params):
        return jax.vmap(lambda p: jnp.asarray(self.model.degenerate(p)))(params)

    def n_parameters(self, params):
        k = jax.tree.leaves(params)[0].shape[0]
        return k * self.model.n_parameters(jax.tree.map(lambda leaf: leaf[0], params))

    def sample(self, key, params, z):
        def draw(key, p):
            return self.model.sample(key, p, z.shape[0])

        k = jax.tree.leaves(params)[0].shape[0]
        draws = jax.vmap(draw)(jax.random.split(key, k), params)
        return jax.tree.map(lambda a: a[z, jnp.arange(z.shape[0])], draws)

    def standardize(self, x, weights):
        inner = standardized(self.model, x, weights)
        return inner._replace(model=Each(inner.model))

    def inward(self, units, params):
        return jax.vmap(lambda p: inward(self.model, units, p))(params)

    def outward(self, units, params):
        return jax.vmap(lambda p: outward(self.model, units, p))(params)
