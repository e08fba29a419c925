"""A call in parts, one for each core of a CPU, gives the answers of one part."""

import jax
import numpy as np
import pytest

import jaxem
from jaxem.numerics import tuning
from jaxem.solver import parts, threads

MODEL = jaxem.Mixture(jaxem.Normal(), k=2)
RNG = np.random.default_rng(0)
SETS = RNG.normal(size=(37, 40, 2)) + 3 * RNG.integers(2, size=(37, 40, 1))


@pytest.fixture
def cut_in_three(monkeypatch):
    """Every call is long enough, and there are three cores. Counts the parts of every call."""
    seen, cut = [], parts.number_of_parts

    def number_of_parts(*args):
        seen.append(cut(*args))
        return seen[-1]

    monkeypatch.setattr(tuning, "PART_SECONDS", 0)
    monkeypatch.setattr(tuning, "PART_FITS", 4)
    monkeypatch.setattr(threads, "cores", lambda: 3)
    monkeypatch.setattr(parts, "number_of_parts", number_of_parts)
    return seen


def calls():
    weights = RNG.integers(3, size=SETS.shape[:2])
    covariance = np.broadcast_to(np.eye(2), (37, 2, 2, 2))
    components = jaxem.NormalParams(SETS[:, :2], covariance)
    start = jaxem.MixtureParams(np.full((37, 2), 0.5), components)
    plan = jaxem.Restarts(13, screen_iters=5, keep=12)
    return {
        "batch": lambda: jaxem.fit(MODEL, jaxem.Batch(SETS), key=0),
        "weights": lambda: jaxem.fit(MODEL, jaxem.Batch(SETS), key=0, weights=weights),
        "given": lambda: jaxem.fit(MODEL, jaxem.Batch(SETS), init=start),
        "restarts": lambda: jaxem.fit(MODEL, SETS[0], key=0, restarts=13),
        "screened": lambda: jaxem.fit(MODEL, SETS[0], key=0, restarts=plan),
        "ragged": lambda: jaxem.fit(MODEL, jaxem.Batch([*SETS[:9], *SETS[:9, :20]]), key=0),
    }


CALLS = calls()


@pytest.mark.parametrize("name", CALLS)
def test_parts_change_nothing(name, cut_in_three):
    cut = CALLS[name]()
    assert max(cut_in_three) == (3 if name != "ragged" else 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "cores", lambda: 1)
        whole = CALLS[name]()
    assert type(cut.status) is type(whole.status)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_long_calls_are_cut_into_slices_of_parts(cut_in_three, monkeypatch):
    whole = jaxem.fit(MODEL, jaxem.Batch(SETS), key=0)
    monkeypatch.setattr(tuning, "STEP_SECONDS", 1e-4)
    sliced = jaxem.fit(MODEL, jaxem.Batch(SETS), key=0)
    assert cut_in_three == [3, 3]
    assert (sliced.n_iter == whole.n_iter).all()
    np.testing.assert_allclose(sliced.objective, whole.objective, rtol=1e-9)


def test_short_calls_and_threads_have_one_part():
    assert parts.number_of_parts(1000, tuning.PART_SECONDS / 2) == 1
    inside = threads.in_threads(lambda _: parts.number_of_parts(1000, 1.0), [0, 1])
    assert inside == [1, 1]


def test_own_classes_and_methods_that_call_lapack_have_one_part():
    class Own:
        """A model of a user."""

    assert parts.are_ours(MODEL, jaxem.EM(accelerator=jaxem.SQUAREM()), None)
    assert not parts.are_ours(Own())
    assert not parts.are_ours(MODEL, jaxem.EM(e_step=jaxem.MeanField()))
    newton = jaxem.EM(m_step=jaxem.Gradient())
    assert parts.are_ours(MODEL, newton)
    lowered = jax.jit(lambda x: jaxem.fit(MODEL, x, key=0, method=newton).params).lower(SETS[0])
    assert "cholesky" not in lowered.as_text() and "lapack" not in lowered.as_text()


def test_the_last_part_is_filled_up():
    pieces = parts.cut({"a": np.arange(7)}, 3)
    assert [piece["a"].tolist() for piece in pieces] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    assert parts.joined(pieces, 7)["a"].tolist() == list(range(7))
