"""The protocol: five pure functions, their defaults, and banks of components.

Axes everywhere: `n` units, `k` components, `d` features, `m` sufficient statistics of one unit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.softmax import normalize
from jaxem.protocol.held import averaged, is_held
from jaxem.protocol.spaces import REAL, Coordinates

IMPOSSIBLE = -1e30
"""Stands for log 0 inside a matrix product, where −∞ · 0 would be NaN."""


class Model:
    """A model with latent variables, as five pure functions.

    Write `init` and, for finite latent variables, `log_joint`; or `posterior` itself. Then
    `statistics` and `maximize`. Where only a bound is known, write `init`, `free_energy` and
    `init_q`. Everything else has a default. The one law: statistics are
    additive over units and linear in the weights.
    """

    def init(self, key, x, weights):
        """A start: params, from a JAX key, the data and the weights (n,). Pure JAX."""
        raise NotImplementedError(f"{type(self).__name__} must define init(key, x, weights)")

    def log_joint(self, params, x):
        """log p(x, z | params) for every value of a finite latent variable, shape (n, k)."""
        raise NotImplementedError(
            f"{type(self).__name__} must define log_joint(params, x) or posterior(params, x)"
        )

    def posterior(self, params, x):
        """The E-step: q = argmax F, and F's value per unit (n,), here log p(x | params)."""
        joint = self.log_joint(params, x)
        n = jax.tree.leaves(x)[0].shape[0]
        if jnp.ndim(joint) != 2 or joint.shape[0] != n:
            name = type(getattr(self, "inner", self)).__name__
            raise TypeError(
                f"{name}.log_joint must return shape (n, k) with n = {n}, got {jnp.shape(joint)}"
            )
        return normalize(joint)

    def init_q(self, params, x):
        """Where `free_energy` is all that is known: the params of a first q, any tree."""
        raise NotImplementedError(f"{type(self).__name__} does not define init_q(params, x)")

    def free_energy(self, params, x, q):
        """F(q, params) per unit (n,), for q as in `init_q`; a model that knows no posterior."""
        raise NotImplementedError(
            f"{type(self).__name__} does not define free_energy(params, x, q)"
        )

    def statistics(self, params, x, q, weights):
        """Expected sufficient statistics under q: additive over units, linear in weights (n,)."""
        raise NotImplementedError(
            f"{type(self).__name__} must define statistics(params, x, q, weights)"
        )

    def fused(self, x):
        """A `Fused` sweep for data shaped like x, where many units have a faster one, or None."""
        return None

    def maximize(self, params, stats):
        """The M-step: argmax over params of E_q[log p(x, z | params)] + log_prior(params)."""
        raise NotImplementedError(f"{type(self).__name__} must define maximize(params, stats)")

    def closed(self, x) -> bool:
        """Whether there is an M-step in closed form for data shaped like x."""
        return not lacks(self, "statistics", "maximize")

    def restricted(self, held):
        """`maximize(params, stats)` where `held`, a tree like params of `Held`, restricts them, or
        None where that has no closed form. Fixed entries may come out as anything."""
        free = all(h.free for h in jax.tree.leaves(held, is_leaf=is_held))
        return self.maximize if free else None

    def settle(self, params, old):
        """params with what is held in its place, next to `old` ones; here nothing is."""
        return params

    def coordinates(self, params):
        """params as one vector without constraints: `Coordinates`."""
        return Coordinates(self.spaces(params), params)

    def log_prior(self, params):
        """log p(params); 0 by default. It stands here and in `maximize`, never in one alone."""
        return 0.0

    def spaces(self, params):
        """The `Space` of every leaf, a tree like params; by default all real numbers.

        It is for accelerators and gradients alone; exact EM does not ask.
        """
        return jax.tree.map(lambda _: REAL, params)

    def information(self, params):
        """The complete data's information on every entry, per unit, in charts: a tree that
        broadcasts to params."""
        return jax.tree.map(lambda space, leaf: space.metric(leaf), self.spaces(params), params)

    def whitened(self, params, step):
        """A step in charts, a tree like params, in standard errors of a unit of complete data,
        uncorrelated: the metric of accelerators. By default as if entries were uncorrelated."""
        metric = self.information(params)
        return jax.tree.map(lambda s, m: s * jnp.sqrt(m), step, metric)

    def log_prob(self, params, x):
        """log p(x | params) per unit, shape (n,)."""
        return self.posterior(params, x)[1]

    def sample(self, key, params, n: int):
        """Draws n units."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample(key, params, n)")

    def n_parameters(self, params) -> int:
        """The number of free parameters, for BIC and AIC."""
        raise NotImplementedError(f"{type(self).__name__} does not define n_parameters(params)")

    def degenerate(self, params):
        """Whether params lie on a floor that keeps the likelihood bounded; a boolean scalar."""
        return False

    def valid(self, x):
        """Which values of the data the model can explain at all: a boolean tree shaped like x.

        Written with operators alone, so that it serves NumPy and JAX arrays alike.
        """
        return jax.tree.map(finite, x)

    def support(self) -> str:
        """What `valid` accepts, in words, for error messages."""
        return "finite numbers"

    def check(self, x) -> None:
        """Raises ValueError or TypeError where the shape of x is not one this model can take."""

    def check_params(self, params) -> None:
        """Raises ValueError where given params, as NumPy arrays, are outside the model's space."""

    adds = hides = ()
    """What a wrapper defines of its own, and what it does not pass on, as `lacks` sees it."""

    uninformed = False
    """Whether the model, or the bank, lacks a prior that `informed` can take from the data."""


