"""Random fits: families, data, weights, starts, methods and options, from seeds.

A `Setting` is what a program is compiled for, a `Call` one set of inputs for it. Both are functions
of their seeds alone, so that a failure is repeated by `test_fuzz.run(setting, seed)`.
"""

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scorer

import jaxem

LEVELS = 4
TRIALS = 9


class Family(NamedTuple):
    """bank: of components. kind: of the values, a key of `DRAWS`. density: as in `scorer`."""

    bank: Any
    kind: str
    density: Callable


def mixed(d):
    """A product of as many columns as there are: reals, counts and codes in turn."""
    parts = {
        "size": (jaxem.Normal("diagonal"), scorer.normal("diagonal")),
        "count": (jaxem.Poisson(), scorer.poisson),
        "code": (jaxem.Categorical(LEVELS), scorer.categorical),
    }
    columns = {name: list(range(i, d, 3)) for i, name in enumerate(parts) if i < d}
    return Family(
        jaxem.Product({name: (parts[name][0], where) for name, where in columns.items()}),
        "mixed",
        scorer.product({name: (parts[name][1], where) for name, where in columns.items()}),
    )


FAMILIES = {
    **{
        s: lambda d, s=s: Family(jaxem.Normal(s), "real", scorer.normal(s))
        for s in ("full", "tied", "diagonal", "spherical")
    },
    "student": lambda d: Family(jaxem.StudentT(), "real", scorer.student),
    "student of df 3": lambda d: Family(jaxem.StudentT(df=3.0), "real", scorer.student),
    "gamma": lambda d: Family(jaxem.Gamma(), "positive", scorer.gamma),
    "exponential": lambda d: Family(jaxem.Exponential(), "nonnegative", scorer.exponential),
    "poisson": lambda d: Family(jaxem.Poisson(), "count", scorer.poisson),
    "bernoulli": lambda d: Family(jaxem.Bernoulli(), "bit", scorer.bernoulli),
    "categorical": lambda d: Family(jaxem.Categorical(LEVELS), "code", scorer.categorical),
    "multinomial": lambda d: Family(jaxem.Multinomial(), "count", scorer.multinomial),
    "product": mixed,
}

METHODS = {
    "EM": jaxem.EM(),
    "SQUAREM": jaxem.EM(accelerator=jaxem.SQUAREM()),
    "Anderson": jaxem.EM(accelerator=jaxem.Anderson()),
    "Hard": jaxem.EM(jaxem.Hard()),
    "Incremental": jaxem.EM(jaxem.Incremental(blocks=3)),
    "OnlineEM": jaxem.OnlineEM(batch=16),
}


class Setting(NamedTuple):
    """What a program is compiled for. mode: "eager", "jit", "vmap", "value" (the gradient of the
    log-likelihood) or "params" (that of the sum of params)."""

    family: str
    dtype: str = "float64"
    n: int = 40
    d: int = 2
    k: int = 2
    weighted: bool = True
    method: str = "EM"
    init: str | None = None
    restarts: int = 1
    criterion: str = "aitken"
    mode: str = "eager"
    x64: bool = True


def random_setting(seed: int) -> Setting:
    rng = np.random.default_rng([1, seed])
    mode = str(rng.choice(["eager"] * 6 + ["jit", "vmap", "value", "params"]))
    x64 = bool(rng.random() < 0.7)
    k = int(rng.choice([1, 2, 2, 3]))
    differentiated = mode in ("value", "params")
    return Setting(
        family=str(rng.choice(list(FAMILIES))),
        dtype=str(rng.choice(["float32", "float64"])) if x64 else "float32",
        n=max(k, int(rng.choice([1, 2, 3, 8, 40, 40, 40, 150]))),
        d=int(rng.choice([1, 2, 2, 3, 5])),
        k=k,
        weighted=bool(rng.random() < 0.6),
        method="EM" if differentiated else str(rng.choice(["EM"] * 5 + list(METHODS))),
        init=None if differentiated else str_or_none(rng, STARTS),
        restarts=int(rng.choice([1, 1, 1, 3])) if mode == "eager" else 1,
        criterion=str(rng.choice(["aitken", "aitken", "change"])),
        mode=mode,
        x64=x64,
    )


