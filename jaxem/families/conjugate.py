"""The base of the conjugate posteriors of discrete families, as banks.

E[log p(x | k)] is linear in the same features as log p(x | k), with E[η] and E[A] for η and A.
"""

from typing import Any

import jax

from jaxem.families.exponential_family import ExponentialFamily
from jaxem.numerics.tree import pytree
from jaxem.protocol.model import name_of
from jaxem.protocol.priors import DirichletPrior
from jaxem.protocol.spaces import ABOVE_ZERO


@pytree(eq=False)
class DirichletPosterior:
    """q(probs) = Dirichlet(concentration): (k, v) or (k, d, v), 1 beyond a column's levels."""

    concentration: Any


class Conjugate(ExponentialFamily):
    """A bank with the data, features and base measure of its `family`.

    `estimate` returns the posterior; for a component to which no unit belongs it is the prior.
    """

    @property
    def domain(self):
        return self.family.domain

    def _name(self):
        return name_of(self.family)

    def variational(self):
        return self

    def maximize(self, params, stats):
        return self.estimate(stats.count, stats.total)

    @property
    def missing(self):
        return self.family.missing

    @property
    def unobserved(self):
        return self.family.unobserved

    def masks(self, mask, m):
        return self.family.masks(mask, m)

    def features(self, x):
        return self.family.features(x)

    def base_measure(self, x):
        return self.family.base_measure(x)

    def embed(self, x):
        return self.family.embed(x)

    def spaces(self, params):
        return jax.tree.map(lambda _: ABOVE_ZERO, params)

    @property
    def _prior(self):
        """The prior of the family, or a uniform one over probabilities where it has none."""
        return DirichletPrior(1.0) if self.family.prior is None else self.family.prior
