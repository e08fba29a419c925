"""The 14 covariance structures of `Normal`, against random and numerical maximisation of Q."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxem
from jaxem.families.normal.gaussian import NormalStatistics
from jaxem.numerics.rotations import assembled, eigen

WORDS = {"VVV": "full", "EEE": "tied", "VVI": "diagonal", "VII": "spherical"}
NEW = ["EII", "EEI", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV"]
NAMES = [*NEW, *WORDS]
K, D = 3, 3


def parameters(name, k, d):
    """mclust's count, letter by letter."""
    volume, shape, orientation = name
    of_shape = {"I": 0, "E": d - 1, "V": k * (d - 1)}[shape]
    turns = {"I": 0, "E": d * (d - 1) // 2, "V": k * d * (d - 1) // 2}[orientation]
    return {"E": 1, "V": k}[volume] + of_shape + turns


def rotation(turns, d):
    """The rotations by skew matrices (Cayley), from their d (d − 1) / 2 entries (..., p)."""
    skew = np.zeros((*turns.shape[:-1], d, d))
    skew[..., *np.triu_indices(d, 1)] = turns
    skew = skew - skew.swapaxes(-1, -2)
    return np.linalg.solve(np.eye(d) + skew, np.eye(d) - skew)


class Parts:
    """Covariances λ_k D_k A_k D_kᵀ from a vector of free parameters, without jaxem."""

    def __init__(self, name, k, d):
        self.name, self.k, self.d, self.size = name, k, d, parameters(name, k, d)

    def covariance(self, vector, axes=None):
        """vector (..., size); axes (k, d, d): by which the rotations are preceded."""
        (volume, shape, _), k, d = self.name, self.k, self.d
        lead, planes = vector.shape[:-1], d * (d - 1) // 2
        many = {"I": 0, "E": 1, "V": k}[shape]
        at = np.cumsum([k if volume == "V" else 1, many * (d - 1)])
        log_volume, shapes, turns = np.split(vector, at, axis=-1)
        shapes = shapes.reshape(*lead, many, d - 1) if many else np.zeros((*lead, 1, d - 1))
        shapes = np.concatenate([shapes, -shapes.sum(-1, keepdims=True)], -1)
        values = np.exp(log_volume[..., None] + shapes)
        turns = turns.reshape(*lead, -1, planes) if turns.size else np.zeros((*lead, 1, planes))
        turned = rotation(turns, d)
        turned = turned if axes is None else axes @ turned
        values = np.broadcast_to(values, (*lead, k, d))
        turned = np.broadcast_to(turned, (*lead, k, d, d))
        return (turned * values[..., None, :]) @ turned.swapaxes(-1, -2)


def scatter_of(seed, k, d, rows=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(k, rows, d)) * np.exp(rng.normal(0, 0.7, (k, 1, d)))
    x = x @ (np.eye(d) + 0.4 * rng.normal(size=(d, d)))
    return rng.uniform(5, 20, k), np.einsum("kni,knj->kij", x, x)


def loss(covariance, count, scatter):
    """−2Q without constants."""
    log_det = np.linalg.slogdet(covariance)[1]
    trace = (scatter * np.linalg.inv(covariance)).sum((-2, -1))
    return (count * log_det + trace).sum(-1)


def whole(covariance, k, d):
    """Covariances (k, d, d) of any structure."""
    covariance = np.asarray(covariance)
    if covariance.shape == (k,):
        return covariance[:, None, None] * np.eye(d)
    if covariance.shape == (k, d) and (k != d or not np.allclose(covariance, covariance.T)):
        return covariance[:, :, None] * np.eye(d)
    return np.broadcast_to(covariance, (k, d, d))


class Loss:
    """`loss` as a function of the free parameters of a structure."""

    def __init__(self, parts, count, scatter):
        self.parts, self.count, self.scatter = parts, count, scatter

    def __call__(self, vector):
        return loss(self.parts.covariance(np.clip(vector, -9, 9)), self.count, self.scatter)


def statistics(name, count, scatter):
    k, d = scatter.shape[:2]
    second = scatter
    if name[2] == "I":
        second = scatter.diagonal(axis1=1, axis2=2)
        second = second.sum(1) if name[1] == "I" else second
    second = second.sum(0) if name == "EEE" else second
    return NormalStatistics(*map(jnp.asarray, (count, np.zeros((k, d), count.dtype), second)))


MAXIMIZE = jax.jit(lambda model, params, stats: model.maximize(params, stats))


DEGENERATE = jax.jit(lambda model, params: model.degenerate(params))


def maximized(name, count, scatter, previous=None, again=0):
    k, d = scatter.shape[:2]
    model = jaxem.Normal(name)
    unit = model.structure.unit(k, d, jnp.asarray(scatter).dtype)
    params = jaxem.NormalParams(
        jnp.zeros((k, d), unit.dtype), unit if previous is None else previous
    )
    stats = statistics(name, count, scatter)
    for _ in range(again + 1):
        params = MAXIMIZE(model, params, stats)
    return params.covariance


def axes_of(name, covariance):
    """Axes (k, d, d) of covariances of a structure: of a generic sum where they are common."""
    if name[2] == "I":
        return np.broadcast_to(np.eye(covariance.shape[-1]), covariance.shape)
    if name[2] == "E":
        factor = np.array([1.0, 0.37, 0.73, 0.19])[: len(covariance), None, None]
        total = (factor * covariance).sum(0) / np.trace(covariance[0])
        return np.broadcast_to(np.linalg.eigh(total)[1], covariance.shape)
    return np.linalg.eigh(covariance)[1]


@pytest.mark.parametrize("name", NAMES)
def test_m_step(name):
    """No random change of the parts raises Q, and no numerical maximisation ends higher."""
    rng = np.random.default_rng(5)
    count, scatter = scatter_of(0, K, D)
    covariance = whole(maximized(name, count, scatter), K, D)
    value = loss(covariance, count, scatter)
    parts = Parts(name, K, D)
    axes = axes_of(name, covariance)
    variances = np.einsum("kia,kij,kja->ka", axes, covariance, axes)
    volumes = np.log(variances).mean(1)
    shapes = np.log(variances) - volumes[:, None]
    chosen = [volumes if name[0] == "V" else volumes[:1]]
    if name[1] != "I":
        chosen.append((shapes if name[1] == "V" else shapes[:1])[:, :-1].ravel())
    turns = parts.size - sum(map(np.size, chosen))
    vector = np.concatenate([*chosen, np.zeros(turns)])
    np.testing.assert_allclose(parts.covariance(vector, axes), covariance, rtol=1e-9, atol=1e-9)
    steps = rng.normal(size=(10_000, vector.size)) * 10 ** rng.uniform(-5, 0, (10_000, 1))
    others = loss(parts.covariance(vector + steps, axes), count, scatter)
    assert others.min() >= value - 1e-10 * abs(value)
    value_of = Loss(parts, count, scatter)
    for _ in range(1 if turns == 0 else 3):
        start = np.concatenate([vector[: vector.size - turns], rng.normal(size=turns)])
        found = minimize(value_of, start, method="BFGS", options={"maxiter": 300})
        assert value <= found.fun + 1e-6


@pytest.mark.parametrize("k, d", [(1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("name", NEW)
def test_repeated_m_step(name, k, d):
    """The M-step from its own result changes nothing, in either precision; so does the map to the
    structure, from which every other part of it is taken."""
    count, scatter = scatter_of(3, k, d)
    for dtype, within in ((np.float64, 1e-9), (np.float32, 1e-3)):
        stats = count.astype(dtype), scatter.astype(dtype)
        once = maximized(name, *stats)
        again = maximized(name, *stats, once)
        assert once.dtype == again.dtype == dtype
        np.testing.assert_allclose(again, once, rtol=within, atol=within)
        space = jaxem.Normal(name).structure.space
        assert space.outside(np.asarray(once)) is None
        assert space.freedom(once.shape) == parameters(name, k, d)


@pytest.mark.parametrize("name", NEW)
def test_derivative_of_the_m_step(name):
    """By counts and scatters, in both modes, against central differences."""
    count, scatter = scatter_of(2, K, D)
    rng = np.random.default_rng(1)
    turn, of_count = rng.normal(size=scatter.shape), rng.normal(size=K)
    of_scatter, direction = turn + turn.swapaxes(1, 2), rng.normal(size=(K, D, D))
    previous = maximized(name, count, scatter)
    model = jaxem.Normal(name)
    seen = direction[:, 0, 0] if previous.ndim == 1 else direction[:, :, 0]
    seen = direction if previous.ndim == 3 else seen

    @jax.jit
    def value(h):
        stats = statistics(name, count + h * of_count, scatter + h * of_scatter)
        params = jaxem.NormalParams(jnp.zeros((K, D)), previous)
        return (seen * model.maximize(params, stats).covariance).sum()

    h = 1e-5
    expected = (value(h) - value(-h)) / (2 * h)
    forward, backward = jax.jit(lambda: (jax.jacfwd(value)(0.0), jax.grad(value)(0.0)))()
    np.testing.assert_allclose([forward, backward], expected, rtol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_eigenvectors(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(6, d, d + 2))
    matrix = root @ root.swapaxes(1, 2)
    matrix[0] = 2 * np.eye(d)  # all equal
    matrix[1] = root[1, :, :1] @ root[1, :, :1].T  # of rank 1
    values, vectors = jax.jit(eigen)(matrix)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[:, ::-1], atol=1e-13)
    np.testing.assert_allclose(assembled(vectors, values), matrix, atol=1e-13)


def test_names():
    """The four structures with a word are the same objects; all others have mclust's counts."""
    structures = {name: jaxem.Normal(name).structure for name in NAMES}
    for name, word in WORDS.items():
        assert structures[name] is jaxem.Normal(word).structure
    for name, structure in structures.items():
        for k, d in ((1, 1), (1, 4), (4, 1), (3, 5)):
            assert structure.n_parameters(k, d) == parameters(name, k, d)
    x = groups()
    fits = [
        jaxem.fit(jaxem.Mixture(jaxem.Normal(c), 2), x, key=0, max_iter=5, tol=0)
        for c in ("VII", "spherical")
    ]
    for a, b in zip(*(jax.tree.leaves(f.params) for f in fits), strict=True):
        np.testing.assert_array_equal(a, b)


def groups(n=60, d=3, seed=4):
    """Two groups of unlike size, shape and orientation."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.array([3.0, 1.0, 0.3])[:d]
    x[: n // 2] = x[: n // 2] @ np.linalg.qr(rng.normal(size=(d, d)))[0] * 0.5 + 2.5
    return x


OFTEN = ("VEI", "VVE", "VEV", "EVV")  # one of every file and kind of M-step


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in OFTEN)) for n in NEW]
)
def test_fit(name):
    """A fit with accelerated steps: the objective is that of params of the structure and never
    falls below that of plain EM; the bank's posterior is a normal density."""
    x = groups()
    model = jaxem.Mixture(jaxem.Normal(name), 2)
    result = jaxem.fit(
        model, x, key=0, restarts=4, method=jaxem.EM(accelerator=jaxem.SQUAREM()), tol=1e-9
    )
    assert result.converged
    p = result.params
    assert jaxem.Normal(name).structure.space.outside(np.asarray(p.components.covariance)) is None
    covariance = whole(p.components.covariance, 2, 3)
    centred = x[:, None] - np.asarray(p.components.mean)
    distance = np.einsum("nki,kij,nkj->nk", centred, np.linalg.inv(covariance), centred)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    joint = np.log(p.weights) - (distance + log_det) / 2
    expected = np.logaddexp.reduce(joint, axis=1).sum()
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-10)
    assert result.n_parameters == 1 + 2 * 3 + parameters(name, 2, 3)
    # At a fixed point of plain EM.
    again = jaxem.fit(model, x, init=p, max_iter=50, tol=1e-12)
    assert abs(again.log_likelihood - result.log_likelihood) < 1e-6


@pytest.mark.parametrize("name", NEW)
def test_em_never_falls(name):
    """Plain EM from poor params, among them those whose components overlap."""
    x = jnp.asarray(groups())
    model = jaxem.Mixture(jaxem.Normal(name), 2)
    unit = model.components.structure.unit(2, 3, x.dtype)
    start = jaxem.MixtureParams(jnp.full(2, 0.5), jaxem.NormalParams(x[:2], 9 * unit))

    def step(params, _):
        q, evidence = model.posterior(params, x)
        stats = model.statistics(params, x, q, jnp.ones(len(x)))
        return model.maximize(params, stats), evidence.sum()

    values = jax.jit(lambda p: jax.lax.scan(step, p, None, 40)[1])(start)
    assert values[-1] > values[0] and np.diff(values).min() > -1e-10 * abs(values[0])


TRIPLES = [(a, b, c) for a in "EV" for b in "EVI" for c in "EVI"]


def test_select_prints_a_table():
    """k × structure in one call, as mclust's table: a row a k, a column a structure."""
    x = groups()
    found = jaxem.select(x, k=(1, 2), covariance=("EII", "EVI"), key=0, restarts=2)
    lines = str(found).splitlines()
    assert "lower is better" in lines[0] and lines[2].split() == ["k", "EII", "EVI"]
    for line, k in zip(lines[3:5], (1, 2), strict=True):
        cells = [f"{row.score:.2f}" for row in found.table if row.k == k]
        assert line.replace("*", "").split() == [str(k), *cells]
    assert str(found).count("*") == 2
    assert [row.name for row in found.table[:2]] == ["Normal('EII'), k=1", "Normal('EII'), k=2"]
    assert [row.n_parameters for row in found.table] == [4, 8, 6, 12]
    log_density = -0.5 * (len(x) * (np.log(2 * np.pi * x.var(0)) + 1)).sum()
    np.testing.assert_allclose(found.table[2].log_likelihood, log_density, rtol=1e-9)
    rows = [row._replace(score=1e4 + i) for i, row in enumerate(found.table)]
    rows[3] = rows[3]._replace(status=jaxem.Status.DEGENERATE)
    wide = [rows[0]._replace(name=f"Normal('{a}{b}{c}'), k=1", k=1) for a, b, c in TRIPLES]
    text = str(dataclasses.replace(found, table=tuple(rows), winner=0))
    assert text.splitlines()[4].split()[2] == "-" and "- not sound" in text
    text = str(dataclasses.replace(found, table=tuple(wide), winner=0))
    assert max(map(len, text.splitlines())) <= 100 and all("".join(t) in text for t in TRIPLES)
    for options in ({}, {"models": [], "k": 2}, {"covariance": "EII"}):
        with pytest.raises(TypeError, match=r"models, or k|in place of models"):
            jaxem.select(x, key=0, **options)


def test_collapse_is_flagged():
    """A component on one point, or in a plane, has finite covariances of the structure."""
    x = groups()
    x[:8] = x[0]
    for name in NEW:
        count = np.array([8.0, 20.0])
        scatter = np.stack([np.zeros((3, 3)), x[8:28].T @ x[8:28]])
        model = jaxem.Normal(name)
        floored = jaxem.Normal(name, floor=1e-12)
        unit = model.structure.unit(2, 3, jnp.float64)
        params = jaxem.NormalParams(jnp.zeros((2, 3)), unit)
        params = MAXIMIZE(floored, params, statistics(name, count, scatter))
        assert np.isfinite(whole(params.covariance, 2, 3)).all()
        is_bounded = name[0] == "E"  # the other component keeps the volume up
        assert bool(np.any(DEGENERATE(floored, params))) != is_bounded, name


def test_errors():
    x = groups()
    with pytest.raises(ValueError, match="'VVE' takes no prior"):
        jaxem.Normal("VVE", prior=jaxem.NormalPrior(0.0, 1.0, 5.0, 1.0))
    with pytest.raises(ValueError, match="takes no covariance 'EEV'"):
        jaxem.fit(jaxem.BayesianMixture(jaxem.Normal("EEV"), 2), x, key=0)
    params = jaxem.MixtureParams(
        np.full(2, 0.5), jaxem.NormalParams(x[:2], np.stack([np.eye(3), np.diag([1.0, 2, 3])]))
    )
    with pytest.raises(ValueError, match="is not of structure VEE"):
        jaxem.fit(jaxem.Mixture(jaxem.Normal("VEE"), 2), x, init=params)
    restricted = jaxem.Restricted(
        jaxem.Mixture(jaxem.Normal("VEE"), 2), tied="components.covariance"
    )
    with pytest.raises(ValueError, match="common parts"):
        jaxem.fit(restricted, x, key=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VEI", "VVE", "VEV"])
def test_gradient_by_data(name):
    """The derivative of the log-likelihood and of the params along a change of the data, against
    central differences of fits from the same start."""
    x, rng = groups(), np.random.default_rng(0)
    change = rng.normal(size=x.shape)
    model = jaxem.Mixture(jaxem.Normal(name), 2)
    start = jaxem.fit(model, x, key=0, restarts=4, tol=1e-10, max_iter=3000).params
    factor = rng.normal(size=start.components.covariance.shape)

    def ended(h, tol=1e-13):
        options = {"init": start, "tol": tol, "max_iter": 2000}
        result = jaxem.fit(model, jnp.asarray(x) + h * change, **options)
        p = result.params.components
        return result.log_likelihood, (factor * p.covariance).sum() + p.mean.sum()

    h, fits = 1e-4, jax.jit(lambda h: ended(h, 0.0))
    expected = [(a - b) / (2 * h) for a, b in zip(fits(h), fits(-h), strict=True)]
    found = [jax.jit(jax.grad(lambda h, i=i: ended(h)[i]))(0.0) for i in (0, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