STARTS = ["kmeans++", "random_rows", "random", "labels", "responsibilities", None, None, None, None]


def str_or_none(rng, values):
    return values[rng.integers(len(values))]


# Values


def real(rng, n, d):
    centres = rng.normal(0, rng.choice([0.5, 3, 30]), (3, d))
    return centres[rng.integers(0, 3, n)] + rng.normal(size=(n, d)) * rng.uniform(0.1, 2, d)


def positive(rng, n, d):
    x = rng.gamma(rng.choice([0.3, 2, 50]), rng.uniform(0.1, 5, d), (n, d))
    return np.maximum(x, 1e-6) * np.exp(2 * rng.integers(0, 2, (n, 1)))


def nonnegative(rng, n, d):
    return positive(rng, n, d) * (rng.random((n, d)) > rng.choice([0, 0.3]))


def count(rng, n, d):
    return rng.poisson(rng.choice([0.1, 3, 40], (2, d))[rng.integers(0, 2, n)]) * 1.0


def bit(rng, n, d):
    return (rng.random((n, d)) < rng.uniform(0, 1, (2, d))[rng.integers(0, 2, n)]) * 1.0


def code(rng, n, d):
    return rng.integers(0, rng.integers(1, LEVELS, d, endpoint=True), (n, d)) * 1.0


def mixed_values(rng, n, d):
    x = np.zeros((n, d))
    for i, draw in enumerate((real, count, code)):
        x[:, i::3] = draw(rng, n, len(range(i, d, 3)))
    return x


DRAWS = {
    "real": real,
    "positive": positive,
    "nonnegative": nonnegative,
    "count": count,
    "bit": bit,
    "code": code,
    "mixed": mixed_values,
}


def is_valid(kind, x):
    """Which values are in the support of a kind."""
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(x) & (x >= 0) & (x % 1 == 0)
        if kind == "mixed":
            valid = np.isfinite(x)
            valid[:, 1::3] = whole[:, 1::3]
            valid[:, 2::3] = (whole & (x < LEVELS))[:, 2::3]
            return valid
        return {
            "real": np.isfinite(x),
            "positive": np.isfinite(x) & (x > 0),
            "nonnegative": np.isfinite(x) & (x >= 0),
            "count": whole,
            "bit": whole & (x <= 1),
            "code": whole & (x < LEVELS),
        }[kind]


def offset(rng, x, dtype):
    """At most a hundredth of what the digits of the dtype allow; large ones in float64 alone."""
    most = 3 if dtype == "float32" else 8
    return x + 10.0 ** rng.uniform(0, most) * rng.choice([-1, 1], x.shape[1])


def scaled(rng, x, dtype):
    most = 14 if dtype == "float32" else 80
    return x * 10.0 ** rng.uniform(-most, most)


def scaled_apart(rng, x, dtype):
    return x * 10.0 ** rng.uniform(-9, 9, x.shape[1])


def duplicated(rng, x, dtype):
    return x[rng.integers(0, rng.integers(1, len(x), endpoint=True), len(x))]


def constant(rng, x, dtype):
    x = x.copy()
    column = rng.integers(x.shape[1])
    x[:, column] = rng.choice([x[0, column], 0.0, 7.0, -1e3])
    return x


def identical(rng, x, dtype):
    return np.repeat(x[:1], len(x), 0)


def collinear(rng, x, dtype):
    x = x.copy()
    x[:, -1] = 2 * x[:, 0] + 1
    return x


def one_hot(rng, x, dtype):
    return np.eye(x.shape[1])[rng.integers(0, x.shape[1], len(x))]


def outlying(rng, x, dtype):
    x = x.copy()
    x[rng.integers(len(x)), rng.integers(x.shape[1])] = 10.0 ** rng.integers(2, 7)
    return x


