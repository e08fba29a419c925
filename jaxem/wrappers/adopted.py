"""A user's model that does not inherit from `Model`, with all defaults of `Model`."""

from typing import Any

from jaxem.numerics.tree import pytree
from jaxem.protocol.model import Bank
from jaxem.protocol.wrapper import Wrapper


@pytree
class Adopted(Wrapper):
    """A user's model that does not inherit from `Model`: its own functions, else the defaults."""

    inner: Any

    @property
    def wrapped(self):
        return self.inner

    def __repr__(self):
        return repr(self.inner)


@pytree
class AdoptedBank(Adopted, Bank):
    """A user's bank that does not inherit from `Bank`: its own functions, else the defaults."""

    __repr__ = Adopted.__repr__
