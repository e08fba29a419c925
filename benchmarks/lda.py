"""Batch sweeps and online passes of latent Dirichlet allocation beside scikit-learn's and gensim's.

4,000 documents of 20 planted topics over 3,000 words, about 100 distinct words a document, float32,
topics with a Dirichlet posterior on all sides, the same priors, the same start, γ begun at even
shares (by default the others draw it), the same stop of inner steps (mean change 1e-3; at most 100,
20 on our side). Every side takes `SWEEPS` sweeps; an independent float64 scorer in NumPy then
measures held-out perplexity by document completion, and a time counts only where that is within
`SLACK` of the best. scikit-learn is called with n_jobs=1 and with 2, and the faster of these runs,
at its own bound of 100 inner steps and at 20, which is ours; gensim (which need not be installed)
runs with update_every=0 and decay=0, its batch mode.

Online, every side is run over one grid of minibatches, step sizes and passes, from `STARTS` starts:
where a run ends depends on its start by some percent, so its perplexity is the median of these. The
target is the lowest that all sides reach, and each is timed at the setting that is the first to be
there. `--batch` or `--online`: one half alone. `--large`: 20,000 documents and 100 topics, ours
alone, on whatever device there is.
"""

import importlib.util
import itertools
import json
import pathlib
import statistics
import sys
import time

import jax
import numpy as np
import scipy.sparse
from scipy.special import digamma

import jaxem
from benchmarks.cold import machine

DOCUMENTS, HELD_OUT, WORDS, TOPICS, TOKENS = 4_000, 500, 3_000, 20, 125
SWEEPS, REPEATS, SLACK = 20, 7, 0.005
MINIBATCHES, STEPS, PASSES = (128, 256, 512), ((2.0, 0.6), (10.0, 0.7)), (1, 2, 4)
STARTS = 3