def heavy(rng, x, dtype):
    return x + np.clip(rng.standard_cauchy(x.shape), -1e6, 1e6)


def rounded(rng, x, dtype):
    return np.round(x)


def large(rng, x, dtype):
    return np.round(x * 10.0 ** rng.integers(1, 5))


def ordered(rng, x, dtype):
    return x[np.argsort(x[:, 0])][:: rng.choice([-1, 1])]


def zeroed(rng, x, dtype):
    return x * (rng.random(len(x)) < 0.3)[:, None]


CHANGES = {
    "real": [offset, scaled, scaled_apart, duplicated, constant, identical, collinear, one_hot,
             outlying, heavy, rounded, ordered, zeroed],
    "positive": [scaled, scaled_apart, duplicated, identical, outlying, ordered],
    "nonnegative": [scaled, scaled_apart, duplicated, identical, outlying, ordered, zeroed],
    "count": [duplicated, identical, outlying, large, ordered, zeroed],
    "bit": [duplicated, identical, one_hot, zeroed, ordered],
    "code": [duplicated, identical, one_hot, zeroed, ordered],
    "mixed": [duplicated, identical, zeroed],
}  # fmt: skip


def values(rng, setting, kind):
    """Values in float64 that lie in the support of the family."""
    x = DRAWS[kind](rng, setting.n, setting.d)
    for _ in range(rng.integers(0, 3)):
        change = CHANGES[kind][rng.integers(len(CHANGES[kind]))]
        with np.errstate(over="ignore"):
            changed = change(rng, x, setting.dtype)
        if is_valid(kind, changed.astype(setting.dtype)).all():
            x = changed
    return x


# Forms


class Frame:
    """What a data frame is to NumPy."""

    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


class Nullable(Frame):
    """A data frame of nullable numbers: objects to NumPy, floats when asked."""

    def __array__(self, dtype=None, copy=None):
        return self.x.astype(object)

    def to_numpy(self, dtype=None, na_value=None):
        return self.x.astype(dtype)


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def mapped(x):
    """The values in a file, as a memory map."""
    with tempfile.TemporaryFile() as file:
        file.write(x.tobytes())
        file.flush()
        return np.memmap(file, x.dtype, "r", shape=x.shape)


PLAIN = [
    np.asfortranarray,
    lambda x: x[::-1].copy()[::-1],
    lambda x: np.repeat(x, 2, 1)[:, ::2],
    lambda x: x.astype(x.dtype.newbyteorder()),
    read_only,
    mapped,
    Frame,
    jnp.asarray,
]
WIDE = [lambda x: x.tolist(), lambda x: x.astype(np.longdouble), Nullable]
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64]


def form(rng, x, setting):
    """(the values as a user may hold them, the same as a float64 array)."""
    wide = setting.dtype == "float64" or (not setting.x64 and rng.random() < 0.5)
    with np.errstate(over="ignore"):
        x = x.astype(np.float64 if wide else np.float32)
        half = x.astype(np.float16)
    forms = [lambda x: x] * 6 + PLAIN + WIDE * wide
    if wide and np.isfinite(x).all() and (x % 1 == 0).all():
        kinds = [t for t in INTEGERS if np.iinfo(t).min <= x.min() and x.max() <= np.iinfo(t).max]
        forms += [lambda x, t=t: x.astype(t) for t in kinds if (x.astype(t) == x).all()]
        forms += [lambda x: x.astype(bool)] * bool(np.isin(x, (0, 1)).all())
    if not wide and (half == x).all():
        forms += [lambda x: x.astype(np.float16), lambda x: jnp.asarray(x, jnp.bfloat16)]
    held = forms[rng.integers(len(forms))](x)
    plain = held.x if isinstance(held, Frame) else held
    return held, np.asarray(plain).astype(np.float64)


