"""A component whose units all have one value."""

from typing import Any

import jax.numpy as jnp

from jaxem.numerics.tree import pytree
from jaxem.protocol import domains
from jaxem.protocol.hyperparameters import finite_number
from jaxem.protocol.model import Bank


@pytree
class PointMass(Bank):
    """A component without params: log p(x | k) = 0 where every column is `value`, else −∞.

    value: a finite number.  x: (n, d), all of it `value`.  It is for `Components`, whose other
    parts allow other values. Its params are the empty tuple, and all its components are equal, so
    that one of them is enough. Raises TypeError or ValueError for another value. Source: zero
    inflation, Lambert 1992.

    Its density is with respect to a point mass, that of a continuous family with respect to length:
    a unit at `value` has density 1 here. Beside it, a continuous family has to exclude the value
    (`Gamma` and `LogNormal` do 0) or to have a finite density there; discrete families share the
    value with it (`Poisson`: zero inflation).
    """

    value: Any = 0.0

    def __post_init__(self):
        finite_number(self.value, "value", -float("inf"))

    @property
    def domain(self):
        return domains.Matrix(f"{self.value}", lambda x: x == self.value, discrete=True)

    def init(self, key, x, weights):
        return ()

    def posterior(self, params, x):
        return None, self.domain.outside(x, jnp.zeros((x.shape[0], 1), x.dtype))

    def statistics(self, params, x, q, weights):
        return ()

    def maximize(self, params, stats):
        return ()

    def spaces(self, params):
        return ()

    def n_parameters(self, params):
        return 0

    def sample(self, key, params, z):
        return jnp.full((z.shape[0], 1), self.value, jnp.result_type(float))

    def embed(self, x):
        return None