def corpus(documents, words, topics, tokens, seed=0):
    """Counts (documents, words) as a sparse matrix, from planted topics."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(words, 0.1), topics)
    shares = rng.dirichlet(np.full(topics, 0.1), documents)
    rows = []
    for share, length in zip(
        shares, rng.poisson(tokens * rng.gamma(4, 0.25, documents)), strict=True
    ):
        rows.append(scipy.sparse.csr_array(rng.multinomial(length, share @ table)[None]))
    return scipy.sparse.vstack(rows).tocsr().astype(np.float32)


def halves(counts, seed=1):
    """A random half of every document's tokens, and the other half, as dense integers."""
    rng = np.random.default_rng(seed)
    dense = counts.toarray().astype(np.int64)
    seen = np.stack([rng.multivariate_hypergeometric(row, row.sum() // 2) for row in dense])
    return seen, dense - seen


def score(lam, seen, unseen, alpha):
    """Held-out perplexity of topics Dirichlet(lam), by a plain E-step in float64."""
    lam = np.asarray(lam, np.float64)
    table = np.exp(digamma(lam) - digamma(lam.sum(1, keepdims=True)))
    mean = lam / lam.sum(1, keepdims=True)
    gamma = np.full((len(seen), len(lam)), alpha) + seen.sum(1, keepdims=True) / len(lam)
    for _ in range(200):
        e = np.exp(digamma(gamma))
        gamma = alpha + e * ((seen / (e @ table)) @ table.T)
    theta = gamma / gamma.sum(1, keepdims=True)
    return float(np.exp(-(unseen * np.log(theta @ mean)).sum() / unseen.sum()))


def ours(counts, start, online=None):
    model = jaxem.LDA(len(start), inference="bayes")
    documents, mass = jaxem.Documents(counts), start.sum(1)
    alpha = np.full(len(start), 1 / len(start), np.float32)
    init = jaxem.LDAParams(start / mass[:, None], alpha, mass)

    method = jaxem.EM()
    if online is not None:
        minibatch, (offset, power), _ = online
        method = jaxem.OnlineEM(jaxem.Decay(offset, power), batch=minibatch)
    most = SWEEPS if online is None else online[2]

    def run():
        found = jaxem.fit(model, documents, init=init, method=method, tol=0, max_iter=most)
        return np.asarray(found.params.topics) * np.asarray(found.params.mass)[:, None]

    return run


def scikit_learn(counts, start, online=None, jobs=1, inner=100):
    from sklearn.decomposition import LatentDirichletAllocation

    class Started(LatentDirichletAllocation):
        def _e_step(self, counts, cal_sstats, random_init, parallel=None):
            return super()._e_step(counts, cal_sstats, False, parallel)

        def _init_latent_vars(self, *args, **kwargs):
            super()._init_latent_vars(*args, **kwargs)
            self.components_ = start.copy()
            logs = digamma(start) - digamma(start.sum(1, keepdims=True))
            self.exp_dirichlet_component_ = np.exp(logs).astype(start.dtype)

    options = {"learning_method": "batch", "max_iter": SWEEPS}
    if online is not None:
        minibatch, (offset, power), passes = online
        options = {"learning_method": "online", "max_iter": passes, "batch_size": minibatch}
        options |= {"learning_offset": offset, "learning_decay": power}
    options |= {"n_jobs": jobs, "max_doc_update_iter": inner, "random_state": 0}

    def run():
        return Started(len(start), **options).fit(counts).components_

    return run


class Even(np.random.RandomState):
    """In place of gensim's random state: γ begins at 1 as on the other sides."""

    def gamma(self, shape, scale=1.0, size=None):
        return np.ones(size)


def gensim(counts, start, online=None):
    from gensim.matutils import Sparse2Corpus
    from gensim.models import LdaModel

    documents = list(Sparse2Corpus(counts.T.tocsc()))
    k, v = start.shape

    options = {"decay": 0.0, "update_every": 0, "passes": SWEEPS}  # else sweeps are averaged
    if online is not None:
        minibatch, (offset, power), passes = online
        options = {"decay": power, "offset": offset, "chunksize": minibatch, "passes": passes}
    passes = options.pop("passes")
    options |= {"alpha": [1 / k] * k, "eta": 1 / k, "iterations": 100, "gamma_threshold": 1e-3}
    names = {i: str(i) for i in range(v)}

    def run():
        model = LdaModel(num_topics=k, id2word=names, eval_every=None, **options)
        model.state.sstats[...] = start - 1 / k
        model.sync_state()
        model.random_state = Even()
        model.update(documents, passes=passes)
        return model.state.get_lambda()

    return run


def main():
    if "--large" in sys.argv:
        return large()
    counts = corpus(DOCUMENTS + HELD_OUT, WORDS, TOPICS, TOKENS)
    counts, held_out = counts[:DOCUMENTS], halves(counts[DOCUMENTS:])
    distinct = counts.nnz / DOCUMENTS
    print(f"{DOCUMENTS} documents, {distinct:.0f} distinct words each, {TOPICS} topics")
    if "--online" not in sys.argv:
        batch(counts, held_out)
    if "--batch" not in sys.argv:
        online(counts, held_out)


def first_topics(topics, words, seed=2):
    """Where all sides start."""
    rng = np.random.default_rng(seed)
    return rng.gamma(100.0, 0.01, (topics, words)).astype(np.float32)


def batch(counts, held_out):
    """Seconds a sweep."""
    start = first_topics(TOPICS, WORDS)
    contestants = {"jaxem": ours(counts, start)}
    for inner, jobs in itertools.product((100, 20), (1, 2)):
        name = f"scikit-learn, {inner} inner steps, n_jobs={jobs}"
        contestants[name] = scikit_learn(counts, start, jobs=jobs, inner=inner)
    if importlib.util.find_spec("gensim"):
        contestants["gensim"] = gensim(counts, start)
    perplexity, first = {}, {}
    for name, run in contestants.items():
        first[name], perplexity[name] = timed(run, held_out)
        told = f"perplexity {perplexity[name]:.2f}, first {first[name]:.1f} s"
        print(f"{name:>42}: {told}", flush=True)
    for inner in (100, 20):
        jobs = [name for name in contestants if f" {inner} inner" in name]
        del contestants[max(jobs, key=first.get)]
    best = min(perplexity.values())
    late = {name for name, value in perplexity.items() if value > best * (1 + SLACK)}
    record = {"perplexity": perplexity} | interleaved(contestants, SWEEPS, "sweep", late)
    write("lda-cpu.json", record)


def online(counts, held_out):
    """Seconds to one held-out perplexity."""
    sides = {"jaxem": ours, "scikit-learn": scikit_learn}
    if importlib.util.find_spec("gensim"):
        sides["gensim"] = gensim
    starts = [first_topics(TOPICS, WORDS, seed) for seed in range(2, 2 + STARTS)]
    seen = {name: [] for name in sides}
    for setting in itertools.product(MINIBATCHES, STEPS, PASSES):
        for name, side in sides.items():
            if name == "jaxem":
                side(counts, starts[0], setting)()  # it compiles
            runs = [timed(side(counts, start, setting), held_out) for start in starts]
            seconds, perplexity = (statistics.median(values) for values in zip(*runs, strict=True))
            seen[name].append((seconds, perplexity, setting))
            print(f"{name:>24}, {setting}: {perplexity:.1f} after {seconds:.2f} s", flush=True)
    target = max(min(row[1] for row in rows) for rows in seen.values())
    quickest = {name: min(row for row in rows if row[1] <= target) for name, rows in seen.items()}
    print(f"to a perplexity of {target:.1f}: {quickest}")
    contestants = {name: sides[name](counts, starts[0], row[2]) for name, row in quickest.items()}
    contestants["scikit-learn, n_jobs=2"] = scikit_learn(
        counts, starts[0], quickest["scikit-learn"][2], jobs=2
    )
    record = {"target": target, "quickest": quickest, "all": seen}
    write("lda-online-cpu.json", record | interleaved(contestants, 1, "fit"))


def timed(run, held_out):
    """Seconds, and held-out perplexity."""
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, score(found, *held_out, 1 / TOPICS)


def interleaved(contestants, sweeps, unit, late=()):
    """Prints and returns the seconds of `REPEATS` runs of each, turn about, and ratios to ours."""
    seconds = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, run in contestants.items():
            begun = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - begun) / sweeps)
    record = {f"seconds a {unit}": seconds, "ratio": {}}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        pairs = zip(seconds["jaxem"], values, strict=True)
        record["ratio"][name] = ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"{name:>42}: {1e3 * middle:.1f} ms a {unit} ({1e3 * low:.1f} to {1e3 * high:.1f}), "
            f"{ratio:.1f} times ours{'  FAILED: higher perplexity' if name in late else ''}"
        )
    return record


def write(name, record):
    results = pathlib.Path(__file__).parent / "results"
    (results / name).write_text(json.dumps({"machine": machine()} | record, indent=1) + "\n")


def large():
    """20,000 documents and 100 topics."""
    counts = corpus(20_500, 10_000, 100, 200)
    held_out = halves(counts[20_000:])
    run = ours(counts[:20_000], first_topics(100, 10_000))
    begun = time.perf_counter()
    perplexity = score(run(), *held_out, 1 / 100)
    print(f"first {time.perf_counter() - begun:.1f} s, perplexity {perplexity:.1f}", flush=True)
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - begun) / SWEEPS)
    device = jax.devices()[0].device_kind
    low, middle, high = statistics.quantiles(seconds, n=4)
    print(f"{device}: {1e3 * middle:.1f} ms a sweep ({1e3 * low:.1f} to {1e3 * high:.1f})")
    record = {"machine": machine() | {"device": device}, "seconds a sweep": seconds}
    record |= {"perplexity": perplexity}
    results = pathlib.Path(__file__).parent / "results"
    name = "lda-large-cpu.json" if jax.default_backend() == "cpu" else "lda-large-gpu.json"
    (results / name).write_text(json.dumps(record, indent=1) + "\n")
