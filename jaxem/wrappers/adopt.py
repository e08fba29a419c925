"""Conversion of a user's model of any class to a `Model`."""

from jaxem.protocol.capabilities import defines
from jaxem.protocol.model import Model
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopted import Adopted


def adopt(model) -> Model:
    """`model` itself where it is a `Model`; else an `Adopted` model with the defaults of `Model`,
    or a `Factored` one where it has several latent variables."""
    if not isinstance(model, Wrapper) and defines(model, "latents"):
        from jaxem.wrappers.factored import Factored  # most fits need no mean field

        return Factored(model)
    return model if isinstance(model, Model) else Adopted(model)
