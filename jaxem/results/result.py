"""`Result`: what a fit returns, with predictions, scores and information criteria."""

import dataclasses
from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data import arrays as checks
from jaxem.data.options import as_key, integer
from jaxem.numerics.special import safe_entr
from jaxem.numerics.tree import Structure, float_dtype, is_traced, merge, pytree, split
from jaxem.protocol.capabilities import Sampled, has
from jaxem.protocol.model import name_of
from jaxem.protocol.posterior import responsibilities_of
from jaxem.protocol.status import FitError, Status, sentence
from jaxem.solver.problem import Fit


@pytree(static=("_structure", "data_shape"), eq=False)
class Result(Fit):
    """The fields of the best restart's `Fit`, the `Fit` of all `restarts`, and the model.

    gradient_ok: whether the gradient of params can be trusted; where it is False that gradient is
    NaN. Outside a transformation it says whether the fit converged. Inside one that differentiates
    it says also that I − J is regular and the fixed point near, where J is the Jacobian of the EM
    map at the params.

    A pytree, so that it passes through `jit` and `vmap`. It keeps no data: methods that need data
    take them as an argument.
    """

    restarts: Fit
    gradient_ok: Any
    _numeric: Any
    _structure: Structure
    data_shape: tuple

    @classmethod
    def of(cls, model, best: Fit, restarts: Fit, data_shape: tuple, gradient_ok=None):
        """A result. gradient_ok None: whether the fit converged, if its status is on the host."""
        if gradient_ok is None and isinstance(best.status, (np.ndarray, np.generic)):
            gradient_ok = np.asarray(best.status == Status.CONVERGED)
        numeric, structure = split(model)
        fields = {f.name: getattr(best, f.name) for f in dataclasses.fields(Fit)}
        return cls(
            **fields,
            restarts=restarts,
            gradient_ok=gradient_ok,
            _numeric=numeric,
            _structure=structure,
            data_shape=data_shape,
        )

    @property
    def model(self):
        """The model that was fitted."""
        return merge(self._numeric, self._structure)

    def predict_proba(self, x):
        """Responsibilities p(z = k | x, params), shape (n, k)."""
        return self._ask("responsibilities", x)

    def predict(self, x):
        """The most probable component of every unit, shape (n,); −1 where x holds a NaN."""
        return self._ask("labels", x)

    def score_samples(self, x):
        """log p(x | params) of every unit, shape (n,)."""
        return self._ask("scores", x)

    def sample(self, key, n: int):
        """n units drawn from the fitted model; key: a JAX key or an int."""
        key, n = as_key(key), integer(n, "n", 1)
        key = jax.random.key(key) if isinstance(key, np.uint32) else key
        if not has(self.model, Sampled):
            raise NotImplementedError(
                f"{name_of(self.model)} does not define sample(key, params, n)"
            )
        return self.model.sample(key, self.params, n)

    @property
    def n_parameters(self) -> int:
        """The number of free parameters."""
        return self.model.n_parameters(self.params)

    def bic(self, x, weights=None):
        """−2·log-likelihood(x) + n_parameters · log Σw; lower is better (Schwarz 1978)."""
        score, total = self._score(x, weights)
        return -2 * score + self.n_parameters * jnp.log(total)

    def aic(self, x, weights=None):
        """−2·log-likelihood(x) + 2·n_parameters; lower is better (Akaike 1974)."""
        return -2 * self._score(x, weights)[0] + 2 * self.n_parameters

    def entropy(self, x, weights=None):
        """−Σ_i w_i Σ_k r_ik log r_ik: the entropy of the responsibilities, in nats."""
        return self._ask("entropy", x, weights)

    def icl(self, x, weights=None):
        """bic + 2·entropy; lower is better (Biernacki, Celeux & Govaert 2000)."""
        return self.bic(x, weights) + 2 * self.entropy(x, weights)

    def optima(self, tol: float = 1e-5, units: float | None = None):
        """The distinct final objectives of the restarts that converged, best first: `Optima`.

        Each `Optimum` has its objective, how many restarts ended there, their share of all
        restarts, and the index of the best of them. Printed, they are a table.

        Args:
          tol: per unit of weight, in nats: an objective at most this far below an optimum's best
            belongs to it. The default is ten times the default `tol` of `fit`; keep it above the
            `tol` that was used there.
          units: Σw; None: the number of rows of the data. Give it where rows were weighted, and for
            one of a ragged batch.

        Raises:
          TypeError: for a batch, where every data set has its own: `result[i].optima()`; under jit.
        """
        if np.ndim(self.status):
            raise TypeError("every data set of a batch has its own optima: result[i].optima()")
        from jaxem.results.optima import optima

        return optima(self.restarts, self.data_shape[0] if units is None else units, tol)

    def raise_if_failed(self):
        """Returns self if the fit converged, else raises `FitError` with the reason."""
        status = Counter(np.atleast_1d(np.asarray(self.status)).ravel().tolist())
        failed = {code: count for code, count in status.items() if code != Status.CONVERGED}
        if failed:
            raise FitError("; ".join(sentence(code, count) for code, count in failed.items()))
        return self

    def save(self, path) -> None:
        """Writes the result to a file, arrays as npz and structure as JSON, for `jaxem.load`."""
        from jaxem.results.files import save

        save(self, path)

    def __getitem__(self, index):
        """The `Result` of one fit of a batch."""
        if not np.ndim(self.status):
            raise TypeError("this is one fit, not a batch: it cannot be indexed")
        names = [f.name for f in dataclasses.fields(Fit)]
        best = Fit(*(jax.tree.map(lambda a: a[index], getattr(self, n)) for n in names))
        restarts = jax.tree.map(lambda a: a[index], self.restarts)
        return Result.of(self.model, best, restarts, self.data_shape[1:], self.gradient_ok[index])

    def __reduce__(self):
        best = Fit(*(getattr(self, f.name) for f in dataclasses.fields(Fit)))
        return Result.of, (self.model, best, self.restarts, self.data_shape, self.gradient_ok)

    def __str__(self):
        model = jax.tree.map(_PrintedLeaf, self.model)
        if is_traced(self.status):
            return f"Result({model!r}, batch shape {np.shape(self.status)})"
        n = self.data_shape[0]
        status = np.asarray(self.restarts.status).ravel()
        counts = Counter(Status(int(s)).name for s in status)
        ended = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        if np.ndim(self.status):
            converged = int(np.sum(np.asarray(self.converged)))
            return (
                f"{model!r}: batch shape {np.shape(self.status)}\n"
                f"{converged} of {np.size(self.status)} CONVERGED\nrestarts: {ended}"
            )
        lines = [
            f"{model!r}: {n} units",
            f"{Status(int(self.status)).name} after {int(self.n_iter)} EM steps, log-likelihood "
            f"{float(self.log_likelihood):.6g}, objective {float(self.objective):.6g}",
            f"restarts: {ended}",
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def _score(self, x, weights):
        evidence = self._ask("scores", x)
        if weights is None:
            return evidence.sum(), evidence.shape[0]
        weights = _checked_weights(weights, evidence.shape[0], evidence.dtype)
        return jnp.where(weights > 0, weights * evidence, 0).sum(), weights.sum()

    def _ask(self, quantity: str, x, weights=None):
        if np.ndim(self.status):
            raise TypeError("a batch answers one fit at a time: result[i].predict(x[i])")
        x, n = checks.as_data(x)
        self.model.domain.check(x, name_of(self.model))
        expected = self.data_shape[1:]
        got = tuple(jax.tree.leaves(x)[0].shape[1:])
        if got != expected:
            raise ValueError(
                f"X has {got[0] if got else 0} features, but the model was fitted with "
                f"{expected[0] if expected else 0} features as input"
            )
        weights = _checked_weights(weights, n, float_dtype(x))
        return _answer(self._numeric, self.params, x, weights, self._structure, quantity)


class _PrintedLeaf:
    """A leaf of a model in print: an array is shown by its dtype and shape."""

    def __init__(self, leaf):
        self.leaf = leaf

    def __repr__(self):
        leaf = self.leaf
        if is_traced(leaf) or not isinstance(leaf, (np.ndarray, jax.Array)):
            return repr(leaf)
        if leaf.ndim:
            return f"{leaf.dtype}[{', '.join(str(size) for size in leaf.shape)}]"
        return f"{leaf.item():.6g}"


def _checked_weights(weights, n, dtype):
    """Weights (n,) or None. ValueError where they are not traced and are negative, not finite or
    all 0."""
    weights = checks.as_weights(weights, n, dtype)
    if weights is not None and not is_traced(weights):
        explanation = checks.explain_bad_weights(weights)
        if explanation is not None:
            raise ValueError(explanation)
    return weights


@partial(jax.jit, static_argnums=(4, 5))
def _answer(numeric, params, x, weights, structure, quantity):
    model = merge(numeric, structure)
    q, evidence = model.posterior(params, x)
    if quantity == "scores":
        return evidence
    r = responsibilities_of(q)
    if quantity == "responsibilities":
        return r
    if quantity == "labels":
        return jnp.where(jnp.isnan(r).any(-1), -1, jnp.argmax(r, axis=-1))
    entropy = safe_entr(r).reshape(len(r), -1).sum(-1)
    return entropy.sum() if weights is None else jnp.where(weights > 0, weights * entropy, 0).sum()
