"""`check_model`: tests of a user's model against the laws that EM needs."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.analysis.free_energy import free_energy
from jaxem.data import arrays as checks
from jaxem.data.options import as_key
from jaxem.fit import require_model
from jaxem.methods.em import EM
from jaxem.methods.suited import suited
from jaxem.numerics.softmax import normalize
from jaxem.numerics.tree import float_dtype, over_units
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.posterior import expectation, responsibilities_of
from jaxem.protocol.returned import WrongReturn
from jaxem.protocol.units import standardized
from jaxem.wrappers.adopt import adopt
from jaxem.wrappers.factored import factored

ASCENT_STEPS = 10
"""The number of EM steps whose objective must not fall."""


@dataclass(frozen=True)
class Findings:
    """passed: the titles of the checks that hold; problems: a sentence for each that does not."""

    passed: tuple
    problems: tuple

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self):
        lines = [f"ok: {what}" for what in self.passed] + [f"WRONG: {p}" for p in self.problems]
        return "\n".join(lines)


def check_model(model, x, *, weights=None, key=0) -> Findings:
    """Runs the functions of a model on data, and reports the laws that they break.

    The laws: shapes are right; statistics add over units and are linear in weights; a unit of
    weight 0 counts as absent; F(q, θ) is the evidence at the posterior and not above it for any
    other q; the gradients of the evidence and of the expected log joint agree (Fisher's identity);
    EM steps do not lower the objective. A check is skipped where one that it depends on failed.

    Args:
      model: as for `fit`.  x: some units of data; a few dozen are enough.
      weights: (n,), or None for unequal ones.  key: a JAX key or an int, for the initial params.

    Returns:
      `Findings`, which print as a list. `findings.ok` is True where every check passed.
    """
    passed, problems, failed = [], [], set()
    checks_of_model = ModelChecks(model, x, weights, key)
    for name, needs, title in CHECKS:
        if failed & set(needs):
            failed.add(name)
            continue
        try:
            problem = getattr(checks_of_model, name)()
        except WrongReturn as error:
            problem = str(error)
        except Exception as error:
            problem = f"{title} could not be checked: {type(error).__name__}: {error}"
        if problem is None:
            passed.append(title)
        elif problem:
            problems.append(problem)
            failed.add(name)
    return Findings(tuple(passed), tuple(problems))


CHECKS = (
    ("protocol", (), "the functions that a model needs"),
    ("starts", ("protocol",), "init, under jit"),
    ("shapes", ("starts",), "shapes of posterior and evidence"),
    ("agreement", ("shapes",), "posterior and log_joint agree"),
    ("bound", ("shapes",), "F(q, θ) ≤ evidence"),
    ("additivity", ("shapes",), "statistics add over units"),
    ("linearity", ("shapes",), "statistics are linear in weights"),
    ("gradients", ("shapes", "agreement"), "gradients"),
    ("steps", ("shapes",), "maximize returns params like its own"),
    ("ascent", ("steps",), "EM steps never lower the objective"),
)


class ModelChecks:
    """A model with data, weights and initial params, and one method for every check.

    A check returns None where the model passes, a sentence on the problem where it does not, and ""
    where the check does not apply.
    """

    def __init__(self, model, x, weights, key):
        self.given, self.model = model, adopt(model)
        self.x, n = checks.as_data(x)
        self.n, self.dtype = n, float_dtype(self.x)
        unequal = 0.5 + np.arange(n) % 3
        self.weights = jnp.asarray(unequal if weights is None else weights, self.dtype)
        self.key = as_key(key)
        self.finite = has(self.model, FiniteLatents)
        self.bound_only = not self.finite and not defines(self.model, "posterior")
        self.several = factored(self.model) is not None
        has_m_step = defines(self.model, "statistics", "maximize")
        self.exact = has_m_step and (self.several or not self.bound_only)
        self.tol = 1e3 * float(jnp.finfo(self.dtype).eps)

    def protocol(self):
        try:
            require_model(self.given)
        except TypeError as error:
            return str(error)

    def starts(self):
        key = self.key if hasattr(self.key, "dtype") and self.key.ndim else jax.random.key(self.key)
        inner = standardized(self.model, self.x, self.weights)  # the units and floors of a fit
        self.model, self.x = inner.model, inner.data
        try:
            self.params = jax.jit(self.model.init)(key, self.x, self.weights)
        except jax.errors.JAXTypeError as error:
            return f"init must be pure JAX, without Python branches on values: {_first_line(error)}"
        nonfinite = [p for p, leaf in _leaves(self.params) if not jnp.all(jnp.isfinite(leaf))]
        if nonfinite:
            return f"init returned values that are not finite in params{nonfinite[0]}"

    def shapes(self):
        if self.bound_only:
            return self.free_energies()
        self.q, self.evidence = jax.jit(self.model.posterior)(self.params, self.x)
        if self.evidence.shape != (self.n,):
            return (
                f"posterior must return evidence of shape (n,) = ({self.n},), "
                f"got {self.evidence.shape}"
            )
        if not jnp.all(jnp.isfinite(self.evidence)):
            unit = int(jnp.argmin(jnp.isfinite(self.evidence)))
            return (
                f"the evidence is {float(self.evidence[unit])} at unit {unit}, from the start "
                "that init gave: a start must give every unit a positive probability"
            )
        r = responsibilities_of(self.q)
        if self.finite and jnp.max(jnp.abs(r.sum(-1) - 1)) > self.tol:
            return "the responsibilities that posterior returns do not sum to 1 over components"

    def free_energies(self):
        """`shapes` for a model that defines F alone."""
        self.q = q = jax.jit(self.model.init_q)(self.params, self.x)
        value = jax.jit(self.model.free_energy)(self.params, self.x, q)
        if value.shape != (self.n,):
            return f"free_energy must return shape (n,) = ({self.n},), got {value.shape}"
        if not jnp.all(jnp.isfinite(value)):
            unit = int(jnp.argmin(jnp.isfinite(value)))
            return f"free_energy is {float(value[unit])} at unit {unit}, at the first params and q"

        if self.several and not jax.jit(factored(self.model).exact)(self.params, self.x):
            return factored(self.model).refusal()

        def weighted_sum(params, q):
            return self.weights @ self.model.free_energy(params, self.x, q)

        slopes = jax.jit(jax.grad(weighted_sum, (0, 1)))(self.params, q)
        for name, slope in zip(("params", "q"), slopes, strict=True):
            nonfinite = [p for p, leaf in _leaves(slope) if not jnp.all(jnp.isfinite(leaf))]
            if nonfinite:
                return f"the gradient of free_energy by {name}{nonfinite[0]} is not finite"

    def agreement(self):
        if not self.finite:
            return ""
        r, evidence = normalize(self.model.log_joint(self.params, self.x))
        difference = float(jnp.max(jnp.abs(evidence - self.evidence)))
        if difference > self.tol * (1 + float(jnp.max(jnp.abs(evidence)))):
            return (
                "posterior's evidence is not log Σ_k exp log_joint: they differ by up to "
                f"{difference:.3g} nats a unit; a term stands in one of them alone"
            )
        if jnp.max(jnp.abs(responsibilities_of(self.q) - r)) > self.tol:
            return "posterior's responsibilities are not those of log_joint: Bayes' rule fails"

    def bound(self):
        if not self.finite:
            return ""
        r, total = responsibilities_of(self.q), float(self.weights @ self.evidence)
        rounding = self.tol * float(self.weights @ (1 + jnp.abs(self.evidence)))
        for share in (0.0, 0.1, 0.5):
            q = (1 - share) * r + share * jnp.roll(r, 1, axis=1)
            q = jnp.where(jnp.isfinite(self.model.log_joint(self.params, self.x)), q, 0)
            q = q / q.sum(1, keepdims=True)
            value = float(free_energy(self.model, self.params, self.x, q, self.weights))
            if value > total + rounding:
                return (
                    f"F(q, θ) = {value:.6g} exceeds the evidence {total:.6g}: the evidence that "
                    "posterior returns lacks something that log_joint holds"
                )

    def additivity(self):
        if not self.exact:
            return ""
        half = self.n // 2
        parts = [self._statistics(part) for part in (slice(0, half), slice(half, self.n))]
        self.whole = self._statistics(slice(None))
        path = _first_difference(self.whole, jax.tree.map(jnp.add, *parts), self.tol)
        if path is not None:
            return (
                f"statistics{path} of all units is not the sum over two halves: it must be a sum "
                "over units, not a mean; divide in maximize"
            )

    def linearity(self):
        if not self.exact:
            return ""
        double = self._statistics(slice(None), 2 * self.weights)
        single = self._statistics(slice(None))
        path = _first_difference(double, jax.tree.map(lambda a: 2 * a, single), self.tol)
        if path is not None:
            return (
                f"statistics{path} does not double when all weights do: it must be linear in "
                "weights; a product with weights is missing, or there is one too many"
            )
        absent = self.weights.at[0].set(0)
        without = self._statistics(slice(1, None))
        path = _first_difference(self._statistics(slice(None), absent), without, self.tol)
        if path is not None:
            return f"statistics{path} counts a unit of weight 0: every term needs its weight"

    def gradients(self):
        if not self.finite:
            return ""
        q = jax.lax.stop_gradient(responsibilities_of(self.q))

        def evidence(p):
            return self.weights @ self.model.log_prob(p, self.x)

        def expected(p):
            return self.weights @ expectation(q, self.model.log_joint(p, self.x))

        of_evidence, of_expected = (jax.jit(jax.grad(f))(self.params) for f in (evidence, expected))
        bad = [p for p, leaf in _leaves(of_evidence) if not jnp.all(jnp.isfinite(leaf))]
        if bad:
            return (
                f"the gradient of log p(x | params) by params{bad[0]} is not finite although the "
                "value is: guard the argument of log or division inside jnp.where, not its result"
            )
        path = _first_difference(of_evidence, of_expected, 100 * self.tol)
        if path is not None:
            return (
                f"the gradients of the evidence and of the expected log joint by params{path} "
                "differ (Fisher's identity): something is cut off from differentiation"
            )

    def steps(self):
        method = suited(EM(), self.model, self.x)
        self.step = jax.jit(lambda p, m: method.evaluate(self.model, p, self.x, self.weights, m))
        self.memory = method.start(self.model, self.params, self.x, self.weights)
        jax.eval_shape(self.step, self.params, self.memory)  # it raises WrongReturn

    def ascent(self):
        params, memory, before = self.params, self.memory, -jnp.inf
        for number in range(ASCENT_STEPS):
            step = self.step(params, memory)
            if not jnp.isfinite(step.objective):
                return f"the objective is {float(step.objective)} after {number} EM steps"
            if step.objective < before - 4 * float(step.noise):
                return (
                    f"EM step {number} lowered the objective from {float(before):.6g} to "
                    f"{float(step.objective):.6g}: maximize is not the argmax of the expected log "
                    "joint + log_prior; a prior must stand in log_prior and in maximize"
                )
            params, memory, before = step.proposal, step.memory, step.objective
            if jnp.any(jnp.asarray(self.model.degenerate(params))):
                return None  # from here on a floor changes the M-step

    def _statistics(self, part, weights=None):
        weights = self.weights if weights is None else weights
        x = over_units(lambda a: a[part], self.x)
        q = self.q[part] if self.several else self.model.posterior(self.params, x)[0]
        return self.model.statistics(self.params, x, q, weights[part])


def _leaves(tree):
    return [
        (jax.tree_util.keystr(p), jnp.asarray(a))
        for p, a in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _first_difference(first, second, tol):
    """The path of the first leaf in which two trees differ, None where they agree."""
    for (path, a), (_, b) in zip(_leaves(first), _leaves(second), strict=True):
        if a.shape != b.shape:
            return f"{path} (shape {a.shape} or {b.shape}, by the units)"
        if jnp.max(jnp.abs(a - b), initial=0) > tol * (1 + jnp.max(jnp.abs(a), initial=0)):
            return path
    return None


def _first_line(error) -> str:
    return str(error).splitlines()[0][:160]
