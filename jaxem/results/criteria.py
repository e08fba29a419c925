"""Information criteria of a result, and the entropy of its responsibilities."""

import jax.numpy as jnp

from jaxem.data.precision import in_own_precision
from jaxem.protocol.model import name_of
from jaxem.results import answers, fleet, totals


class Criteria:
    """The criteria of a `Result`, which is a subclass."""

    @in_own_precision
    def bic(self, x=None, weights=None, units: bool = False):
        """−2·log-likelihood + n_parameters · log Σw; lower is better (Schwarz 1978).

        Of `Sequences` Σw is over the rows that are not missing (as in depmixS4), with units=True
        over the sequences; with groups over rows, with units=True over groups. x None: of the data
        and weights of the fit. Else of data x with weights (n,), which are 1 where they are None,
        whatever those of the fit. Of a batch (b,); x and weights are then those of every data set.
        """
        score, total = totals.score_and_weight(self, x, weights, units)
        return -2 * score + self.n_parameters * jnp.log(total)

    @in_own_precision
    def aic(self, x=None, weights=None):
        """−2·log-likelihood + 2·n_parameters; lower is better (Akaike 1974). x, weights: as in
        `bic`."""
        return -2 * totals.score_and_weight(self, x, weights)[0] + 2 * self.n_parameters

    @in_own_precision
    def entropy(self, x=None, weights=None):
        """−Σ_i w_i Σ_k r_ik log r_ik: the entropy of the responsibilities, in nats. x, weights: as
        in `bic`. The gradient through a fit of that without x is NaN.

        Raises TypeError where the model has no finite latent variable.
        """
        if x is None:
            totals.require_no_weights(weights)
            if self.posterior_entropy is None and self.own_data is not None:
                return self.entropy(*self.own_data)
            if self.posterior_entropy is None:
                raise TypeError(
                    f"no entropy of responsibilities was computed in this fit of "
                    f"{name_of(self.model)}, and its data are not known here: give them, "
                    "entropy(x, weights)"
                )
            return self.posterior_entropy
        if self.is_fleet:
            return fleet.entropy(self, fleet.data_sets(self, x, weights))
        x, weights, _ = totals.with_units(x, weights)
        r = self._responsibilities(x)
        return answers.entropy(r, totals.checked_weights(weights, r.shape[0], r.dtype))

    @in_own_precision
    def icl(self, x=None, weights=None):
        """bic + 2·entropy; lower is better (McLachlan & Peel 2000; Biernacki, Celeux
        & Govaert 2000, and mclust, sum log r_ik of the most probable components instead of
        r_ik log r_ik). x, weights: as in `bic`."""
        return self.bic(x, weights) + 2 * self.entropy(x, weights)
