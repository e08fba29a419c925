"""The base of models made of one other model: everything is forwarded that is not overridden."""

from jaxem.protocol import capabilities
from jaxem.protocol.capabilities import defines, names
from jaxem.protocol.model import Bank, Model, name_of


class Wrapper(Model):
    """A model that answers as the model it wraps, but for what its own class defines.

    A subclass says what it wraps with `wrapped`. What it must not pass on it sets to None. This is
    the one place where a model is asked for functions by their names.
    """

    @property
    def wrapped(self):
        """The model that is wrapped, of any class."""
        raise NotImplementedError

    def _defines(self, name):
        for cls in type(self).__mro__:
            if cls is Wrapper:
                return defines(self.wrapped, name)
            if name in vars(cls):
                return vars(cls)[name] is not None

    def _name(self):
        return name_of(self.wrapped)


def _forward(name):
    """A method, or a property where `Model` has a value, that asks the wrapped model first."""
    defaults = {**vars(Bank), **vars(Model)}
    default = defaults.get(name)
    if name in defaults and not callable(default):

        def value(self):
            found = default.fget(self) if isinstance(default, property) else default
            return getattr(self.wrapped, name, found)

        return property(value)

    def function(self, *args, **options):
        given = getattr(self.wrapped, name, None)
        if given is not None:
            return given(*args, **options)
        if default is None:
            raise NotImplementedError(f"{name_of(self)} does not define {name}")
        return default(self, *args, **options)

    return function


CAPABILITIES = [
    value
    for value in vars(capabilities).values()
    if isinstance(value, type) and value.__module__ == capabilities.__name__
]
"""All capabilities."""

PROTOCOL = [name for base in (Model, Bank) for name in vars(base) if not name.startswith("_")]
for _name in {*PROTOCOL, *(name for one in CAPABILITIES for name in names(one))}:
    setattr(Wrapper, _name, _forward(_name))
