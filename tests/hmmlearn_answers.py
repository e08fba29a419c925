"""Writes data/hmmlearn.json: EM of hidden Markov models by hmmlearn, for test_hmmlearn.py.

Run by hand, where hmmlearn is installed: `python tests/hmmlearn_answers.py`. No test imports it.

Every case has a start, and after ITERATIONS steps of hmmlearn's `fit` its params, in the shapes of
jaxem. `log_likelihood` has one number before every step and one after the last. All priors are off,
so that every M-step is that of maximum likelihood. In hmmlearn's M-steps (hmm.py, `_do_mstep`):

- initial, transition and categorical probabilities: a prior of 1 adds prior - 1 = 0 to the counts;
- Normal: means_weight = 0 takes no part of means_prior, covars_prior = 0 adds nothing to the
  scatter, and covars_weight = 0 nothing to its divisor. min_covar is only for hmmlearn's own start;
- Poisson: lambdas_prior = lambdas_weight = 0;
- multinomial probabilities have no prior.
"""

import importlib.metadata
import json
import pathlib

import numpy as np
from hmmlearn import hmm

SEED = 20240611
LENGTHS = [41, 30, 57]
ITERATIONS = 10
PATH = pathlib.Path(__file__).parent / "data" / "hmmlearn.json"

TRUE_TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.15, 0.15, 0.7]])
TRUE_MEAN = np.array([[-2.0, 5.0], [0.5, 4.0], [2.0, 6.5]])
TRUE_ROOT = np.array(
    [[[1.0, 0.0], [0.5, 0.8]], [[0.7, 0.0], [-0.3, 1.2]], [[1.1, 0.0], [0.2, 0.6]]]
)
TRUE_RATE = np.array([[1.0, 6.0], [4.0, 3.0], [9.0, 7.0]])
TRUE_PROBS = np.array([[0.6, 0.2, 0.15, 0.05], [0.1, 0.6, 0.1, 0.2], [0.1, 0.1, 0.3, 0.5]])

INITIAL = [0.5, 0.3, 0.2]
TRANSITION = [[0.6, 0.3, 0.1], [0.25, 0.5, 0.25], [0.2, 0.2, 0.6]]
MEAN = [[-1.0, 4.0], [0.0, 5.0], [1.5, 6.0]]
COVARIANCE = {
    "full": [[[1.5, 0.2], [0.2, 1.0]], [[1.0, 0.0], [0.0, 2.0]], [[2.0, -0.3], [-0.3, 1.5]]],
    "tied": [[1.5, 0.3], [0.3, 1.2]],
    "diagonal": [[1.5, 1.0], [1.0, 2.0], [2.0, 1.5]],
    "spherical": [1.5, 1.0, 2.0],
}
RATE = [[2.0, 5.0], [4.0, 4.0], [7.0, 6.0]]
PROBS = [[0.4, 0.3, 0.2, 0.1], [0.2, 0.4, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]]

NAMES = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
"""hmmlearn's names of the covariance structures."""

OPTIONS = {
    "n_iter": ITERATIONS,
    "tol": -np.inf,
    "init_params": "",
    "startprob_prior": 1.0,
    "transmat_prior": 1.0,
}


def draw():
    """The rows of all sequences, one after the other, by name."""
    rng = np.random.default_rng(SEED)
    states = []
    for length in LENGTHS:
        states.append(rng.integers(3))
        for _ in range(length - 1):
            states.append(rng.choice(3, p=TRUE_TRANSITION[states[-1]]))
    z = np.array(states)
    noise = rng.normal(size=(len(z), 2))
    reals = TRUE_MEAN[z] + np.einsum("nij,nj->ni", TRUE_ROOT[z], noise)
    return {
        "reals": np.round(reals, 3),
        "counts": rng.poisson(TRUE_RATE[z]),
        "codes": np.array([rng.choice(4, p=TRUE_PROBS[i]) for i in z])[:, None],
        "tables": rng.multinomial(rng.integers(2, 7, size=len(z)), TRUE_PROBS[z]),
    }


def normal(structure):
    model = hmm.GaussianHMM(
        3,
        NAMES[structure],
        min_covar=0,
        means_prior=0,
        means_weight=0,
        covars_prior=0,
        covars_weight=0,
        **OPTIONS,
    )
    model.n_features = 2  # of which covars_ makes use before fit sets it
    model.means_, model.covars_ = np.array(MEAN), np.array(COVARIANCE[structure])
    return model


def normal_params(structure, model):
    full = model.covars_  # (k, d, d) for every structure; after a spherical fit every one d times
    covariance = {
        "full": full,
        "tied": full[0],
        "diagonal": np.diagonal(full, axis1=1, axis2=2),
        "spherical": full.reshape(3, -1, 2, 2)[:, 0, 0, 0],
    }
    return {"mean": model.means_, "covariance": covariance[structure]}


def poisson():
    model = hmm.PoissonHMM(3, lambdas_prior=0.0, lambdas_weight=0.0, **OPTIONS)
    model.lambdas_ = np.array(RATE)
    return model


def categorical():
    model = hmm.CategoricalHMM(3, emissionprob_prior=1.0, n_features=4, **OPTIONS)
    model.emissionprob_ = np.array(PROBS)
    return model


def multinomial(rows):
    model = hmm.MultinomialHMM(3, n_trials=rows.sum(1), **OPTIONS)
    model.emissionprob_ = np.array(PROBS)
    return model


def case(data, rows, model, emissions):
    """emissions: a function from hmmlearn's model to the params of jaxem's bank by name."""

    def params():
        found = {"initial": model.startprob_, "transition": model.transmat_, **emissions(model)}
        return {name: np.array(value).tolist() for name, value in found.items()}

    model.startprob_, model.transmat_ = np.array(INITIAL), np.array(TRANSITION)
    start = params()
    model.fit(rows, LENGTHS)
    steps = [float(value) for value in model.monitor_.history]
    assert len(steps) == ITERATIONS
    steps.append(float(model.score(rows, LENGTHS)))
    return {"data": data, "start": start, "end": params(), "log_likelihood": steps}


def main():
    data = draw()
    cases = {}
    for structure in NAMES:
        cases[structure] = case(
            "reals",
            data["reals"],
            normal(structure),
            lambda model, structure=structure: normal_params(structure, model),
        )
    cases["poisson"] = case(
        "counts", data["counts"], poisson(), lambda model: {"rate": model.lambdas_}
    )
    cases["categorical"] = case(
        "codes", data["codes"], categorical(), lambda model: {"probs": model.emissionprob_[:, None]}
    )
    cases["multinomial"] = case(
        "tables",
        data["tables"],
        multinomial(data["tables"]),
        lambda model: {"probs": model.emissionprob_},
    )
    record = {
        "versions": {name: importlib.metadata.version(name) for name in ("hmmlearn", "numpy")},
        "seed": SEED,
        "lengths": LENGTHS,
        "iterations": ITERATIONS,
        **{name: rows.tolist() for name, rows in data.items()},
        **cases,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
