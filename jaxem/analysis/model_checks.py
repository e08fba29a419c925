"""The checks of `check_model`, one method each."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.analysis.free_energy import free_energy
from jaxem.data.data import as_units
from jaxem.data.options import as_key
from jaxem.fit import require_model
from jaxem.methods.em import EM
from jaxem.methods.suited import suited
from jaxem.numerics.softmax import normalize
from jaxem.numerics.tree import float_dtype, merge, over_units, split
from jaxem.protocol.capabilities import FiniteLatents, defines, has
from jaxem.protocol.posterior import expectation, responsibilities_of
from jaxem.protocol.spaces import REAL, Coordinates, Simplex, Undeclared, UnitInterval
from jaxem.protocol.units import standardized
from jaxem.solver.programs import Program
from jaxem.wrappers.adopt import adopt
from jaxem.wrappers.factored import factored

ASCENT_STEPS = 10
"""The number of EM steps whose objective must not fall."""

SLOPE = 1e-3
"""The largest slope of the objective, per unit of weight, at params that EM does not change."""


class ModelChecks:
    """A model with data, weights and initial params, and one method for every check.

    A check returns None where the model passes, a sentence on the problem where it does not, and ""
    where the check does not apply.
    """

    def __init__(self, model, x, weights, key):
        self.given, self.model = model, adopt(model)
        self.x, n, _ = as_units(x)
        self.n, self.dtype = n, float_dtype(self.x)
        unequal = 0.5 + np.arange(n) % 3
        self.weights = np.asarray(unequal if weights is None else weights, self.dtype)
        self.key = as_key(key)
        self.finite = has(self.model, FiniteLatents)
        self.bound_only = not self.finite and not defines(self.model, "posterior")
        self.several = factored(self.model) is not None
        has_m_step = defines(self.model, "statistics", "maximize")
        self.exact = has_m_step and (self.several or not self.bound_only)
        self.tol = 1e3 * float(jnp.finfo(self.dtype).eps)

        def sums(params, x, q, weights):
            q = self.model.posterior(params, x)[0] if q is None else q
            return self.model.statistics(params, x, q, weights)

        self.sums = Program(sums)

    def protocol(self):
        try:
            require_model(self.given)
        except TypeError as error:
            return str(error)

    def identity(self):
        try:
            first, second = (split(adopt(m))[1] for m in (self.given, copy.deepcopy(self.given)))
            hash(first)
        except TypeError as error:
            return f"the model cannot be hashed or copied, so no program can be kept: {error}"
        if first != second:
            return (
                "a copy of the model is not equal to it, so that every new object compiles its own "
                "programs: a field holds an object that is compared by identity; give its class "
                "__eq__ and __hash__, or make it a dataclass"
            )

    def starts(self):
        key = self.key if hasattr(self.key, "dtype") and self.key.ndim else jax.random.key(self.key)
        structure = None

        def standard(x, weights):
            nonlocal structure
            inner = standardized(self.model, x, weights)  # the units and floors of a fit
            numeric, structure = split(inner.model)
            return numeric, inner.data

        numeric, self.x = Program(standard)("tiny", self.x, self.weights)
        self.model = merge(numeric, structure)
        self.init = Program(lambda x, weights: self.model.init(key, x, weights))
        try:
            self.params = self.init("tiny", self.x, self.weights)
        except jax.errors.JAXTypeError as error:
            return f"init must be pure JAX, without Python branches on values: {_first_line(error)}"
        nonfinite = [p for p, leaf in _leaves(self.params) if not np.all(np.isfinite(leaf))]
        if nonfinite:
            return f"init returned values that are not finite in params{nonfinite[0]}"

    def absence(self):
        """The start does not depend on the values of units of weight 0."""
        weights = np.array(self.weights)
        weights[1::4] = 0
        present = np.flatnonzero(weights)
        starts = []
        for i in present[[0, -1]]:
            rows = np.where(weights > 0, np.arange(self.n), i)
            x = over_units(lambda a: np.asarray(a)[rows], self.x)  # noqa: B023
            starts.append(self.init("tiny", x, weights))
        path = _first_difference(*starts, self.tol)
        if path is not None:
            return (
                f"init returns other params{path} when units of weight 0 have other values: every "
                "mean over units needs the weights"
            )

    def domains(self):
        """Probabilities are declared as such."""
        spaces = self.model.spaces(self.params)
        if jax.tree.structure(spaces) != jax.tree.structure(self.params):
            return "spaces must return a tree like params, with a space in place of every leaf"
        for (path, leaf), space in zip(_leaves(self.params), jax.tree.leaves(spaces), strict=True):
            is_sum = leaf.ndim > 0 and leaf.shape[-1] > 1 and bool(np.all(leaf > 0))
            if (
                (space == REAL or isinstance(space, Undeclared))
                and is_sum
                and np.max(np.abs(leaf.sum(-1) - 1)) < self.tol
            ):
                return (
                    f"params{path} are probabilities that sum to 1, but spaces says REAL: "
                    "n_parameters, bic and gradient steps count one too many; return "
                    "jaxem.spaces.SIMPLEX for it"
                )

    def boundary(self):
        """Evidence where probabilities are 0 or 1 is −∞ or a number, never NaN."""
        spaces = jax.tree.leaves(self.model.spaces(self.params))
        if self.bound_only or not any(isinstance(s, (Simplex, UnitInterval)) for s in spaces):
            return ""

        def at_end(leaf, space, end):
            if isinstance(space, UnitInterval):
                return jnp.full_like(leaf, end)
            if not isinstance(space, Simplex) or leaf.shape[-1] < 2:
                return leaf
            order = slice(None, None, -1 if end else 1)  # the last entry is 0, or the first
            leaf = leaf[..., order]
            moved = leaf.at[..., 0].add(leaf[..., -1]).at[..., -1].set(0)
            return moved[..., order]

        evidence = Program(self.model.log_prob)
        for end in (0, 1):
            leaves, tree = jax.tree.flatten(self.params)
            moved = [at_end(leaf, space, end) for leaf, space in zip(leaves, spaces, strict=True)]
            values = evidence("tiny", jax.tree.unflatten(tree, moved), self.x)
            if np.any(np.isnan(values)):
                return (
                    "the evidence is NaN where a probability in params is 0: 0 · log 0 is NaN; use "
                    "jax.scipy.special.xlogy(count, p)"
                )

    def shapes(self):
        if self.bound_only:
            return self.free_energies()
        self.q, self.evidence = Program(self.model.posterior)("tiny", self.params, self.x)
        if self.evidence.shape != (self.n,):
            return (
                f"posterior must return evidence of shape (n,) = ({self.n},), "
                f"got {self.evidence.shape}"
            )
        if not np.all(np.isfinite(self.evidence)):
            unit = int(np.argmin(np.isfinite(self.evidence)))
            return (
                f"the evidence is {float(self.evidence[unit])} at unit {unit}, from the start "
                "that init gave: a start must give every unit a positive probability"
            )
        r = responsibilities_of(self.q)
        if self.finite and np.max(np.abs(r.sum(-1) - 1)) > self.tol:
            return "the responsibilities that posterior returns do not sum to 1 over components"

    def free_energies(self):
        """`shapes` for a model that defines F alone."""
        self.q = q = jax.jit(self.model.init_q)(self.params, self.x)
        value = jax.jit(self.model.free_energy)(self.params, self.x, q)
        if value.shape != (self.n,):
            return f"free_energy must return shape (n,) = ({self.n},), got {value.shape}"
        if not np.all(np.isfinite(value)):
            unit = int(np.argmin(np.isfinite(value)))
            return f"free_energy is {float(value[unit])} at unit {unit}, at the first params and q"

        if self.several and not jax.jit(factored(self.model).exact)(self.params, self.x):
            return factored(self.model).refusal()

        def weighted_sum(params, q):
            return self.weights @ self.model.free_energy(params, self.x, q)

        slopes = jax.jit(jax.grad(weighted_sum, (0, 1)))(self.params, q)
        for name, slope in zip(("params", "q"), slopes, strict=True):
            nonfinite = [p for p, leaf in _leaves(slope) if not np.all(np.isfinite(leaf))]
            if nonfinite:
                return f"the gradient of free_energy by {name}{nonfinite[0]} is not finite"

    def agreement(self):
        if not self.finite:
            return ""
        joint = Program(lambda params, x: normalize(self.model.log_joint(params, x)))
        r, evidence = joint("tiny", self.params, self.x)
        difference = float(np.max(np.abs(evidence - self.evidence)))
        if difference > self.tol * (1 + float(np.max(np.abs(evidence)))):
            return (
                "posterior's evidence is not log Σ_k exp log_joint: they differ by up to "
                f"{difference:.3g} nats a unit; a term stands in one of them alone"
            )
        if np.max(np.abs(responsibilities_of(self.q) - r)) > self.tol:
            return "posterior's responsibilities are not those of log_joint: Bayes' rule fails"

    def bound(self):
        if not self.finite:
            return ""
        r, evidence = np.asarray(responsibilities_of(self.q)), np.asarray(self.evidence)
        total = float(self.weights @ evidence)
        rounding = self.tol * float(self.weights @ (1 + abs(evidence)))
        possible = Program(lambda params, x: jnp.isfinite(self.model.log_joint(params, x)))
        possible = possible("tiny", self.params, self.x)
        bound = Program(lambda *args: free_energy(self.model, *args))
        for share in (0.0, 0.1, 0.5):
            q = (1 - share) * r + share * np.roll(r, 1, axis=1)
            q = np.where(possible, q, 0)
            q = q / q.sum(1, keepdims=True)
            value = float(bound("tiny", self.params, self.x, q, self.weights))
            if value > total + rounding:
                return (
                    f"F(q, θ) = {value:.6g} exceeds the evidence {total:.6g}: the evidence that "
                    "posterior returns lacks something that log_joint holds"
                )

    def additivity(self):
        if not self.exact:
            return ""
        half = self.n // 2
        even = slice(0, 2 * half)
        parts = [self._statistics(part) for part in (slice(0, half), slice(half, 2 * half))]
        whole = self._statistics(even)
        path = _first_difference(whole, jax.tree.map(np.add, *parts), self.tol)
        if path is not None:
            return (
                f"statistics{path} of all units is not the sum over two halves: it must be a sum "
                "over units, not a mean; divide in maximize"
            )

    def linearity(self):
        if not self.exact:
            return ""
        even = slice(0, self.n // 2 * 2)
        double = self._statistics(even, 2 * self.weights)
        single = self._statistics(even)
        path = _first_difference(double, jax.tree.map(lambda a: 2 * a, single), self.tol)
        if path is not None:
            return (
                f"statistics{path} does not double when all weights do: it must be linear in "
                "weights; a product with weights is missing, or there is one too many"
            )
        absent = np.array(self.weights)
        absent[0] = 0
        rows = np.maximum(np.arange(self.n // 2 * 2), 1)  # unit 1 in the place of unit 0
        without = self._statistics(even, absent, rows)
        path = _first_difference(self._statistics(even, absent), without, self.tol)
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

        slopes = Program(lambda params: [jax.grad(f)(params) for f in (evidence, expected)])
        of_evidence, of_expected = slopes("tiny", self.params)
        bad = [p for p, leaf in _leaves(of_evidence) if not np.all(np.isfinite(leaf))]
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
        self.step = Program(lambda p, m: method.evaluate(self.model, p, self.x, self.weights, m))
        self.memory = method.start(self.model, self.params, self.x, self.weights)
        jax.eval_shape(self.step.function, self.params, self.memory)  # it raises WrongReturn

    def ascent(self):
        params, memory, before = self.params, self.memory, -np.inf
        for number in range(ASCENT_STEPS):
            step = self.step("tiny", params, memory)
            if not np.isfinite(step.objective):
                return f"the objective is {float(step.objective)} after {number} EM steps"
            if step.objective < before - 4 * float(step.noise):
                return (
                    f"EM step {number} lowered the objective from {float(before):.6g} to "
                    f"{float(step.objective):.6g}: maximize is not the argmax of the expected log "
                    "joint + log_prior; a prior must stand in log_prior and in maximize"
                )
            change = _change(params, step.proposal)
            params, memory, before = step.proposal, step.memory, step.objective
            if np.any(np.asarray(self.model.degenerate(params))):
                return None  # from here on a floor changes the M-step
            if change < self.tol:
                return self._slope(params)

    def _slope(self, params):
        """A sentence where EM has stopped at params at which the objective has a slope."""
        if self.bound_only:
            return None
        coordinates = Coordinates(self.model.spaces(params), params)

        def objective(vector):
            params = coordinates.params(vector)
            return self.weights @ self.model.log_prob(params, self.x) + self.model.log_prior(params)

        slope = Program(jax.grad(objective))("tiny", coordinates.origin)
        largest = float(np.max(np.abs(slope), initial=0)) / float(self.weights.sum())
        if largest > SLOPE:
            return (
                f"EM steps end where the objective still has a slope of {largest:.3g} nats a unit: "
                "maximize is not the argmax of the expected log joint + log_prior"
            )

    def _statistics(self, part, weights=None, rows=None):
        """The statistics of a part of the units; rows: those whose values they have."""
        weights = np.asarray(self.weights if weights is None else weights)[part]
        rows = part if rows is None else rows
        x = over_units(lambda a: np.asarray(a)[rows], self.x)
        return self.sums("tiny", self.params, x, self.q[rows] if self.several else None, weights)


def _leaves(tree):
    return [
        (jax.tree_util.keystr(p), np.asarray(a))
        for p, a in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _first_difference(first, second, tol):
    """The path of the first leaf in which two trees differ, None where they agree."""
    for (path, a), (_, b) in zip(_leaves(first), _leaves(second), strict=True):
        if a.shape != b.shape:
            return f"{path} (shape {a.shape} or {b.shape}, by the units)"
        if np.max(np.abs(a - b), initial=0) > tol * (1 + np.max(np.abs(a), initial=0)):
            return path
    return None


def _change(first, second) -> float:
    """The largest change of an entry, relative to the largest of its leaf."""
    changes = [
        np.max(np.abs(a - b), initial=0) / (1 + np.max(np.abs(a), initial=0))
        for (_, a), (_, b) in zip(_leaves(first), _leaves(second), strict=True)
    ]
    return float(max(changes, default=0))


def _first_line(error) -> str:
    return str(error).splitlines()[0][:160]
