"""`Result`: what a fit returns, with predictions, scores and information criteria."""

import contextlib
import dataclasses
from collections import Counter
from typing import Any

import jax
import numpy as np

from jaxem.data.grouped import unit_shape
from jaxem.data.options import as_key, integer
from jaxem.data.precision import in_own_precision, on_host
from jaxem.numerics.tree import Structure, is_traced, merge, pytree, split
from jaxem.protocol.capabilities import Sampled, defines, has
from jaxem.protocol.model import name_of
from jaxem.protocol.status import FitError, Status, sentence
from jaxem.results import answers, fleet, printed, totals
from jaxem.results.criteria import Criteria
from jaxem.results.frames import as_frame
from jaxem.solver.problem import Fit


@pytree(static=("_structure", "data_shape", "shares_model"), eq=False)
class Result(Criteria, Fit):
    """The fields of the best restart's `Fit`, the `Fit` of all `restarts`, and the model.

    The result of a `Batch`, or of `jax.vmap` of a function that fits, is that of b fits, a batch:
    every field has a leading axis b, `len(result)` is b, `result[i]` and iteration give the
    `Result` of one data set. Methods take one data set for each fit, in the order of the fits: an
    array (b, n, d) or a stacked tree, for which what they return is stacked, or a list, for which
    it is a list of NumPy arrays, one a data set. They compile one program for each padded length.

    gradient_ok: whether the gradient of params can be trusted; where it is False that gradient is
    NaN. Outside a transformation it says whether the fit converged. Inside one that differentiates
    it also says that I − J can be inverted, where J is the Jacobian of the EM map at the params,
    and that a fixed point of the map is near. total_weight: Σw of the fit, the number of units
    where they have no weights; of `Sequences` over the rows that are not missing, with groups over
    rows. data_shape: the shape of the data, of their first array where they are a tree; (b, n, ...)
    of a `Batch`, with n units in the longest data set. n_units: (b,), the units of every data set
    where their numbers differ, else None. shares_model: whether the fits are those of a `Batch`.
    trace: a `Trace` of `fit(..., trace=True)`, else None.

    A pytree, so that it passes through `jit` and `vmap`. Methods that need data take them as an
    argument, and raise ValueError or TypeError where these are not of the form that was fitted. The
    result of an eager `fit` has a reference to the data of the fit, for `entropy` and `icl`. It is
    lost in a transformation and in a copy; `save` writes the entropy.
    """

    restarts: Fit
    gradient_ok: Any
    _numeric: Any
    _structure: Structure
    data_shape: tuple
    total_weight: Any = None
    n_units: Any = None
    shares_model: bool = False
    trace: Any = None

    @classmethod
    def of(
        cls,
        model,
        best: Fit,
        restarts: Fit,
        data_shape: tuple,
        gradient_ok=None,
        total_weight=None,
        n_units=None,
        shares_model: bool = False,
        trace=None,
    ):
        """A result of model, with best, the `Fit` of the best restart, and the `Fit` of all
        restarts; data_shape, n_units, shares_model and trace as in `Result`. gradient_ok None:
        whether the fit converged. total_weight None: the number of units."""
        if gradient_ok is None:
            status = best.status if is_traced(best.status) else np.asarray(best.status)
            gradient_ok = status == int(Status.CONVERGED)
            gradient_ok = gradient_ok if is_traced(gradient_ok) else np.asarray(gradient_ok)
        if total_weight is None:
            total_weight = np.full(np.shape(best.status), float(data_shape[bool(shares_model)]))
        numeric, structure = split(model)
        fields = {f.name: getattr(best, f.name) for f in dataclasses.fields(Fit)}
        return cls(
            **fields,
            restarts=restarts,
            gradient_ok=gradient_ok,
            _numeric=numeric,
            _structure=structure,
            data_shape=data_shape,
            total_weight=total_weight,
            n_units=n_units,
            shares_model=bool(shares_model),
            trace=trace,
        )

    @property
    def model(self):
        """The model that was fitted."""
        return merge(self._numeric, self._structure)

    @in_own_precision
    def predict_proba(self, x):
        """Responsibilities p(z = k | x, params), shape (n, k); every row sums to 1. A row is NaN
        where x is outside the support of the model or holds a NaN, or where its density is 0 under
        every component. Where the density of a far unit underflows, the row is that of a nearer
        unit in the same direction.

        With groups every row has those of its group. Of a batch: (b, n, k), or a list of (n_i, k);
        with groups always a list. Of `Sequences`: the smoothed states, a list of
        (t_i, k). Raises TypeError where the model has no finite latent variable."""
        if defines(self.model, "smooth", "viterbi"):
            return fleet.paths(self, "smooth", x)
        if self.is_fleet:
            sets = fleet.data_sets(self, x)
            return fleet.by_row(sets, fleet.responsibilities(self, sets))
        x, _, names = totals.with_units(x)
        return totals.of_rows(self._responsibilities(x), names)

    @in_own_precision
    def predict(self, x):
        """The most probable component of every unit of x, shape (n,); −1 where `predict_proba` is
        NaN, and where all values of a unit are missing. With groups that of every row. Of a batch:
        (b, n), or a list of (n_i,). Of `Sequences` the most probable path of states, a list of
        (t_i,). Raises TypeError as `predict_proba` does."""
        if defines(self.model, "smooth", "viterbi"):
            return fleet.paths(self, "viterbi", x)
        if self.is_fleet:
            sets = fleet.data_sets(self, x)
            return fleet.by_row(sets, fleet.labels(self, sets))
        x, _, names = totals.with_units(x)
        r, observed = self._responsibilities(x), self.model.domain.is_observed(x)
        return totals.of_rows(answers.labels(r, observed), names)

    @in_own_precision
    def predict_response(self, x):
        """The mean of the response y of every row, Σ_j p(j)·E[y | x, component j]: (n,), or (n, m)
        of several responses, for components that define `mean(params, x) -> (n, k)`.

        p(j) is the mixing weight, that of the gate where there is one: new data need no y. Where
        the data hold y, it is the posterior given x and y. Raises TypeError where the components
        have no response.
        """
        if self.is_fleet:
            raise TypeError("a batch predicts one fit at a time: result[i].predict_response(x)")
        return totals.response(self, x)

    @in_own_precision
    def score_samples(self, x):
        """log p(x | params) of every unit, shape (n,): −∞ outside the support of the model, NaN
        where x holds a NaN that the model does not take. With groups one value a group, in the
        order of their sorted names. Of a batch: (b, n), or a list of (n_i,)."""
        if self.is_fleet:
            sets = fleet.data_sets(self, x)
            return fleet.by_unit(sets, fleet.scores(self, sets))
        return answers.scores(self._numeric, self.params, self._checked(x), self._structure)

    @in_own_precision
    def sample(self, key, n: int, **options):
        """n units drawn from the fitted model; key: a JAX key or an int; options: those of the
        model's `sample`, for chains `length` and `inputs`. Raises TypeError for a batch,
        NotImplementedError for a model that draws none."""
        if self.is_fleet:
            raise TypeError("a batch draws from one fit at a time: result[i].sample(key, n)")
        key, n = as_key(key), integer(n, "n", 1)
        key = jax.random.key(key) if isinstance(key, np.uint32) else key
        if not has(self.model, Sampled):
            raise NotImplementedError(
                f"{name_of(self.model)} does not define sample(key, params, n)"
            )
        return self.model.sample(key, self.params, n, **options)

    @in_own_precision
    def impute(self, x, draws=None, key=None):
        """x with every missing cell replaced by its expectation given the observed ones, Σ_k
        p(k | row)·E[cell | row, k]; of `Sequences` a list of (t_i, d), by smoothed states.

        draws: an int m for m imputations drawn from that distribution instead, (m, n, d), of
        `Sequences` a list of (m, t_i, d). key: a JAX key or an int, needed for draws. Raises
        TypeError where the components take no missing cells, and for a batch, ValueError for draws
        without a key.
        """
        from jaxem.results.imputed import impute

        return impute(self, x, draws, key)

    @property
    def n_parameters(self) -> int:
        """The number of free parameters; of a batch, those of one fit."""
        first = (0,) * np.ndim(self.status)
        params = jax.tree.map(lambda leaf: leaf[first], self.params) if first else self.params
        return self.model.n_parameters(params)

    def summary(self, names=None) -> str:
        """A page about the fit: the model, sizes, log-likelihood, criteria, how it and its restarts
        ended, warnings, and the params as tables with a row for each component. names: of the
        columns of x; None: those of a data frame that was fitted. TypeError for a batch."""
        from jaxem.results.summary import summary

        return summary(self, names)

    def standard_errors(
        self, x, weights=None, method="observed", cluster=None, of=None, pinv=False
    ):
        """Standard errors of all params, of maximum likelihood or, with a prior, of the largest
        posterior density: an `Uncertainty`, whose `print` is a table.

        Args:
          x, weights: the data of the fit and their weights, which count as repetitions: the errors
            are those of Σw units. With groups the unit is the group.
          method: "observed": H⁻¹, where H is minus the Hessian of the log-likelihood + log prior;
            "sandwich": robust where the model is wrong (White 1982), H⁻¹ (Σ w s sᵀ) H⁻¹ of the
            scores s of units, without n / (n − 1); "empirical": (Σ w s sᵀ)⁻¹.
          cluster: (n,), names of clusters of dependent units, whose scores are added up first.
          of: a function params -> number or tree of arrays, whose errors are wanted instead, by the
            delta method: `of=lambda p: p.components.mean[1] - p.components.mean[0]`.
          pinv: whether params that the data do not identify get errors by the pseudo-inverse.

        Computed in float64. Entries on a bound (a weight or a probability of 0), of components
        without weight, and those that the data do not identify have the error NaN, and `notes` say
        so; the errors of all others are those with these entries held fixed. Warns where the params
        are no maximum. Raises TypeError for a model without `spaces` or with a bound in place of
        the likelihood, for a batch and under jit, ValueError for cluster with "observed".
        """
        from jaxem.results.errors import standard_errors

        return standard_errors(self, x, weights, method, cluster, of, pinv)

    @property
    @in_own_precision
    def separated(self):
        """Which components have coefficients without a finite estimate, since regressors predict
        their responses without error: booleans (k,), of a batch (b, k). By the data of the fit."""
        from jaxem.results.separation import of_own_data

        return of_own_data(self)

    def optima(self, tol: float = 1e-5, units: float | None = None):
        """The distinct final objectives of the restarts that converged, best first: `Optima`.

        Each `Optimum` has its objective, how many restarts ended there, their share of all
        restarts, and the index of the best of them. Printed, they are a table.

        tol: per unit of weight, in nats: an objective at most this far below an optimum's best
        belongs to it. The default is ten times that of `fit`; keep it above the `tol` of the fit.
        units: Σw; None: that of the fit. TypeError for a batch, and under jit.
        """
        if np.ndim(self.status):
            raise TypeError("every data set of a batch has its own optima: result[i].optima()")
        from jaxem.results.optima import optima

        return optima(self.restarts, float(self.total_weight) if units is None else units, tol)

    def raise_if_failed(self):
        """Returns self if the fit converged, else raises `FitError` with the reason."""
        status = Counter(np.atleast_1d(np.asarray(self.status)).ravel().tolist())
        failed = {code: count for code, count in status.items() if code != Status.CONVERGED}
        if failed:
            raise FitError("; ".join(sentence(code, count) for code, count in failed.items()))
        return self

    def save(self, path) -> None:
        """Writes the result to the file `path`, arrays as npz and structure as JSON, for
        `jaxem.load`. Raises ValueError where the model cannot be written."""
        from jaxem.results.files import save

        save(self, path)

    def to_dataframe(self):
        """A pandas data frame with a row for every data set of a batch: the name of its status,
        log_likelihood, n_iter, objective, and bic where the model has a number of parameters.
        Raises ImportError where pandas is missing."""
        return as_frame(fleet.table(self))

    def __len__(self):
        """The number of fits of a batch."""
        self._require_fleet("it has no len()")
        return np.shape(self.status)[0]

    def __bool__(self):
        return True

    def __iter__(self):
        """The `Result` of every fit of a batch, in order."""
        self._require_fleet("it cannot be iterated over")
        fits = self if is_traced(self) else jax.device_get(self).like(self)
        return (fits[i] for i in range(len(self)))

    def __getitem__(self, index):
        """The `Result` of one fit of a batch; a smaller batch for a slice or an array of
        indices."""
        self._require_fleet("it cannot be indexed")
        return fleet.part(self, index)

    def __reduce__(self):
        parts = (self.data_shape, self.gradient_ok, self.total_weight)
        parts += (self.n_units, self.shares_model, self.trace)
        return Result.of, (self.model, self.best_fit, self.restarts, *parts)

    def __str__(self):
        return printed.text(self)

    __repr__ = __str__

    def about(self, x, weights, names=None):
        """This result of an eager fit, with a reference to the data x, the weights of the fit and
        the names of the columns, for what is computed from them when it is asked for. Other results
        have none."""
        vars(self).update(_data=(x, weights), _names=names)
        return self

    def on_host(self):
        """This result with NumPy arrays, which keep 64 bits where x64 is off; unless traced."""
        if is_traced(self):
            return self
        return on_host(self).like(self)

    def like(self, other):
        """This result with the data of the other one."""
        if other.own_data is None:
            return self
        return self.about(*other.own_data, other.column_names)

    @property
    def own_data(self):
        """(data, weights) of `about`; None without them."""
        return vars(self).get("_data")

    @property
    def column_names(self) -> list[str] | None:
        """The names of the columns of the data frame that was fitted; None without them."""
        return vars(self).get("_names")

    @property
    def best_fit(self) -> Fit:
        """The fields of the best restart's `Fit`."""
        return Fit(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Fit)})

    def complete(self) -> Fit:
        """`best_fit` with its entropy, where that can be computed."""
        if self.posterior_entropy is not None or self.own_data is None:
            return self.best_fit
        with contextlib.suppress(TypeError):  # a model without a finite latent variable
            return dataclasses.replace(self.best_fit, posterior_entropy=np.asarray(self.entropy()))
        return self.best_fit

    def _responsibilities(self, x):
        args = (self._numeric, self.params, self._checked(x), self._structure)
        return answers.responsibilities(self.model, *args)

    @property
    def is_fleet(self) -> bool:
        """Whether these are the fits of a batch."""
        return np.ndim(self.status) > 0

    def _require_fleet(self, what):
        if not self.is_fleet:
            raise TypeError(f"this is one fit, not a batch: {what}")

    @property
    def _shape_of_one(self) -> tuple:
        """The shape of one data set, of the longest where they differ."""
        return self.data_shape[1:] if self.shares_model else self.data_shape

    def _checked(self, x):
        """Data for the model of this fit. ValueError or TypeError where it does not take them."""
        x = totals.with_units(x)[0]
        expected, got = self._shape_of_one[1:], unit_shape(x)
        if len(got) != len(expected) or got == expected:
            self.model.domain.check(x, name_of(self.model))
        self._require_features(got)
        return x

    def _require_features(self, got: tuple) -> None:
        """ValueError unless `got`, the shape of a unit, is that of the data of the fit."""
        expected = self._shape_of_one[1:]
        if got != expected:
            raise ValueError(
                f"X has {got[0] if got else 0} features, but the model was fitted with "
                f"{expected[0] if expected else 0} features as input"
            )
