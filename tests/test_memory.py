"""Memory: many calls leave nothing behind, and a fit that waits costs little."""

import gc
import pathlib

import jax
import numpy as np
import pytest

import jaxem

pytestmark = pytest.mark.shipped
K, D = 8, 2
MODEL = jaxem.Mixture(jaxem.Normal(), k=K)
STATM = pathlib.Path("/proc/self/statm")
PAGE, MB = 4096, 2**20


def shapes(*lead, rows):
    """Shapes of data and of given params, with leading axes."""
    of = jax.ShapeDtypeStruct
    bank = jaxem.NormalParams(of((*lead, K, D), float), of((*lead, K, D, D), float))
    return of((rows, D), float), jaxem.MixtureParams(of((*lead, K), float), bank)


def compiled(function, *args):
    """Bytes that the compiled program holds: temporary, and results."""
    used = jax.jit(function).lower(*args).compile().memory_analysis()
    assert used.temp_size_in_bytes > 0
    return np.array([used.temp_size_in_bytes, used.output_size_in_bytes])


def per_fit(measure, few=64, many=512):
    """How much more each further fit takes: temporary bytes, and bytes of results."""
    return (measure(many) - measure(few)) / (many - few)


@pytest.mark.parametrize("way", ["Batch", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_waiting_data_set_costs_one_copy_of_itself(way):
    """In the queue wait the data in safe units, their weights and the state of the climb, which is
    a few times the params. An (n, k) array a data set would be 2.7 times the first two."""
    rows = 500

    def batch(x, start):
        return jaxem.fit(MODEL, jaxem.Batch(x), init=start)

    mapped = jax.vmap(lambda x, start: jaxem.fit(MODEL, x, init=start))

    def measure(b):
        x, start = shapes(b, rows=rows)
        x = jax.ShapeDtypeStruct((b, *x.shape), x.dtype)
        return compiled(batch if way == "Batch" else mapped, x, start)

    temporary, result = per_fit(measure)
    assert temporary <= 8 * rows * (D + 1) + 5 * result


@pytest.mark.parametrize("way", ["vmap", pytest.param("restarts", marks=pytest.mark.slow)])
def test_restarts_share_their_data(way):
    """A further restart holds its state alone: less than a tenth of a copy of the data."""
    rows = 2000

    def measure(r):
        def restarted(x, start):
            return jaxem.fit(MODEL, x, init=start, restarts=r)

        mapped = jax.vmap(lambda x, start: jaxem.fit(MODEL, x, init=start), (None, 0))
        return compiled(restarted if way == "restarts" else mapped, *shapes(r, rows=rows))

    temporary, result = per_fit(measure)
    assert temporary <= 5 * result
    assert temporary < 8 * rows * D / 10


def test_two_hundred_calls_leave_nothing_behind():
    """One call holds 0.4 MB of data and as much again of padding: a leak of either would show."""
    rng = np.random.default_rng(0)
    model = jaxem.Mixture(jaxem.Normal(covariance="diagonal"), k=2)

    def call():
        sets = [rng.normal(size=(n, 8)) for n in (100, 140) * 25]
        fleet = jaxem.fit(model, jaxem.Batch(sets), key=0, max_iter=2, tol=0)
        assert np.isfinite(fleet.log_likelihood).all()

    def held():
        gc.collect()
        pages = int(STATM.read_text().split()[1]) if STATM.exists() else 0
        return len(jax.live_arrays()), pages * PAGE

    for _ in range(50):
        call()
    arrays, memory = held()
    for _ in range(200):
        call()
    after = held()
    assert after[0] == arrays
    assert after[1] - memory < 20 * MB
