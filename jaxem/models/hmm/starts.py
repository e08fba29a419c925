"""Starts of chains and the probabilities that they share."""

import jax.numpy as jnp

from jaxem.models.mixture import Mixture
from jaxem.numerics.special import divided
from jaxem.protocol.capabilities import defines
from jaxem.protocol.counts import is_empty, safe
from jaxem.protocol.model import Bank, Model
from jaxem.protocol.starts import Start
from jaxem.wrappers.adopted import AdoptedBank


def start(model, key, x, weights):
    """(emissions, first (k,), pairs (k, k)): the params of a mixture of the bank at its default
    start, the weight of its components in first rows, and that of pairs of them in rows that
    follow each other."""
    x = model.rows_before(x)
    rows, mixture = x.flat(), Mixture(model.bank, model.k)
    row_weights = x.row_weights(weights)
    # A mixture has no empty data; missing rows have the values of an observed one.
    row_weights = jnp.where(row_weights.sum() > 0, row_weights, 1)
    params = Start.default(mixture, rows).params(mixture, key, rows, row_weights)
    r, _ = mixture.posterior(params, rows)
    r = r.responsibilities * (row_weights > 0)[:, None]
    pairs, first = 0, 0
    for part, w in zip(x.split(r), x.from_units(weights), strict=True):
        pairs += jnp.einsum("n,nti,ntj->ij", w, part[:, :-1], part[:, 1:], precision="highest")
        first += w @ part[:, 0]
    return params.components, first, pairs


def bank_of(bank):
    """The bank of emissions; TypeError unless it is one."""
    is_class = isinstance(bank, type)
    if not is_class and not isinstance(bank, Model) and defines(bank, "posterior"):
        return AdoptedBank(bank)
    if is_class or not isinstance(bank, Bank):
        name = bank.__name__ if is_class else type(bank).__name__
        remedy = f"write {name}(...)" if is_class else f"lift one model, jaxem.Each({name}(...))"
        raise TypeError(f"emissions must be a bank such as jaxem.Normal(), got {name}: {remedy}")
    return bank


def kept_positive(probabilities, previous):
    """Probabilities of which those that were above 0 stay so where they underflow: a probability of
    exactly 0 is one that was given, and no free parameter. It has no slope, by which it could rise.
    """
    limits = jnp.finfo(probabilities.dtype)
    least = jnp.maximum(probabilities, limits.tiny / limits.eps)
    return jnp.where(previous > 0, least, 0)


def normalised(counts, otherwise):
    """Rows of counts divided by their sums; those of `otherwise` where a row is empty."""
    total = counts.sum(-1)
    shares = divided(counts, safe(total)[..., None])
    return jnp.where(is_empty(total)[..., None], otherwise, shares)
