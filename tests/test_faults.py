"""Bad input, options and starts: the error names the argument, what was got and the remedy.

Most calls share one shape and one model, so that little is compiled.
"""

import copy
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from compare import equal, with_value
from internals import arrays, as_data, whole
from jax.experimental import sparse

import jaxem
from jaxem import Status

N, K = 40, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2)) + np.repeat([[0.0, 0.0], [6.0, 6.0]], N // 2, axis=0)
MODEL = jaxem.Mixture(jaxem.Normal("diagonal"), K)
LABELS = np.repeat([0, 1], N // 2)


def fit(x=X, model=MODEL, key=0, **options):
    return jaxem.fit(model, x, key=key, **options)


class Frame:
    """What a DataFrame is to NumPy."""

    def __array__(self, dtype=None, copy=None):
        return X


UNUSABLE = {
    "one dimension": (X[:, 0], ValueError, r"\(40,\).*x\[:, None\]"),
    "a number": (3.0, ValueError, r"data is a single number.*\(n, d\)"),
    "three dimensions": (X.reshape(2, 20, 2), ValueError, r"\(2, 20, 2\).*jaxem.Batch"),
    "no unit": (X[:0], ValueError, r"\(0, 2\).*at least one unit"),
    "no feature": (X[:, :0], ValueError, r"\(40, 0\).*at least one feature"),
    "fewer units than components": (X[:1], ValueError, r"1 units.*2 components.*k <= 1"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, r"data is ragged.*rectangular"),
    "data sets": ([X[:30], X], ValueError, r"data is ragged.*use jaxem.Batch"),
    "nothing": (None, TypeError, r"data must be an array.*None"),
    "empty": ({}, ValueError, r"data hold no array"),
    "a missing entry": ([[None, 1.0], [2.0, 3.0]], ValueError, r"holds objects.*numbers"),
    "objects": (X.astype(object), TypeError, r"data has dtype object.*real numbers"),
    "strings": (X.astype(str), TypeError, r"data has dtype <U.*coded 0, 1"),
    "dates": (np.zeros((N, 2), "M8[D]"), TypeError, r"data has dtype datetime64"),
    "complex": (X + 1j, TypeError, r"data has dtype complex128"),
    "complex on a device": (jnp.asarray(X + 1j), TypeError, r"data has dtype complex128"),
    "keys": (jax.random.split(jax.random.key(0), 3), TypeError, r"data has dtype key<fry>"),
    "masked": (np.ma.masked_array(X), TypeError, r"masked array.*weight 0"),
    "sparse": (scipy.sparse.csr_array(X), TypeError, r"sparse.*data.toarray\(\)"),
    "sparse of JAX": (sparse.BCOO.fromdense(X), TypeError, r"sparse.*data.todense\(\)"),
    "durations": (np.zeros((N, 2), "m8[s]"), TypeError, r"data has dtype timedelta64"),
    "larger than memory": (
        np.broadcast_to(0.0, (10**12, 2)),
        ValueError,
        r"data of shape \(1000000000000, 2\) take 14.6 TiB.*fit fewer rows",
    ),
    "a larger leaf": (
        jaxem.Labelled(X, np.broadcast_to(0, (10**12,))),
        ValueError,
        r"data.labels of shape \(1000000000000,\) take 7.28 TiB",
    ),
    "larger data sets": (
        jaxem.Batch(np.broadcast_to(0.0, (10**6, 10**6, 2))),
        ValueError,
        r"Batch data of shape \(1000000, 1000000, 2\) take 14.6 TiB",
    ),
    "iterator": (iter(X), TypeError, r"iterator.*np.array\(list"),
    "a dict": ({"x": X}, TypeError, r"Normal takes data as one array.*dict"),
    "unequal leaves": (
        jaxem.Labelled(X, LABELS[:9]),
        ValueError,
        r"one leading size.*data.x: 40, data.labels: 9",
    ),
    "labels of two dimensions": (
        jaxem.Labelled(X, LABELS[:, None]),
        ValueError,
        r"data.labels must have shape \(40,\).*\(40, 1\).*-1",
    ),
    "labels that are words": (
        jaxem.Labelled(X, LABELS.astype(str)),
        TypeError,
        r"data.labels has dtype",
    ),
    "labels out of range": (
        jaxem.Labelled(X, LABELS * 7),
        ValueError,
        r"data.labels holds 20 values.*index 20: 7.*-1 where unknown, else 0 to 1",
    ),
    "a label and a half": (
        jaxem.Labelled(X, LABELS * 0.5),
        ValueError,
        r"20 values.*index 20: 0.5",
    ),
    "NaN and inf": (
        with_value(with_value(X, np.nan), np.inf, (9, 0)),
        ValueError,
        r"data holds 2 values.*\(7, 1\): nan.*finite numbers.*weight 0",
    ),
    "NaN on a device": (
        jnp.asarray(with_value(X, np.nan)),
        ValueError,
        r"data holds 1 value .*\(7, 1\): nan",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_data_that_cannot_be_used(case):
    x, error, words = UNUSABLE[case]
    with pytest.raises(error, match=words):
        fit(x)


def test_shapes_raise_the_same_under_jit():
    for case in ("one dimension", "three dimensions", "fewer units than components"):
        x, error, words = UNUSABLE[case]
        with pytest.raises(error, match=words):
            jax.jit(lambda x: fit(x).status)(x)


COUNTS = RNG.poisson(3, (N, 2)).astype(float)
OUTSIDE = [
    (jaxem.Poisson(), COUNTS, -1, "counts"),
    (jaxem.Poisson(), COUNTS, 1.5, "counts"),
    (jaxem.Poisson(), COUNTS, np.inf, "counts"),
    (jaxem.Multinomial(), COUNTS, -2, "counts"),
    (jaxem.Bernoulli(), (COUNTS > 3) * 1.0, 2, "0 and 1"),
    (jaxem.Categorical(3), COUNTS % 3, 3, r"codes 0, 1, \.\.\., 2"),
    (jaxem.Categorical((3, 2)), COUNTS % 2, 2, "codes"),
    (jaxem.Exponential(), COUNTS, -0.5, "0 or more"),
    (jaxem.Gamma(), COUNTS + 1, 0, "positive"),
]


@pytest.mark.parametrize(("family", "x", "value", "accepted"), OUTSIDE)
def test_values_outside_the_support(family, x, value, accepted):
    words = rf"data holds 1 value .*\(7, 1\): {float(value)}.*{accepted}.*remove"
    with pytest.raises(ValueError, match=words):
        fit(with_value(x, value), jaxem.Mixture(family, K))


REMEDIES = [
    (
        jaxem.Categorical(3),
        COUNTS % 3 + 1,
        r"codes 0, 1, \.\.\., 2: codes are counted.*subtract 1$",
    ),
    (jaxem.Categorical(2), COUNTS % 2 + 5, r"codes 0 and 1: codes are counted.*subtract 5$"),
    (
        jaxem.Categorical(2),
        COUNTS % 3,
        r"codes 0 and 1: recode them, or give Categorical levels=3$",
    ),
    (jaxem.Categorical((3, 2)), COUNTS % 3, r"codes from 0 to below \(3, 2\), a limit for each"),
    (jaxem.Bernoulli(), COUNTS % 2 + 1, r"0 and 1: recode the two values 1 and 2 as 0 and 1"),
    (jaxem.Poisson(), -COUNTS - 1, r"counts 0, 1, 2, \.\.\.: use a model that takes such data"),
]


@pytest.mark.parametrize(("family", "x", "words"), REMEDIES)
def test_the_remedy_is_of_use(family, x, words):
    with pytest.raises(ValueError, match=words):
        fit(x, jaxem.Mixture(family, K))


class Nullable(Frame):
    """What a DataFrame of nullable numbers is to NumPy."""

    def __array__(self, dtype=None, copy=None):
        return X.astype(object)

    def to_numpy(self, dtype=None, na_value=None):
        assert np.isnan(na_value)
        return X.astype(dtype)


WEIGHTS = {
    "negative": (with_value(np.ones(N), -1, 5), ValueError, r"weights hold 1 neg.*index 5: -1"),
    "NaN": (with_value(np.ones(N), np.nan, 5), ValueError, r"weights hold 1.*index 5: nan"),
    "zero": (np.zeros(N), ValueError, r"weights are all zero.*at least one"),
    "short": (np.ones(N - 1), ValueError, r"weights must have shape \(40,\).*\(39,\)"),
    "a matrix": (np.ones((N, 1)), ValueError, r"weights must have shape \(40,\).*\(40, 1\)"),
    "a word": ("balanced", TypeError, r"weights must be an array.*'balanced'"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be_used(case):
    weights, error, words = WEIGHTS[case]
    with pytest.raises(error, match=words):
        fit(weights=weights)
    with pytest.raises(error, match=words):
        fit().bic(X, weights=weights)


def test_what_is_accepted_gives_the_same_bits():
    whole = np.round(X * 4)
    plain = fit(whole)
    frozen = np.asfortranarray(whole)
    frozen.setflags(write=False)
    forms = {
        "lists": whole.tolist(),
        "Fortran order": frozen,
        "negative strides": whole[::-1][::-1],
        "big-endian": whole.astype(">f8"),
        "integers": whole.astype(np.int16),
        "long doubles": whole.astype(np.longdouble),
    }
    for name, form in forms.items():
        before = copy.deepcopy(form)
        assert equal(fit(form).params, plain.params), name
        assert np.array_equal(form, before), name
    device = jnp.asarray(whole)  # looked at on the device only: another program
    assert np.allclose(fit(device).log_likelihood, plain.log_likelihood, rtol=1e-12)
    assert equal(fit(Frame()).params, fit(X).params)
    assert equal(fit(Nullable()).params, fit(X).params)
    half = X.astype(np.float16)
    assert equal(fit(half).params, fit(half.astype(np.float32)).params)
    assert as_data(X > 3)[0].dtype == np.float64


def test_x64_off_warns_once_and_refuses_integers_that_wrap(monkeypatch):
    monkeypatch.setattr(arrays, "_warned_about_x64", False)
    with jax.enable_x64(False):
        with pytest.warns(jaxem.FitWarning, match="float64 data are fitted in float32.*enable_x64"):
            assert as_data(X)[0].dtype == np.float32
        as_data(X)  # a second warning would be an error
        with pytest.raises(ValueError, match=r"data\['z'\] holds integers beyond int32.*x64"):
            as_data({"z": np.array([[2**40]])})


def test_infinite_codes_are_refused_without_a_warning_of_numpy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"data holds 1 value .*\(7, 1\): inf.*codes"):
            fit(with_value(COUNTS % 3, np.inf), jaxem.Mixture(jaxem.Categorical(3), K))


OPTIONS = {
    "init empty": ({"init": []}, ValueError, r"init must be MixtureParams.*got \[\]"),
    "tol below 0": ({"tol": -1}, ValueError, "tol must be.*0 or more.*-1"),
    "tol NaN": ({"tol": np.nan}, ValueError, "tol must be.*nan"),
    "tol a word": ({"tol": "low"}, TypeError, "tol must be a number.*'low'"),
    "max_iter below 0": ({"max_iter": -1}, ValueError, "max_iter must be an int of 0 or more.*-1"),
    "max_iter a float": ({"max_iter": 10.5}, TypeError, "max_iter must be an int.*10.5"),
    "no restarts": ({"restarts": 0}, ValueError, "restarts must be an int of 1 or more.*0"),
    "criterion": ({"criterion": "aitkn"}, ValueError, "criterion must be.*did you mean 'aitken'"),
    "method": ({"method": "em"}, TypeError, r"method must be jaxem.EM\(\).*'em'"),
    "a misspelt keyword": ({"restart": 3}, TypeError, "'restart'; did you mean 'restarts'"),
    "scikit-learn's name": ({"n_init": 3}, TypeError, "'n_init'; did you mean 'restarts'"),
    "no key": ({"key": None}, ValueError, r"random.*key=jax.random.key\(0\)"),
    "key a float": ({"key": 0.5}, TypeError, r"key must be one jax.random.key.*0.5"),
    "many keys": ({"key": jax.random.split(jax.random.key(0), 3)}, ValueError, r"one key.*\(3,\)"),
    "init's name": ({"init": "kmean"}, ValueError, r"init must be.*did you mean 'kmeans\+\+'"),
    "init a class": ({"init": jaxem.RandomRows}, TypeError, r"class: write RandomRows\(\.\.\.\)"),
    "labels of nobody": ({"init": jaxem.Labels(LABELS + 1)}, ValueError, "20 units.*index 20: 2"),
    "too few labels": ({"init": jaxem.Labels(LABELS[1:])}, ValueError, r"\(40,\), got \(39,\)"),
    "shares beyond 1": (
        {"init": jaxem.Responsibilities(np.ones((N, 2)))},
        ValueError,
        r"Responsibilities.*index 0: \[1. 1.\].*sum to 1; divide",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_used(case):
    options, error, words = OPTIONS[case]
    with pytest.raises(error, match=words):
        fit(**options)


CONSTRUCTORS = {
    "order 0": (lambda: jaxem.Anderson(order=0), ValueError, "order must be an int of 1 or more"),
    "order 2.5": (lambda: jaxem.Anderson(order=2.5), TypeError, "order must be an int.*2.5"),
    "reach": (lambda: jaxem.SQUAREM(reach="far"), ValueError, "reach must be a number above 0"),
    "blocks 0": (lambda: jaxem.Incremental(blocks=0), ValueError, "blocks must be an int of 1"),
    "draws 0": (lambda: jaxem.Stochastic(draws=0), ValueError, "draws must be an int of 1"),
    "steps below 0": (lambda: jaxem.Stochastic(steps=-1), ValueError, "steps must be an int of 0"),
    "schedule": (lambda: jaxem.Tempered(0.5), ValueError, "schedule must be a sequence.*0.5"),
    "half a step": (lambda: jaxem.Gradient(steps=1.5), TypeError, "steps must be an int.*1.5"),
    "transform": (lambda: jaxem.Gradient("adam"), TypeError, r"optax.adam\(0.01\).*'adam'"),
    "sweeps": (lambda: jaxem.MeanField(sweeps=0.5), TypeError, "sweeps must be an int.*0.5"),
    "tol of q": (lambda: jaxem.MeanField(tol=-1), ValueError, "tol must be finite and 0 or more"),
    "no blocks": (lambda: jaxem.Blocks(3), TypeError, "blocks must be a sequence of paths"),
    "features": (lambda: jaxem.Constrained("a", [1.0]), TypeError, "features must be an array"),
    "bounds": (lambda: jaxem.Constrained(np.eye(2), [1.0]), ValueError, "one bound a feature"),
    "q for theta": (lambda: jaxem.EM(m_step=jaxem.Hard()), TypeError, r"q: use EM\(e_step=Hard"),
    "accelerator": (lambda: jaxem.EM(accelerator="squarem"), TypeError, r"SQUAREM\(\).*'squarem'"),
    "its class": (lambda: jaxem.EM(accelerator=jaxem.SQUAREM), TypeError, r"None, jaxem.SQUAREM"),
    "floor": (lambda: jaxem.Normal(floor=-1), ValueError, "floor must be finite and 0 or more"),
    "a floor of t": (lambda: jaxem.StudentT(floor=np.nan), ValueError, "floor must be.*nan"),
    "least mean": (lambda: jaxem.Exponential(floor="a"), TypeError, "floor must be a number.*'a'"),
    "df": (lambda: jaxem.StudentT(df="many"), TypeError, "df must be a number.*'many'"),
    "df array": (lambda: jaxem.StudentT(df=np.array([3, -1])), ValueError, "df must be"),
    "trials": (lambda: jaxem.Multinomial(trials=1.5), TypeError, "trials must be an int.*1.5"),
    "rate": (lambda: jaxem.Poisson(5), TypeError, r"prior of Poisson must be jaxem.GammaPrior.*5"),
    "a list": (lambda: jaxem.Mixture([jaxem.Normal()] * 2, 2), TypeError, "one bank for all"),
    "shares": (lambda: jaxem.Mixture(jaxem.Normal(), 2, 3.0), TypeError, "DirichletPrior.*3.0"),
    "concentrations": (
        lambda: jaxem.BayesianMixture(jaxem.Normal(), 2, concentration=np.ones(2)),
        TypeError,
        "concentration must be one number",
    ),
    "vector": (lambda: jaxem.DirichletPrior(np.ones(3)), ValueError, r"one number.*\(3,\)"),
    "mean": (lambda: jaxem.NormalPrior(np.nan, 1, 4, 1), ValueError, "NormalPrior needs mean fin"),
    "no dict": (lambda: jaxem.Product([jaxem.Normal()]), TypeError, "parts must be a dict"),
    "no bank": (lambda: jaxem.Product({"a": (5, [0])}), TypeError, "part 'a' must be a pair"),
    "each": (lambda: jaxem.Each(3), TypeError, r"one component, with init\(key.*3"),
    "each class": (lambda: jaxem.Each(jaxem.Model), TypeError, r"write Each\(Model\(\.\.\.\)\)"),
    "restricted": (lambda: jaxem.Restricted(3), TypeError, "model must be a model, got 3"),
    "fixed": (lambda: jaxem.Restricted(MODEL, fixed=3), TypeError, "fixed must be a path.*3"),
    "data of a prior": (
        lambda: jaxem.NormalPrior.from_data(X[:, 0], 2),
        ValueError,
        r"\(n, d\).*\(40,\).*x\[:, None\]",
    ),
    "empty": (lambda: jaxem.NormalPrior.from_data(X[:0], 2), ValueError, r"not empty.*\(0, 2\)"),
    "k of a prior": (lambda: jaxem.NormalPrior.from_data(X, 0), ValueError, "k must be an int.*0"),
    "structure": (lambda: jaxem.NormalPrior.from_data(X, 2, "ful"), ValueError, "'full'.*'ful'"),
    "NaN": (lambda: jaxem.NormalPrior.from_data(X * np.nan, 2), ValueError, "not finite"),
}


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_values_that_cannot_be_used(case):
    build, error, words = CONSTRUCTORS[case]
    with pytest.raises(error, match=words):
        build()


def test_every_family_refuses_priors_of_another():
    families = [jaxem.Normal, jaxem.StudentT, jaxem.Poisson, jaxem.Bernoulli, jaxem.Multinomial]
    families += [jaxem.Gamma, jaxem.Exponential, lambda prior: jaxem.Categorical(3, prior)]
    for family in families:
        with pytest.raises(TypeError, match=r"prior of \w+ must be jaxem.\w+Prior\(.*got 'x'"):
            family(prior="x")


def test_traced_limits_are_one_number():
    with pytest.raises(TypeError, match=r"max_iter must be one int.*float64"):
        jax.jit(lambda limit: fit(max_iter=limit).status)(3.5)
    with pytest.raises(TypeError, match=r"tol must be one number.*\(2,\)"):
        jax.jit(lambda tol: fit(tol=tol).status)(np.ones(2))


def test_priors_of_another_width():
    prior = jaxem.NormalPrior(np.zeros(3), 0.1, 5.0, np.ones(3))
    with pytest.raises(ValueError, match=r"NormalPrior has mean of shape \(3,\).*2 features"):
        fit(model=jaxem.Mixture(jaxem.Normal("diagonal", prior=prior), K))
    whole = jaxem.NormalPrior.from_data(X, K)  # of full covariances
    for word, shapes in (("diagonal", r"a number or shape \(2,\)"), ("spherical", "a number")):
        bank = jaxem.Normal(word, prior=whole)
        text = rf"scale of shape \(2, 2\).* are {word}: give {shapes}, as .*\(x, k, '{word}'"
        for model in (jaxem.Mixture(bank, K), jaxem.BayesianMixture(bank, K)):
            with pytest.raises(ValueError, match=text):
                fit(model=model)
    bayes = fit(model=jaxem.BayesianMixture(jaxem.Normal("diagonal"), K), max_iter=1, tol=0)
    with pytest.raises(ValueError, match="X has 1 features, but the model was fitted with 2"):
        bayes.predict(X[:, :1])


@pytest.mark.parametrize("k", [0, -1, True, 2.5, "3", None])
def test_k_must_be_a_positive_int(k):
    with pytest.raises((TypeError, ValueError), match="k must be an int of 1 or more, got"):
        jaxem.Mixture(jaxem.Normal(), k)
    with pytest.raises(TypeError, match=r"k must be an int.*Python int"):
        jax.jit(lambda k: jaxem.Mixture(jaxem.Normal(), k).k)(2)


def test_what_is_no_model():
    for model, words in [
        (jaxem.Mixture, r"class: write Mixture\(\.\.\.\)"),
        (jaxem.Normal(), r"bank.*jaxem.Mixture\(Normal"),
        (X, r"model comes first, fit\(model, data\)"),
        (None, "NoneType is no model.*init"),
    ]:
        with pytest.raises(TypeError, match=words):
            jaxem.fit(model, X, key=0)
    for bank in (jaxem.Normal, "normal"):
        with pytest.raises(TypeError, match=r"components must be a bank.*Mixture\(Normal"):
            jaxem.Mixture(bank, 2)
    with pytest.raises(ValueError, match=r"covariance must be one of 'full'.*\['full'\]"):
        jaxem.Normal(["full"])


def changed(**leaves):
    start = fit().params
    inside = {name: leaves.pop(name) for name in ("mean", "covariance") if name in leaves}
    components = dataclasses.replace(start.components, **inside)
    return dataclasses.replace(start, components=components, **leaves)


STARTS = {
    "another tree": (lambda: {"w": 1.0}, r"\.weights \(2,\).*got dict.*\['w'\].*earlier result"),
    "a result": (fit, r"init must be MixtureParams.*init=result.params"),
    "a shape": (lambda: changed(mean=X[:3]), r"init.components.mean.*\(2, 2\), got \(3, 2\)"),
    "NaN": (lambda: changed(mean=with_value(X[:2], np.nan, (1, 0))), r"mean holds 1.*\(1, 0\)"),
    "inf": (lambda: changed(mean=X[:2] / 0), r"mean holds 4 values that are not finite"),
    "complex": (lambda: changed(weights=np.ones(2) / 2 + 0j), r"init.weights.*complex128"),
    "shares": (lambda: changed(weights=np.ones(2)), r"weights.*sum to 1, got \[1. 1.\].*divide"),
    "a variance": (lambda: changed(covariance=-np.ones((2, 2))), r"covariance must be above 0"),
}


@pytest.mark.parametrize("case", STARTS)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_params_that_cannot_be_a_start(case):
    start, words = STARTS[case]
    with pytest.raises((ValueError, TypeError), match=words):
        fit(init=start(), key=None)


def test_starts_that_are_flagged():
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(2,\).*one start a fit"):
        fit(init=fit().params, restarts=3)
    with pytest.warns(jaxem.FitWarning, match="init components are identical.*different"):
        fit(init=changed(mean=X[[0, 0]], covariance=np.ones((2, 2))))
    bad = {
        "NaN": changed(mean=np.full((2, 2), np.nan)),
        "shares": changed(weights=np.full(2, 0.9)),
        "negative": changed(covariance=-np.ones((2, 2))),
    }
    traced = jax.jit(lambda p: fit(init=p))
    for name, start in bad.items():
        result = traced(start)
        assert result.status == Status.NONFINITE and result.n_iter == 0, name
    assert traced(fit().params).status == Status.CONVERGED
    both = jax.tree.map(lambda *leaves: np.stack(leaves), fit().params, bad["negative"])
    lanes = jax.vmap(lambda p: fit(init=p).status)(both)
    assert lanes.tolist() == [Status.CONVERGED, Status.NONFINITE]


def test_keys_and_restarts():
    plain = fit(key=7)
    for key in (np.int32(7), jax.random.key(7), jax.random.PRNGKey(7)):
        for a, b in zip(*map(jax.tree.leaves, (fit(key=key).params, plain.params)), strict=True):
            assert np.allclose(a, b, rtol=1e-12)  # a typed key is another program
    few, more = (fit(key=7, restarts=r, init="random", max_iter=5, tol=0) for r in (3, 5))
    assert np.allclose(few.restarts.params.weights, more.restarts.params.weights[:3], rtol=1e-9)
    assert np.allclose(few.restarts.objective, more.restarts.objective[:3], rtol=1e-12)
    assert len(set(np.asarray(more.restarts.objective))) > 1


def test_max_iter():
    start = fit(max_iter=0)  # no warning: the start is what was asked for
    assert start.status == Status.MAX_ITER and start.n_iter == 0
    assert np.isclose(start.log_likelihood, np.sum(MODEL.log_prob(start.params, X)))
    assert fit(max_iter=10**12).status == Status.CONVERGED


def test_whole_numbers_of_every_dtype():
    """Truth values and integers have no fraction; JAX rounds neither truth values nor these."""
    for values in ([True, False], [1, 2], [0.0, 3.0]):
        assert np.all(whole(np.array(values))) and np.all(whole(jnp.array(values)))
    assert whole(np.array([0.5, np.nan, 2.0])).tolist() == [False, False, True]
