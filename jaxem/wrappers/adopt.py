"""Conversion of a user's model of any class to a `Model`."""

from jaxem.protocol.capabilities import defines
from jaxem.protocol.model import Model
from jaxem.wrappers.adopted import Adopted
from jaxem.wrappers.factored import Factored


def adopt(model) -> Model:
    """`model` itself where it is a `Model`; else an `Adopted` model with the defaults of `Model`,
    or a `Factored` one where it has several latent variables."""
    if defines(model, "latents"):
        return Factored(model)
    return model if isinstance(model, Model) else Adopted(model)
