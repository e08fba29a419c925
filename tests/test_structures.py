"""The 14 covariance structures of `Normal`, against random and numerical maximisation of Q."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxem
from jaxem.families.normal.gaussian import NormalStatistics

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
    """The rotation by a skew matrix (Cayley), from its d (d − 1) / 2 entries."""
    skew = np.zeros((d, d))
    skew[np.triu_indices(d, 1)] = turns
    skew = skew - skew.T
    return np.linalg.solve(np.eye(d) + skew, np.eye(d) - skew)


class Parts:
    """Covariances λ_k D_k A_k D_kᵀ from one vector of free parameters, without jaxem."""

    def __init__(self, name, k, d):
        self.name, self.k, self.d, self.size = name, k, d, parameters(name, k, d)

    def covariance(self, vector, axes=None):
        """axes (k, d, d): by which the rotations are preceded."""
        (volume, shape, _), k, d = self.name, self.k, self.d
        ends = np.cumsum([k if volume == "V" else 1, self.size])
        log_volume, rest = vector[: ends[0]], vector[ends[0] :]
        many = {"I": 0, "E": 1, "V": k}[shape]
        shapes, turns = rest[: many * (d - 1)].reshape(many, d - 1), rest[many * (d - 1) :]
        shapes = np.concatenate([shapes, -shapes.sum(1, keepdims=True)], 1)
        shapes = shapes if many else np.zeros((1, d))
        values = np.exp(log_volume[:, None] + shapes)
        values = np.broadcast_to(values, (k, d))
        planes = d * (d - 1) // 2
        turns = turns.reshape(-1, planes) if len(turns) else np.zeros((1, planes))
        turns = np.broadcast_to(turns, (k, planes))
        turned = np.stack([rotation(t, d) for t in turns])
        turned = turned if axes is None else axes @ turned
        return np.einsum("kia,ka,kja->kij", turned, values, turned)


def scatter_of(seed, k, d, rows=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(k, rows, d)) * np.exp(rng.normal(0, 0.7, (k, 1, d)))
    x = x @ (np.eye(d) + 0.4 * rng.normal(size=(d, d)))
    return rng.uniform(5, 20, k), np.einsum("kni,knj->kij", x, x)


def loss(covariance, count, scatter):
    """−2Q without constants."""
    log_det = np.linalg.slogdet(covariance)[1]
    trace = np.einsum("kij,kji->k", scatter, np.linalg.inv(covariance))
    return float((count * log_det + trace).sum())


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
        second = np.diagonal(scatter, axis1=1, axis2=2)
        second = second.sum(1) if name[1] == "I" else second
    second = second.sum(0) if name == "EEE" else second
    return NormalStatistics(*map(jnp.asarray, (count, np.zeros((k, d), count.dtype), second)))


MAXIMIZE = jax.jit(lambda model, params, stats: model.maximize(params, stats))


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
    for seed in (0, 1):
        count, scatter = scatter_of(seed, K, D)
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
        for _ in range(1000):
            step = rng.normal(size=vector.size) * 10 ** rng.uniform(-5, 0)
            other = loss(parts.covariance(vector + step, axes), count, scatter)
            assert other >= value - 1e-10 * abs(value)
        if seed:
            continue
        value_of = Loss(parts, count, scatter)
        for _ in range(1 if turns == 0 else 3):
            start = np.concatenate([vector[: vector.size - turns], rng.normal(size=turns)])
            found = minimize(value_of, start, method="BFGS", options={"maxiter": 300})
            assert value <= found.fun + 1e-6
