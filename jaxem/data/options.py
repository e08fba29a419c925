"""Checks of options: integers, keys, tolerances and names."""

import difflib
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.tree import is_traced
from jaxem.protocol.hyperparameters import integer as integer


def as_key(key):
    """A typed or a legacy uint32 key as it is; an int as a uint32 seed, of which the compiled fit
    makes a key."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.ndim:
                raise ValueError(
                    f"key must be one key, got an array of shape {key.shape}: restarts split it"
                )
            return key
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return key
    elif isinstance(key, np.ndarray) and key.dtype == np.uint32 and key.shape == (2,):
        return key
    try:
        return np.uint32(operator.index(key) % 2**32)
    except TypeError as error:
        got = f"dtype {key.dtype} of shape {key.shape}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(f"key must be one jax.random.key(seed) or an int, got {got}") from error


def tolerance(value) -> float:
    """A tolerance in nats per unit of weight: a number of 0 or more, or a traced scalar."""
    if isinstance(value, jax.core.Tracer):
        if value.ndim:
            raise TypeError(f"tol must be one number, got a traced array of shape {value.shape}")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tol must be a number of 0 or more, got {value!r}") from error
    if not number >= 0 or math.isinf(number):
        raise ValueError(f"tol must be a finite number of 0 or more, got {value!r}")
    return number


def iteration_limit(value):
    """The most EM steps: an int of 0 or more, or a traced integer scalar."""
    if not isinstance(value, jax.core.Tracer):
        return integer(value, "max_iter", 0)
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"max_iter must be one int of 0 or more, got a traced {value.dtype} of shape "
            f"{value.shape}"
        )
    return value


def plan_to_unroll(max_iter, restarts) -> None:
    """TypeError where a fit cannot be unrolled: an unrolled fit takes a fixed number of steps and
    keeps all its restarts."""
    if isinstance(max_iter, jax.core.Tracer):
        raise TypeError('gradient="unrolled" takes exactly max_iter steps: pass a Python int')
    if not isinstance(restarts, int):
        raise TypeError('gradient="unrolled" cannot screen restarts: pass restarts as an int')


def one_of(value, name: str, allowed):
    """An option from a list of strings. The ValueError for any other suggests the nearest one."""
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(
        f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        + suggestion(value, allowed)
    )


def suggestion(word, allowed) -> str:
    """The end of a message that suggests the nearest allowed word, "" where none is near."""
    matches = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


ALIASES = {
    "n_init": "restarts",
    "random_state": "key",
    "seed": "key",
    "rng": "key",
    "sample_weight": "weights",
    "n_iter": "max_iter",
}
"""The arguments of `fit` by the names that other libraries give them."""


def refuse_unknown(unknown, allowed):
    """TypeError for keyword arguments that do not exist."""
    for word in unknown:
        known_name = ALIASES.get(word, word)
        raise TypeError(f"fit() has no argument {word!r}" + suggestion(known_name, allowed))


def integers(options, least: int, *names) -> None:
    """Replaces these fields of a frozen dataclass by ints. TypeError or ValueError, as by
    `integer`, unless each is `least` or more, or traced."""
    for name in names:
        value = getattr(options, name)
        if not is_traced(value):
            object.__setattr__(options, name, integer(value, name, least))
