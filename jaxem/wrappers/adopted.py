"""A user's model that inherits from nothing, with every default of `Model`."""

from typing import Any

from jaxem.numerics.tree import pytree
from jaxem.protocol.model import Model


@pytree
class Adopted(Model):
    """A user's model that does not inherit from `Model`: its own functions, else the defaults."""

    inner: Any

    @property
    def _wrapped(self):
        return self.inner


def _delegate(name):
    default = getattr(Model, name)

    def function(self, *args):
        own = getattr(self.inner, name, None)
        return default(self, *args) if own is None else own(*args)

    return function


for _name in [n for n in vars(Model) if not n.startswith("_") and callable(getattr(Model, n))]:
    setattr(Adopted, _name, _delegate(_name))