class Bank(Model):
    """k components at once: params, q and evidence gain a component axis, weights are (n, k).

    `init(key, x, weights)` starts every component from its own column of weights;
    `posterior(params, x)` returns evidence (n, k), the log density of every unit under every
    component. Mixtures and hidden Markov models take a bank and never name a family.
    """

    @property
    def separate(self):
        """Whether all leaves of params have the leading axis k, and a component's density takes its
        own entries alone, its M-step its own weights alone. A class says so for itself."""
        return vars(type(self)).get("_separate", False)

    def embed(self, x):
        """Points (n, e) whose Euclidean distances suit k-means++, or None where there are none."""
        return jnp.asarray(x, jnp.result_type(float)) if hasattr(x, "ndim") else None

    def linear(self, x):
        """A `Linear` form for data shaped like x, or None where there is none worth taking."""
        return None

    def restricted(self, held):
        """Components that are held as a whole; those that are equal share their statistics.

        They take the mean of these: that counts a prior as often as there are components.
        """
        leaves = jax.tree.leaves(held, is_leaf=is_held)
        if all(h.free for h in leaves):
            return self.maximize
        rows = [h.rows for h in leaves]
        if any(r is None or not all(map(np.array_equal, r, rows[0])) for r in rows):
            return None
        group = rows[0][1]

        def maximize(params, stats):
            return self.maximize(params, jax.tree.map(lambda s: averaged(group, s), stats))

        return maximize

    def variational(self):
        """The bank of this one's components with params that are not known but distributed.

        Its params are those of a conjugate posterior q; its evidence (n, k) is E_q[log p(x | k)]
        and its log prior −KL(q ‖ prior), both complete. `predictive(params, x)` (n, k) is
        log E_q[p(x | k)].
        """
        raise TypeError(
            f"{type(self).__name__} has no conjugate posterior: BayesianMixture takes Normal, "
            "Poisson, Bernoulli, Categorical, Multinomial, or a Product of them"
        )

    def informed(self, x, weights, k: int):
        """This bank with a vague prior of the data's location and scale in place of None."""
        return self

    def degenerate(self, params):
        """Which components lie on a floor: (k,) booleans, or one for all."""
        return jnp.zeros((), bool)

    def sample(self, key, params, z):
        """Draws one unit from component z[i] for every i; z has shape (n,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample(key, params, z)")

    def check(self, x) -> None:
        require_matrix(x, type(self).__name__)


def lacks(model, *names) -> bool:
    """Whether a model defines none of these functions: it has the defaults, or nothing."""
    while isinstance(model, Model) and hasattr(model, "_wrapped"):
        if any(name in model.adds for name in names):
            return False
        names = [name for name in names if name not in model.hides]
        model = model._wrapped
    default = [getattr(type(model), name, None) == getattr(Model, name) for name in names]
    own = [callable(getattr(model, name, None)) for name in names]
    return all(d or not o for d, o in zip(default, own, strict=True))


def finite(x):
    """Which entries are finite, by operators that NumPy and JAX share."""
    return abs(x) < float("inf")


def require_matrix(x, name: str) -> None:
    """ValueError unless x is one array of shape (n, d)."""
    if not hasattr(x, "ndim"):
        raise TypeError(f"{name} takes data as one array of shape (n, d), got {type(x).__name__}")
    if x.ndim == 2:
        return
    remedy = {
        1: "for one feature use x[:, None]",
        3: "for many data sets use jaxem.Batch",
    }.get(x.ndim, "reshape it to units by features")
    raise ValueError(f"{name} takes data of shape (n, d), got shape {tuple(x.shape)}: {remedy}")
