"""What the tests of gradients share: a problem, differences, and products of trees."""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

TIGHT = {"tol": 1e-13, "max_iter": 20_000}
FAST = {}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions lack an option
    FAST = {"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True}
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), k=2)


def groups(seed=0, n=60, gap=2.5, d=2):
    """Two overlapping groups of unequal size."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + gap * (np.arange(n)[:, None] < n / 3)


X = groups()
LABELS = jaxem.Labels((np.arange(60) < 20).astype(int))
OTHER = np.random.default_rng(9).normal(size=X.shape)


@functools.cache
def first():
    """The params at the end of a fit of X, as values also where the caller is traced."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, jaxem.fit(MODEL, X, init=LABELS, **TIGHT).params)


def fitted(x, **options):
    return jaxem.fit(MODEL, x, **{"init": first()} | TIGHT | options)


def loss(x, **options):
    return dotted(fitted(x, **options).params)


def fast(function):
    return jax.jit(function, compiler_options=FAST)


def dotted(params, seed=5):
    """A number that every entry of params moves."""
    rng = np.random.default_rng(seed)
    return sum(jnp.vdot(rng.normal(size=jnp.shape(a)), a) for a in jax.tree.leaves(params))


def difference(function, point, direction, h=1e-4):
    """A central difference of fourth order along a direction."""

    def at(step):
        return function(jax.tree.map(lambda a, b: a + step * b, point, direction))

    near, far = (jax.tree.map(lambda a, b: np.subtract(a, b), at(s), at(-s)) for s in (h, 2 * h))
    return jax.tree.map(lambda a, b: (8 * a - b) / (12 * h), near, far)


def inner(gradient, direction):
    """Σ gradient · direction over the leaves of two trees."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    return float(sum(np.vdot(g, d) for g, d in pairs))
