"""A test of a model against a larger one by the parametric bootstrap (McLachlan 1987)."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxem.analysis.bootstrap import drawn_sets
from jaxem.analysis.printed import SOUND, model_name
from jaxem.analysis.refits import (
    precision_of,
    require_concrete,
    require_one_data_set,
    units_and_weights,
)
from jaxem.data.batch import Batch
from jaxem.data.options import as_key, integer
from jaxem.fit import fit, require_model
from jaxem.protocol.status import Status, collected_warnings, warn
from jaxem.results.result import Result

LIMITED = 0.05
"""The part of the drawn data sets without convergence from which a warning says so."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LikelihoodRatioTest:
    """A likelihood-ratio statistic and its distribution under the smaller model.

    statistic: 2·(log-likelihood of the larger − of the smaller model), in nats. null_statistics:
    those of data sets drawn from the smaller fit, (n − left_out,). p_value: (1 + how many of them
    are at least the statistic) / (1 + n − left_out). small, large: both fits of the data. left_out:
    how many drawn data sets do not count, since one of the two fits collapsed or failed.
    unconverged: in how many of those that count a fit ended at max_iter.
    """

    statistic: float
    p_value: float
    null_statistics: np.ndarray
    small: Result
    large: Result
    left_out: int = 0
    unconverged: int = 0

    def __str__(self):
        count = len(self.null_statistics)
        ends = np.quantile(self.null_statistics, (0.5, 0.95)) if count else (np.nan, np.nan)
        lines = [
            f"{model_name(self.small.model)} against {model_name(self.large.model)}",
            f"statistic {self.statistic:.6g}, p = {self.p_value:.3g}",
            f"{count} data sets drawn from the smaller fit: median {ends[0]:.4g}, 95% below "
            f"{ends[1]:.4g}",
        ]
        lines += [f"{self.left_out} more do not count: a fit collapsed"] * bool(self.left_out)
        if self.unconverged:
            lines.append(f"{self.unconverged} of those that count have a fit that did not converge")
        return "\n".join(lines)

    __repr__ = __str__


def likelihood_ratio_test(
    x: Any,
    small: Any,
    large: Any,
    n: int = 199,
    *,
    key: Any,
    weights: Any = None,
    restarts: int = 8,
    tol: float | None = None,
    max_iter: int = 2000,
) -> LikelihoodRatioTest:
    """Tests a model, such as a mixture of k components, against a larger one, such as k + 1.

    Where the smaller model lies on the boundary of the larger one, the statistic is not χ² under
    the smaller model. So its distribution is taken from n data sets drawn from the fit of the
    smaller model, to each of which both models are fitted.

    Args:
      x: rows (n, d).  small, large: the models; the smaller one must be a case of the larger one.
      n: the data sets drawn.  key: a JAX key or an int.
      weights: of the rows, which count as repetitions: data sets of Σw rows are drawn.
      restarts: the restarts of each fit.  tol, max_iter: as in `fit`, tol in nats per unit of
      weight.

    `likelihood_ratio_test(x, Mixture(Normal(), k=2), Mixture(Normal(), k=3), key=0).p_value`

    Raises ValueError or TypeError as `fit` does, and where the smaller model draws no rows. Source:
    McLachlan 1987.
    """
    n, restarts = integer(n, "n", 1), integer(restarts, "restarts", 1)
    require_concrete("likelihood_ratio_test", x, weights)
    require_one_data_set(x, "likelihood_ratio_test")
    for model, name in ((small, "small"), (large, "large")):
        _require_model(model, name)
    key = as_key(key)
    options = {"restarts": restarts, "tol": tol, "max_iter": max_iter, "gradient": "none"}
    fits = [fit(model, x, key=key, weights=weights, **options) for model in (small, large)]
    counts = [int(f.n_parameters) for f in fits]
    if counts[0] >= counts[1]:
        raise ValueError(
            f"small has {counts[0]} free parameters and large {counts[1]}: the smaller model comes "
            "first, likelihood_ratio_test(x, small, large)"
        )
    if not all(int(f.status) in SOUND for f in fits):
        warn("a fit of the data did not end soundly, so that the statistic says nothing", 2)
    statistic = 2 * float(fits[1].log_likelihood - fits[0].log_likelihood)
    with precision_of(fits[0].params):
        units, of_units, _ = units_and_weights(x, weights)
        params, found, limited = jax.tree.map(np.asarray, fits[0].params), [], 0
        drawn = drawn_sets(fits[0].model, params, units, of_units, n, key)
        for number, data in enumerate(drawn):
            # Other starts than those of the fits: the draws begin with the same keys.
            again = int(np.random.default_rng([*_words(key), number]).integers(2**31))
            with collected_warnings():
                both = [fit(f.model, Batch(data), key=again, **options) for f in fits]
            sound = np.all([np.isin(np.asarray(f.status), SOUND) for f in both], axis=0)
            each = 2 * (np.asarray(both[1].log_likelihood, float) - both[0].log_likelihood)
            counts = sound & np.isfinite(each)
            found.append(each[counts])
            ended = np.any([np.asarray(f.status) == Status.MAX_ITER for f in both], axis=0)
            limited += int((ended & counts).sum())
    null = np.concatenate(found)
    if len(null) < n / 2:
        warn(f"in {n - len(null)} of {n} drawn data sets a fit collapsed: use a prior", 3)
    if limited > LIMITED * n:
        warn(
            f"in {limited} of {n} drawn data sets a fit did not converge, so that their statistics "
            "may be too small, or too large: give a larger max_iter",
            3,
        )
    # A statistic below rounding is 0, as are those of the draws.
    slack = 1e-9 * abs(float(fits[0].log_likelihood))
    p_value = (1 + int((null >= statistic - slack).sum())) / (1 + len(null))
    return LikelihoodRatioTest(statistic, p_value, null, *fits, n - len(null), limited)


def _require_model(model, name):
    try:
        require_model(model)
    except TypeError as error:
        raise TypeError(
            f"{name} must be a model: likelihood_ratio_test(x, small, large); {error}"
        ) from None


def _words(key):
    """A key as integers."""
    if isinstance(key, np.uint32):
        return [int(key)]
    is_typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if is_typed else key).ravel().tolist()
