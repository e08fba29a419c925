"""From what a user calls a model to a `Model`."""

from jaxem.protocol.capabilities import defines
from jaxem.protocol.model import Model
from jaxem.protocol.wrapper import Wrapper
from jaxem.wrappers.adopted import Adopted


def adopt(model) -> Model:
    """`model` itself where it is a `Model`, else wrapped so that every default is there, and as a
    free energy where its latent variables are several."""
    if not isinstance(model, Wrapper) and defines(model, "latents"):
        from jaxem.wrappers.factored import Factored  # most fits need no mean field

        return Factored(model)
    return model if isinstance(model, Model) else Adopted(model)
