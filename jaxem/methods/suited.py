"""The method that climbs a model: what `EM()` leaves open, decided by what the model has."""

from jaxem.methods.em import EM, Exact
from jaxem.protocol.capabilities import FiniteLatents, LocalPosterior, defines, has
from jaxem.protocol.model import name_of
from jaxem.wrappers.factored import factored


def suited(method, model, x):
    """A method for a model and data shaped like x. TypeError where they do not go together.

    Rules are imported where they are needed: a plain fit starts sooner without them.

    `EM` gets `Gradient()` where the model has no M-step of its own, `Variational()` where it knows
    no posterior, and `MeanField()` where its latent variables are several. A method that has a
    `suited(model, x)` of its own decides for itself.
    """
    if not isinstance(method, EM):
        return method.suited(model, x)
    e_step, m_step = _for_latents(model, method.e_step), method.m_step
    if has(model, LocalPosterior):
        if type(e_step) is not Exact or not isinstance(m_step, Exact):
            raise TypeError(
                f"{name_of(model)} has a posterior of its own, which is improved step by "
                "step: leave e_step=jaxem.Exact() and m_step=jaxem.Exact()"
            )
        from jaxem.methods.local import LocalAscent

        return EM(LocalAscent(), m_step, method.accelerator)
    exact = defines(model, "posterior") or has(model, FiniteLatents)
    unknown = not exact and not getattr(e_step, "several", False)
    if unknown and type(e_step) is Exact:
        from jaxem.methods.variational import Variational

        e_step = Variational()
    if isinstance(m_step, Exact) and not model.closed(x):
        from jaxem.methods.m_steps import Gradient
        from jaxem.numerics.descent import lbfgs

        m_step = Gradient(lbfgs(), steps=5) if unknown else Gradient()
    return EM(e_step, m_step, method.accelerator)


def _for_latents(model, e_step):
    """The rule for q: `MeanField()` by default where latent variables are several. TypeError where
    a given rule does not go with the model."""
    several = factored(model) is not None
    if several and type(e_step) is Exact:
        from jaxem.methods.mean_field import MeanField

        return MeanField()
    if several != getattr(e_step, "several", False):
        raise TypeError(
            f"{type(e_step).__name__} is for models with one latent variable, log_joint(params, x) "
            "-> (n, k): this one has latents(x), leave e_step=jaxem.MeanField()"
            if several
            else "MeanField is for models with latents(x) and log_joint(params, x, z): this one "
            "has one latent variable, leave e_step=jaxem.Exact()"
        )
    return e_step
