"""The arithmetic of a block of documents: γ, F and expected counts from γ and the topics.

exp(ψ(a)) underflows where a is small: below 0.0115 in float32. So exp(ψ(γ_k)) is divided by its
largest value in a document, and a row of the table by its largest entry, and both are multiplied by
`headroom`. Where the sum over topics underflows even so, φ of that block is computed from
logarithms.

Axes and cells as in `posterior`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import Precision, lgamma, stop_gradient

from jaxem.numerics import tuning
from jaxem.numerics.special import digamma, digamma_parts


class Table(NamedTuple):
    """logs (v, k): E[log p(word | topic)]; shift (v,): its largest value for a word, −∞ where no
    topic holds the word; table (v, k): headroom · exp(logs − shift); alpha (k,); words (n, L),
    counts (n, L), or tuples of rows of several widths, of which document i is in row place[i]."""

    table: jax.Array
    logs: jax.Array
    shift: jax.Array
    alpha: jax.Array
    words: Any
    counts: Any
    place: Any = None

    @classmethod
    def of(cls, topics, mass, alpha, words, counts, place=None):
        """The `Table` of topics (k, v): of point estimates, or with mass (k,) of the posteriors
        Dirichlet(mass · topics)."""
        topics = topics.T
        scale = headroom(topics.dtype)
        if mass is None:
            largest = stop_gradient(topics.max(1))
            table = scale * (topics / jnp.where(largest > 0, largest, 1)[:, None])
            logs, shift = log_or_minus_infinity(topics), log_or_minus_infinity(largest)
        else:
            logs = digamma(topics * mass) - digamma(mass)
            shift = stop_gradient(logs.max(1))
            finite_shift = jnp.where(jnp.isfinite(shift), shift, 0)
            table = scale * jnp.exp(logs - finite_shift[:, None])
        return cls(table, logs, shift, alpha, words, counts, place)


class Block(NamedTuple):
    """Documents of a block.

    words, counts (w, l). shift (w, l): that of the words. least (w, l): `cell_norms` below this are
    inexact by underflow. rows (w, k, l): of the table. data: the `Table`.
    """

    words: jax.Array
    counts: jax.Array
    shift: jax.Array
    least: jax.Array
    rows: jax.Array
    data: Table

    @classmethod
    def of(cls, data: Table, words, counts):
        """The block of documents with these cells."""
        shift = jnp.take(data.shift, words, mode="clip")
        limits = jnp.finfo(data.table.dtype)
        least = float(limits.tiny) * headroom(data.table.dtype) / float(limits.eps)
        least = jnp.where((counts > 0) & (shift > -jnp.inf), least, 0).astype(data.table.dtype)
        return cls(words, counts, shift, least, table_rows(data.table, words), data)

    def are_safe(self, norm):
        """Whether no `cell_norms` of the block is inexact by underflow."""
        return jnp.all(norm >= self.least)

    def logarithmic(self, gamma):
        """(φ (w, k, l), log Σ_k exp(ψ(γ_k)) · exp(logs) (w, l)), from logarithms."""
        joint = digamma(gamma)[:, :, None] + table_rows(self.data.logs, self.words)
        top = joint.max(1)
        exponentials = jnp.exp(joint - jnp.where(jnp.isfinite(top), top, 0)[:, None])
        total = exponentials.sum(1)
        shares = exponentials / jnp.where(total > 0, total, 1)[:, None]
        return shares, top + jnp.log(jnp.where(total > 0, total, 1))


class BlockValues(NamedTuple):
    """Quantities of the documents of a block.

    gamma (w, k): γ. norm (w, l): `cell_norms`. is_safe: whether they are exact. evidence (w,): F at
    the best φ, in nats.
    """

    gamma: jax.Array
    norm: jax.Array
    is_safe: jax.Array
    evidence: jax.Array


def block_values(block: Block, gamma):
    """The `BlockValues` of the documents of a block at γ."""
    counts = block.counts
    e, top = scaled_exp_digamma(gamma)
    norm = cell_norms(block.rows, e)
    is_safe = block.are_safe(norm)

    def linear():
        return log_norms(norm, block.shift, top)

    log_norm = jax.lax.cond(is_safe, linear, lambda: block.logarithmic(gamma)[1])
    logs = jnp.where(counts > 0, counts * log_norm, 0).sum(-1)
    minus_kl = minus_kl_of_dirichlets(block.data.alpha, gamma, mean_log(gamma))
    evidence = logs + minus_kl - counts.sum(-1) * digamma(gamma.sum(-1))
    return BlockValues(gamma, norm, is_safe, evidence)


def minus_kl_of_dirichlets(alpha, gamma, logs):
    """−KL(Dirichlet(γ) ‖ Dirichlet(alpha)) over the last axis; logs: E[log θ] under the first."""
    cross = ((alpha - gamma) * logs).sum(-1)
    return log_normalizer(alpha) - log_normalizer(gamma) + cross


def log_normalizer(alpha):
    """log Γ(Σα) − Σ log Γ(α), over the last axis."""
    return lgamma(alpha.sum(-1)) - lgamma(alpha).sum(-1)


def table_rows(table, words):
    """The rows of the table for a block of words (w, l), as (w, k, l), the fastest layout for the
    products with them."""
    return jnp.swapaxes(jnp.take(table, words, axis=0, mode="clip"), 1, 2)


SMALL = 1e-6
"""A sum over topics, relative to its largest possible term, below which its logarithm is taken
before it is scaled."""


def headroom(dtype) -> float:
    """The factor of the table and of exp ψ(γ). Sums of their products stay below the largest
    number."""
    return 2.0 ** (0.4 * jnp.finfo(dtype).maxexp // 1)


def scaled_exp_digamma(gamma):
    """(headroom · exp(ψ(γ) − top) (w, k), top (w, 1): the largest ψ(γ) of each document)."""
    y, offset = digamma_parts(gamma)  # ψ = log y + offset, and both are largest at the same entry
    largest, top = (stop_gradient(part.max(-1, keepdims=True)) for part in (y, offset))
    scaled = y * (headroom(gamma.dtype) / largest) * jnp.exp(offset - top)
    return scaled, jnp.log(largest) + top


def cell_norms(rows, e):
    """Σ_k e_wk rows_wkl: (w, l)."""
    return jnp.einsum("wk,wkl->wl", e, rows, precision=Precision.HIGHEST)


def log_norms(norm, shift, top):
    """log Σ_k exp(ψ(γ_k)) · exp(logs) (w, l) from `cell_norms`, with the shift (w, l) of the words
    and top (w, 1) of the documents."""
    square = headroom(norm.dtype) ** 2
    is_small = norm < square * SMALL  # others are divided first, so that no digits cancel
    scaled = jnp.where(is_small, norm, norm / square)
    logs = jnp.log(jnp.where(scaled > 0, scaled, 1)) - jnp.where(is_small, math.log(square), 0)
    return logs + shift + top


def cell_ratios(counts, norm):
    """(r, f) with counts / norm = r · f, where f is a number. The derivative of r does not
    underflow: that of counts / norm, which has the square of norm, does."""
    scale = headroom(norm.dtype)
    scaled = norm / scale
    return counts / jnp.where(scaled > 0, scaled, 1), 1 / scale


def stepped_gamma(block: Block, gamma):
    """γ (w, k) after one step: α + Σ_l counts φ."""
    counts, alpha = block.counts, block.data.alpha
    e, _ = scaled_exp_digamma(gamma)
    norm = cell_norms(block.rows, e)

    def linear():
        ratio, factor = cell_ratios(counts, norm)
        sums = jnp.einsum("wl,wkl->wk", ratio, block.rows, precision=Precision.HIGHEST)
        return alpha + e * factor * sums

    def logarithmic():
        return alpha + jnp.einsum(
            "wl,wkl->wk", counts, block.logarithmic(gamma)[0], precision=Precision.HIGHEST
        )

    return jax.lax.cond(block.are_safe(norm), linear, logarithmic)


def add_cells(total, block: Block, values: BlockValues, weights):
    """total (v, k) + Σ_w weights_w Σ_l counts_wl φ_wkl [words_wl = word]."""
    words, counts = block.words, block.counts
    (w, length), v = words.shape, total.shape[0]
    k = total.shape[1]

    def ratio_and_e():
        e, _ = scaled_exp_digamma(values.gamma)
        ratio, factor = cell_ratios(counts, values.norm)
        return ratio, e * (factor * weights)[:, None]

    def linear_cells():
        ratio, e = ratio_and_e()
        return jnp.swapaxes(block.rows * e[:, :, None] * ratio[:, None], 1, 2)

    def logarithmic_cells():
        shares = block.logarithmic(values.gamma)[0]
        return jnp.swapaxes(shares * (counts * weights[:, None])[:, None], 1, 2)

    def scattered(cells):
        return total.at[words.reshape(-1)].add(cells.reshape(-1, k))

    if tuning.platform() == "cpu" or v > tuning.SPARSE * length:
        return scattered(jax.lax.cond(values.is_safe, linear_cells, logarithmic_cells))

    def dense_product():
        ratio, e = ratio_and_e()
        dense = jnp.zeros((w, v), e.dtype).at[jnp.arange(w)[:, None], words].add(ratio)
        product = jnp.matmul(dense.T, e, precision=Precision.HIGHEST)
        return total + product * block.data.table

    return jax.lax.cond(values.is_safe, dense_product, lambda: scattered(logarithmic_cells()))


def mean_log(gamma):
    """E[log θ] (n, k) under Dirichlet(γ)."""
    return digamma(gamma) - digamma(gamma.sum(-1, keepdims=True))


def log_or_minus_infinity(p):
    """log p, −∞ with slope 0 where p is 0."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)
