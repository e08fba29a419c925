"""Comparisons and small tools that several files use. Trees are compared by chex."""

import warnings

import chex
import jax
import numpy as np

import jaxem


def close(a, b, tol=1e-9):
    chex.assert_trees_all_close(a, b, rtol=tol, atol=tol)


def equal(a, b) -> bool:
    """Whether two trees are the same, bit for bit."""
    try:
        chex.assert_trees_all_equal(a, b)
    except AssertionError:
        return False
    return True


def lane(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def with_value(x, value, at=(7, 1)):
    """A copy of x that holds `value` at one place."""
    x = np.array(x, float)
    x[at] = value
    return x


def quiet(function, *args, **options):
    """A call whose statuses are looked at by the test, not by warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)
        return function(*args, **options)


def same_ends(many, others, n, tol, rtol=1e-9, params=1e-9):
    """Two programs' fits of the same problems agree as promised; `others` may be a list of fits.

    Rounding may end a fit one step sooner or later. Where the steps are as many, values and params
    agree to rounding. Elsewhere the values agree to a hundredth of the tolerance, `tol` a unit.
    """

    def of(name):
        if isinstance(others, list):
            return np.array([float(getattr(fit, name)) for fit in others])
        return np.asarray(getattr(others, name), float)

    apart = np.abs(np.asarray(many.n_iter) - of("n_iter"))
    assert apart.max() <= 1 and (apart == 0).mean() > 0.5
    np.testing.assert_array_equal(many.status, of("status"))
    for name in ("objective", "log_likelihood"):
        theirs = of(name)
        allowed = np.where(apart == 0, rtol * np.abs(theirs), 0.01 * tol * n)
        away = np.abs(np.asarray(getattr(many, name), float) - theirs)
        assert (away <= allowed).all(), (name, away, allowed)
    for i in np.flatnonzero(apart == 0):
        other = others[i].params if isinstance(others, list) else lane(others.params, i)
        close(lane(many.params, i), other, params)