def draw_weights(rng, n, dtype):
    one = 12 if dtype == "float32" else 150
    draws = [
        lambda: np.ones(n),
        lambda: rng.uniform(0, 2, n),
        lambda: rng.integers(0, 3, n),
        lambda: rng.exponential(size=n) ** 4,
        lambda: np.full(n, 10.0 ** rng.uniform(-one, one)),
        lambda: rng.uniform(1, 2, n) * (rng.random(n) < 0.2),
        lambda: rng.random(n) < 0.5,
    ]
    drawn = draws[rng.integers(len(draws))]()
    return drawn if (drawn > 0).any() else np.ones(n)


# Faults


class Fault(NamedTuple):
    """A change of the arguments of a call, (rng, arguments and k) -> arguments, after which `fit`
    has to refuse them."""

    name: str
    change: Callable


def with_x(function):
    return lambda rng, a: a | {"data": function(rng, np.asarray(a["data"], float))}


def with_option(**options):
    return lambda rng, a: a | options


def value(bad):
    def change(rng, x):
        x = x.copy()
        x[rng.integers(len(x)), rng.integers(x.shape[1])] = bad
        return x

    return change


VALUES = [np.nan, np.inf, -np.inf, -1.0, 0.5, 1e9, 0.0]
WEIGHTS = {
    "negative": lambda rng, w: np.where(np.arange(len(w)) == rng.integers(len(w)), -1.0, w),
    "NaN": lambda rng, w: np.where(np.arange(len(w)) == rng.integers(len(w)), np.nan, w),
    "inf": lambda rng, w: np.where(np.arange(len(w)) == rng.integers(len(w)), np.inf, w),
    "zero": lambda rng, w: np.zeros(len(w)),
}
FAULTS = [
    Fault("fewer units than components", lambda rng, a: a | {"data": a["data"][: a["k"] - 1]}),
    Fault("1-D", with_x(lambda rng, x: x[:, 0])),
    Fault("3-D", with_x(lambda rng, x: x[None])),
    Fault("0-D", with_x(lambda rng, x: x[0, 0])),
    Fault("no rows", with_x(lambda rng, x: x[:0])),
    Fault("no columns", with_x(lambda rng, x: x[:, :0])),
    Fault("complex", with_x(lambda rng, x: x + 1j)),
    Fault("weights too long", lambda rng, a: a | {"weights": np.ones(len(a["data"]) + 1)}),
    Fault("weights 2-D", lambda rng, a: a | {"weights": np.ones((len(a["data"]), 1))}),
    Fault("weights a number", with_option(weights=1.0)),
    Fault("strings", with_x(lambda rng, x: x.astype(str))),
    Fault("objects", with_x(lambda rng, x: x.astype(object))),
    Fault("dates", with_x(lambda rng, x: np.zeros(x.shape, "M8[s]"))),
    Fault("ragged", with_x(lambda rng, x: [*x.tolist(), [0.0] * 9])),
    Fault("words", with_x(lambda rng, x: [["a"] * x.shape[1]] * len(x))),
    Fault("None within", with_x(lambda rng, x: [[None] * x.shape[1]] * len(x))),
    Fault("iterator", with_x(lambda rng, x: iter(x))),
    Fault("masked", with_x(lambda rng, x: np.ma.masked_array(x))),
    Fault("a dict", with_x(lambda rng, x: {"x": x})),
    Fault("a tuple", with_x(lambda rng, x: (x, x[:, 0]))),
    Fault("None", with_option(data=None)),
    Fault("a string", with_option(data="data.csv")),
    Fault("an object", with_option(data=object())),
    Fault("a function", with_option(data=len)),
    Fault("a set", with_option(data={1.0, 2.0})),
    Fault("records", with_x(lambda rng, x: np.zeros(len(x), "f8,f8"))),
    Fault("weights in words", lambda rng, a: a | {"weights": ["a"] * len(a["data"])}),
    Fault("weights an object", with_option(weights=object())),
    Fault("weights ragged", with_option(weights=[1.0, [2.0]])),
    *(Fault(f"tol {v!r}", with_option(tol=v)) for v in (-1, np.nan, np.inf, "a", [1], 1j)),
    *(Fault(f"max_iter {v!r}", with_option(max_iter=v)) for v in (-1, 2.5, "9", None, True)),
    *(Fault(f"restarts {v!r}", with_option(restarts=v)) for v in (0, -3, 1.5, None, "2")),
    *(Fault(f"key {v!r}", with_option(key=v)) for v in (None, "a", 0.5, [1, 2], object)),
    *(Fault(f"method {v!r}", with_option(method=v)) for v in ("em", None, jaxem.EM, 3)),
    *(Fault(f"criterion {v!r}", with_option(criterion=v)) for v in ("x", None, [], 1)),
    *(Fault(f"gradient {v!r}", with_option(gradient=v)) for v in ("x", None, True)),
    *(Fault(f"lanes {v!r}", with_option(lanes=v)) for v in (0, "a", 2.5)),
    *(
        Fault(f"init {v!r}", with_option(init=v))
        for v in ("kmean", 3, [], {}, (), object(), np.ones(2), jaxem.RandomRows, jaxem.Normal())
    ),
    Fault("init labels", with_option(init=jaxem.Labels(np.zeros(1000)))),
    Fault("init labels in words", with_option(init=jaxem.Labels(["a", "b"]))),
    Fault("init shares", with_option(init=jaxem.Responsibilities(np.ones((2, 7))))),
    Fault("init params", with_option(init=jaxem.MixtureParams(np.ones(9), None))),
    Fault("no argument of fit", with_option(n_components=3)),
]


