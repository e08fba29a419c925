"""What of a function of params and data depends on params alone, computed once."""

import jax


def hoisted(function, params, *shapes):
    """(values, rest) with rest(values, *args) = function(params, *args) for args of these shapes.

    All that depends on params alone is in the values. Compilers for accelerators leave it in a loop
    over chunks of data, where it would be a factorisation of every covariance a chunk.
    """
    from jax.extend.core import Literal  # its import takes 30 ms; a small fit does without it

    closed, out = jax.make_jaxpr(function, return_shape=True)(params, *shapes)
    jaxpr, structure = closed.jaxpr, jax.tree.structure(out)
    leaves = jax.tree.leaves(params)
    of_params, of_args = jaxpr.invars[: len(leaves)], jaxpr.invars[len(leaves) :]
    known, constant, before, after = {*of_params, *jaxpr.constvars}, set(), [], []
    for equation in jaxpr.eqns:
        inputs = {v for v in equation.invars if not isinstance(v, Literal)}
        is_pure = not equation.effects
        if is_pure and inputs <= constant:  # of numbers alone, such as an identity matrix
            constant.update(equation.outvars)
            before.append(equation)
            after.append(equation)
        elif is_pure and inputs <= known | constant:
            known.update(equation.outvars)
            before.append(equation)
        else:
            after.append(equation)
    used = [*(v for equation in after for v in equation.invars), *jaxpr.outvars]
    used = {v: None for v in used if not isinstance(v, Literal) and v in known}
    first = jaxpr.replace(invars=of_params, outvars=list(used), eqns=before)
    second = jaxpr.replace(constvars=[], invars=[*used, *of_args], eqns=after)
    values = jax.core.eval_jaxpr(first, closed.consts, *leaves)

    def rest(values, *args):
        outputs = jax.core.eval_jaxpr(second, (), *values, *jax.tree.leaves(args))
        return jax.tree.unflatten(structure, outputs)

    return values, rest
