"""What data latent Dirichlet allocation takes."""

import math

import jax.numpy as jnp
import numpy as np

from jaxem.data.documents import Documents
from jaxem.numerics.tree import is_traced
from jaxem.protocol.domains import Domain, is_count


class DocumentsDomain(Domain):
    """`Documents`."""

    def valid(self, x):
        x = self.examined(x)
        valid = object.__new__(Documents)
        size = (x.size >= 0) & (x.size < math.inf)
        return valid._set(size, self.known(x, x.words), self.whole(x.counts), x.vocabulary)

    def examined(self, x):
        """Documents of one cell where x has rows of several widths: the first word of each document
        that is outside the vocabulary and its first count that is invalid, or else any."""
        words, counts, place = x.stored
        if place is None:
            return x
        xp = jnp if is_traced(x) else np

        def first_wrong(rows, are_valid):
            cell = xp.argmin(are_valid, axis=1)[:, None]
            return xp.take_along_axis(xp.asarray(rows), cell, axis=1)

        words = xp.concatenate([first_wrong(w, self.known(x, w)) for w in words])[place]
        counts = xp.concatenate([first_wrong(c, self.whole(c)) for c in counts])[place]
        return object.__new__(Documents)._set(x.size, words, counts, x.vocabulary)

    def substitute(self, x, is_usable):
        """A short document where x has rows of several widths: absent ones cost as much."""
        if x.place is None:
            return super().substitute(x, is_usable)
        return jnp.argmin(jnp.where(is_usable, x.place, jnp.iinfo(jnp.int32).max))

    def known(self, x, words):
        """Which words are in the vocabulary of x."""
        return (words >= 0) & (words < x.vocabulary)

    def whole(self, counts):
        """Which counts are whole numbers of 0 or more."""
        return is_count(counts)

    def check(self, x, name):
        if not isinstance(x, Documents):
            raise TypeError(
                f"LDA takes jaxem.Documents, got {type(x).__name__}: wrap the counts, "
                "jaxem.Documents(x)"
            )
        super().check(x, name)