class Call(NamedTuple):
    """arguments: of `fit` apart from the model. x (n, d) and weights (n,): the same in float64, x
    None where the arguments hold no such array. fault: its name, or None. certain: whether it must
    be refused whatever x and weights are."""

    arguments: dict
    x: Any
    weights: Any
    fault: str | None
    certain: bool


def random_call(setting: Setting, family: Family, seed: int, lanes=1, form_free=True) -> Call:
    """A call; its data lie in the support unless it has a fault."""
    rng = np.random.default_rng([2, seed])
    x = values(rng, setting, family.kind)
    w = draw_weights(rng, setting.n, setting.dtype) if setting.weighted else None
    arguments = {
        "tol": rng.choice([None, None, 0.0, 1e-2, 1e-4, 1e-9]),
        "max_iter": int(rng.choice([0, 1, 7, 100, 100, 300])),
        "key": int(rng.integers(2**31)),
    }
    if setting.init == "labels":
        arguments["init"] = jaxem.Labels(rng.integers(0, setting.k, setting.n))
    elif setting.init == "responsibilities":
        share = rng.dirichlet(np.ones(setting.k), setting.n)
        arguments["init"] = jaxem.Responsibilities(share)
    elif setting.init is not None:
        arguments["init"] = setting.init
    fault, certain = None, False
    kind = rng.random()
    if kind < 0.06 and (setting.weighted or setting.mode != "eager"):
        fault = "a value"
        x = value(VALUES[rng.integers(len(VALUES))])(rng, x)
    elif kind < 0.1 and setting.weighted:
        fault = f"weights {(name := str(rng.choice(list(WEIGHTS))))}"
        w = WEIGHTS[name](rng, np.asarray(w, float))
    held = x.astype(setting.dtype)
    if form_free:
        held, x = form(rng, x, setting)
    arguments |= {"data": held, "weights": w}
    if setting.mode == "eager" and 0.1 <= kind < 0.25:
        fault, change = FAULTS[rng.integers(len(FAULTS))]
        arguments, certain = change(rng, arguments | {"data": x, "k": setting.k}), True
        arguments.pop("k")
        if fault == "key None" and setting.init in ("labels", "responsibilities"):
            certain = False  # such a start is not random
            arguments["data"] = held
    plain = np.ones(setting.n) if w is None else np.asarray(w, np.float64)
    return Call(arguments, x, plain, fault, certain)
