"""The base of models that wrap another model, to which they forward what they do not define."""

from jaxem.protocol import capabilities
from jaxem.protocol.capabilities import defines, names
from jaxem.protocol.model import Bank, Model, name_of


class Wrapper(Model):
    """A model with the functions of the model that it wraps, except those that its class defines.

    A subclass defines `wrapped`, and sets to None the names that it must not forward.
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

    def _size_of_terms(self, params, stats):
        inner = self.wrapped
        return inner._size_of_terms(params, stats) if isinstance(inner, Model) else 0.0


def _forward(name):
    """A method, or a property where `Model` has a value, that takes the wrapped model's own, else
    the default."""
    defaults = {**vars(Bank), **vars(Model)}
    default = defaults.get(name)
    if name in defaults and not callable(default):

        def value(self):
            fallback = default.fget(self) if isinstance(default, property) else default
            return getattr(self.wrapped, name, fallback)

        return property(value)

    def function(self, *args, **options):
        forwarded = getattr(self.wrapped, name, None)
        if forwarded is not None:
            return forwarded(*args, **options)
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
FURTHER = capabilities.STARTS_AND_RESPONSES
for _name in {*PROTOCOL, *FURTHER, *(name for one in CAPABILITIES for name in names(one))}:
    setattr(Wrapper, _name, _forward(_name))
