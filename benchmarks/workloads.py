"""Programs that are compiled for accelerators: name -> (function, shapes of its arguments).

They are fits with the default options, of float32. Their data are shapes alone, so that a case of
any size takes no memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxem

FITS, N, D, K = 4096, 500, 2, 3
ADAM = optax.adam(0.02)


class Sums(jaxem.Model):
    """x = means[0][z_0] + means[1][z_1] + noise of variance 1, with z in 2 × 3 equal states."""

    def latents(self, x):
        return 2, 3

    def init(self, key, x, weights):
        shapes = ((states, x.shape[1]) for states in self.latents(x))
        keys = jax.random.split(key, 2)
        return tuple(map(jax.random.normal, keys, shapes, (x.dtype,) * 2))

    def log_joint(self, params, x, z):
        mean = z[:, 0, :2] @ params[0] + z[:, 1] @ params[1]
        return -jnp.square(x - mean).sum(1) / 2


def normals(covariance="full", k=K):
    return jaxem.Mixture(jaxem.Normal(covariance), k=k)


def answers(result):
    return result.params, result.log_likelihood, result.objective, result.n_iter, result.status


def fit(model, **options):
    return lambda x, key: answers(jaxem.fit(model, x, key=key, **options))


def batch(model, **options):
    return lambda x, key: answers(jaxem.fit(model, jaxem.Batch(x), key=key, **options))


def mapped(x, key):
    return jax.vmap(fit(normals()))(x, jax.random.split(key, len(x)))


def mean_of(x, key):
    return jaxem.fit(normals(), x, key=key).params.components.mean.sum()


def fleet_mean_of(x, key):
    return jaxem.fit(normals(), jaxem.Batch(x), key=key).params.components.mean.sum()


def chain(k):
    model = jaxem.HMM(jaxem.Normal(), k)
    return lambda x, key: answers(jaxem.fit(model, jaxem.Sequences(x), key=key))


def regressed(family, gate=None, **options):
    """A fit of columns (regressors, response, a covariate of the weights where there is a gate)."""
    model = jaxem.Mixture(jaxem.Regression(family), k=K, gate=gate)

    def fitted(x, key):
        covariates = None if gate is None else x[:, -1:]
        x = x if gate is None else x[:, :-1]
        data = jaxem.Data(x[:, :-1], x[:, -1], gate=covariates)
        return answers(jaxem.fit(model, data, key=key, **options))

    return fitted


def documents(n=2000, vocabulary=3000):
    """Documents of 30 to 180 distinct words."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0.01, 0.06, (n, 1)).astype(np.float32)
    return jaxem.Documents((rng.random((n, vocabulary), np.float32) < share).astype(np.float32))


def workloads():
    """Every workload. Of a fleet, FITS data sets of N × D unless the name says another number."""
    key = jax.eval_shape(lambda: jax.random.key(0))

    def of(function, *shape):
        return function, jax.ShapeDtypeStruct(shape, jnp.float32), key

    def fleet(model, **options):
        return of(batch(model, **options), FITS, N, D)

    def one(model, d=D, **options):
        return of(fit(model, **options), N, d)

    def accelerated(accelerator):
        return jaxem.EM(accelerator=accelerator)

    half = jaxem.Constrained(np.eye(K)[:, :1], np.array([0.5]))
    even = jaxem.Restricted(normals(), {"weights": np.full(K, 1 / K)}, "components.covariance")
    return {
        "one": one(normals()),
        "one16": one(normals(), 16),
        "fleet4096": fleet(normals()),
        "fleet65536": of(batch(normals()), 65536, N, D),
        "fleet16": of(batch(normals()), FITS, N, 16),
        "fleet20000": of(batch(normals(k=8)), FITS, 20_000, 8),
        "vmap4096": of(mapped, FITS, N, D),
        "squarem": fleet(normals(), method=accelerated(jaxem.SQUAREM())),
        "anderson": fleet(normals(), method=accelerated(jaxem.Anderson())),
        "restarts": one(normals(), restarts=64),
        "large": of(fit(normals(k=64)), 10**6, 32),
        "diagonal": of(fit(normals("diagonal", 32)), 10**6, 16),
        "student": one(jaxem.Mixture(jaxem.StudentT(), k=K)),
        "gamma": one(jaxem.Mixture(jaxem.Gamma(), k=K)),
        "categorical": one(jaxem.Mixture(jaxem.Categorical(4), k=K), 5),
        "optax": fleet(normals("diagonal"), method=jaxem.EM(m_step=jaxem.Gradient(ADAM, steps=5))),
        "meanfield": one(Sums(), method=jaxem.EM(jaxem.MeanField())),
        "constrained": one(normals(), method=jaxem.EM(half)),
        "restricted": fleet(even),
        "regression": of(regressed("normal", restarts=1024), 200, 3),
        "experts": of(regressed("poisson", jaxem.SoftmaxGate(), restarts=256), 70, 3),
        "largeregression": of(regressed("normal"), 10**6, 9),
        "factors": one(jaxem.Mixture(jaxem.Factors(2), k=K), 8),
        "hmm": of(chain(4), 1000, 200, 2),
        "hmmlong": of(chain(3), 1, 100_000, 1),
        "lda": (fit(jaxem.LDA(20)), documents(), key),
        "gradient": of(jax.grad(mean_of), N, D),
        "fleetgradient": of(jax.grad(fleet_mean_of), FITS, N, D),
    }
