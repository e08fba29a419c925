"""Latent Dirichlet allocation: the bound against enumeration, NumPy and scikit-learn; the laws."""

import dataclasses
import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from compare import close
from internals import (
    arrays,
    as_blocks,
    concentration,
    exp_digamma,
    lda_blocks,
    lda_classes,
    lda_model,
    lda_posterior,
    lda_stationary,
    suited,
    tuning,
)
from jax.experimental import sparse
from scipy.special import digamma, gammaln

import jaxem

PUBLISHED = pathlib.Path(__file__).parents[2] / "shared" / "published" / "cases.json"
N, V, K = 12, 9, 3
RNG = np.random.default_rng(5)
COUNTS = RNG.poisson(RNG.gamma(0.4, 2.0, (N, V)))
COUNTS[3] = 0  # an empty document
DOCUMENTS = jaxem.Documents(COUNTS)
TOPICS = RNG.dirichlet(np.full(V, 0.9), K)
ALPHA = np.array([0.3, 0.7, 1.1])
WEIGHTS = RNG.uniform(0.2, 2.0, N)
MAP = jaxem.LDA(K, alpha=ALPHA)
BAYES = jaxem.LDA(K, alpha=ALPHA, eta=0.2, inference="bayes")
POINT = jaxem.LDAParams(TOPICS, ALPHA)
SPREAD = jaxem.LDAParams(TOPICS, ALPHA, mass=np.array([9.0, 30.0, 60.0]))
VARIANTS = {
    "ml": jaxem.LDA(K, alpha=0.4),
    "map": jaxem.LDA(K, alpha="symmetric", eta=1.3),
    "bayes": jaxem.LDA(K, alpha="asymmetric", eta="symmetric", inference="bayes"),
    "eta": jaxem.LDA(K, eta="asymmetric", inference="bayes"),
}


@functools.cache
def posterior(bayes=False):
    model, params = (BAYES, SPREAD) if bayes else (MAP, POINT)
    return jax.jit(model.posterior)(params, DOCUMENTS)


def elbo(counts, table, alpha, gamma):
    """F of one document by the definition, every term alone, in NumPy."""
    logs = digamma(gamma) - digamma(gamma.sum())
    phi = np.exp(logs)[:, None] * table
    phi = phi / phi.sum(0)
    words = (counts * phi * (np.log(table) - np.log(phi) + logs[:, None])).sum()
    prior = gammaln(alpha.sum()) - gammaln(alpha).sum() + ((alpha - 1) * logs).sum()
    entropy = -gammaln(gamma.sum()) + gammaln(gamma).sum() - ((gamma - 1) * logs).sum()
    return words + prior + entropy


def dirichlet_multinomial(counts, alpha):
    """log ∫ Π θ^counts dDirichlet(θ | alpha), over the last axis."""
    of = gammaln(alpha + counts).sum(-1) - gammaln(alpha).sum(-1)
    return of + gammaln(alpha.sum(-1)) - gammaln((alpha + counts).sum(-1))


def enumerated(words, topics, alpha):
    """log p(words | topics, alpha) of one document: the sum over every assignment."""
    terms = [
        np.log(topics[list(z), words]).sum()
        + dirichlet_multinomial(np.bincount(z, minlength=len(alpha)), alpha)
        for z in itertools.product(range(len(alpha)), repeat=len(words))
    ]
    return np.logaddexp.reduce(terms)


@pytest.mark.skipif(not PUBLISHED.exists(), reason="../shared/published is absent")
@pytest.mark.parametrize("name", ["lda-tiny", "lda-disjoint"])
def test_published(name):
    cases = json.loads(PUBLISHED.read_text())["cases"]
    case = next(c for c in cases if c["id"] == name)
    alpha, topics = (np.array(case["inline"][part], float) for part in ("alpha", "beta"))
    document = jaxem.Documents(
        np.bincount(case["inline"]["words"], minlength=topics.shape[1])[None]
    )
    params = jaxem.LDAParams(topics, alpha)
    q, bound = jaxem.LDA(2, alpha=alpha).posterior(params, document)
    assert abs(bound[0] - case["elbo"]) < case["tolerance"]
    assert bound[0] <= case["log_evidence"] + case["tolerance"]
    if "gamma" in case:
        np.testing.assert_allclose(q.gamma[0], case["gamma"], atol=case["tolerance"])
    else:  # disjoint topics: the bound is the evidence
        evidence = enumerated(case["inline"]["words"], np.maximum(topics, 1e-300), alpha)
        assert abs(bound[0] - evidence) < case["tolerance"]


def test_the_bound_is_below_the_evidence_of_every_document():
    few = [np.repeat(np.arange(V), row)[:6] for row in COUNTS]
    documents = jaxem.Documents([[(w, 1) for w in words] for words in few], vocabulary=V)
    _, bound = MAP.posterior(POINT, documents)
    evidence = np.array([enumerated(words, TOPICS, ALPHA) for words in few])
    assert (bound <= evidence + 1e-12).all() and abs(bound[3]) < 1e-12
    assert (evidence - bound).max() < 2  # a bound worth having
    assert (bound + 0.1 > evidence).any() and not (bound + 0.5 > evidence).all()


def test_the_bayesian_bound_is_below_the_evidence_of_the_corpus():
    """log p(all words | alpha, eta), topics and θ integrated out, all assignments enumerated."""
    documents, alpha, eta = [[0, 0, 1, 2], [2, 3, 3], [1, 0]], np.array([0.4, 0.9]), np.full(4, 0.3)
    of, words = np.repeat([0, 1, 2], [4, 3, 2]), np.concatenate(documents)
    terms = []
    for z in itertools.product(range(2), repeat=len(words)):
        in_documents, in_topics = np.zeros((3, 2)), np.zeros((2, 4))
        np.add.at(in_documents, (of, np.array(z)), 1)
        np.add.at(in_topics, (np.array(z), words), 1)
        each = dirichlet_multinomial(in_documents, alpha).sum()
        terms.append(each + dirichlet_multinomial(in_topics, eta).sum())
    evidence = np.logaddexp.reduce(terms)
    model = jaxem.LDA(2, alpha=alpha, eta=0.3, inference="bayes")
    data = jaxem.Documents([[(w, 1) for w in words] for words in documents], vocabulary=4)
    found = jaxem.fit(model, data, key=0, restarts=4, tol=1e-9)
    assert (found.restarts.objective <= evidence).all()
    assert evidence - found.objective < 4
    of_topics = found.objective - found.log_likelihood
    np.testing.assert_allclose(of_topics, model.log_prior(found.params), rtol=1e-12)


@pytest.mark.parametrize("bayes", [False, True])
def test_the_bound_equals_a_float64_computation_in_numpy(bayes):
    q, bound = posterior(bayes)
    lam = TOPICS * SPREAD.mass[:, None]
    logs = digamma(lam) - digamma(lam.sum(1, keepdims=True))
    table = np.exp(logs) if bayes else TOPICS
    rows = zip(COUNTS, np.asarray(q.gamma), strict=True)
    wanted = [elbo(counts, table, ALPHA, gamma) for counts, gamma in rows]
    np.testing.assert_allclose(bound, wanted, rtol=0, atol=1e-8)
    if bayes:
        prior = K * (gammaln(V * 0.2) - V * gammaln(0.2)) + ((0.2 - 1) * logs).sum()
        entropy = (gammaln(lam).sum(1) - gammaln(lam.sum(1))).sum() - ((lam - 1) * logs).sum()
        assert abs(BAYES.log_prior(SPREAD) - (prior + entropy)) < 1e-8


@pytest.mark.parametrize("bayes", [False, True])
def test_the_posterior_is_a_maximum_of_the_free_energy(bayes):
    model, params = (BAYES, SPREAD) if bayes else (MAP, POINT)
    q, bound = posterior(bayes)
    value = jax.jit(lambda q: model.free_energy(params, DOCUMENTS, q))
    table = np.asarray(model.table(params, DOCUMENTS).table)
    logs = digamma(np.asarray(q.gamma))
    share = np.exp(logs)[:, None] * table[DOCUMENTS.words]
    share = share / share.sum(-1, keepdims=True)
    full = q._replace(shares=share)
    close(value(full), bound)
    close(model.statistics(params, DOCUMENTS, full, WEIGHTS), statistics(model, params, WEIGHTS))
    total = jaxem.free_energy(model, params, DOCUMENTS, q, WEIGHTS)
    np.testing.assert_allclose(total, WEIGHTS @ bound, rtol=1e-12)
    some = DOCUMENTS.size > 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = 10.0 ** rng.uniform(-3, 0)
        gamma = q.gamma * np.exp(size * rng.normal(size=q.gamma.shape))
        assert (value(q._replace(gamma=gamma)) < bound).all()
        other = share * np.exp(size * rng.normal(size=share.shape))
        other = other / other.sum(-1, keepdims=True)
        moved = value(full._replace(shares=other))
        assert (moved[some] < bound[some]).all()
        assert (value(q._replace(gamma=gamma, shares=other)) < bound).all()


def statistics(model, params, weights, documents=DOCUMENTS):
    @jax.jit
    def both(documents, weights):
        q, _ = model.posterior(params, documents)
        return model.statistics(params, documents, q, weights)

    return both(documents, weights)


def test_statistics_add_and_are_linear_in_weights():
    whole = statistics(MAP, POINT, WEIGHTS)
    parts = [
        statistics(MAP, POINT, WEIGHTS[rows], DOCUMENTS[rows]) for rows in (slice(5), slice(5, N))
    ]
    close(whole, jax.tree.map(jnp.add, *parts), 1e-8)
    twice = statistics(MAP, POINT, 2 * WEIGHTS + 1)
    once = statistics(MAP, POINT, np.ones(N))
    close(twice, jax.tree.map(lambda a, b: 2 * a + b, whole, once), 1e-8)
    weights, index = np.ones(N), np.array([*range(1, N), 5, 6])
    weights[[0, 5, 6]] = 0, 2, 2
    close(
        statistics(MAP, POINT, weights),
        statistics(MAP, POINT, np.ones(N + 1), DOCUMENTS[index]),
        1e-8,
    )
    np.testing.assert_allclose(whole.topics.sum(), WEIGHTS @ DOCUMENTS.size)


@pytest.mark.parametrize("name", VARIANTS)
def test_sweeps_never_lower_the_bound(name):
    dtype = np.float32 if name in ("map", "eta") else np.float64
    documents = jaxem.Documents(COUNTS.astype(dtype))
    weights = WEIGHTS.astype(dtype)
    model = VARIANTS[name]
    params = jax.jit(model.init)(jax.random.key(1), documents, weights)
    method = suited(jaxem.EM(), model, documents)
    memory = method.start(model, params, documents, weights)
    step = jax.jit(lambda *carry: method.evaluate(model, carry[0], documents, weights, carry[1]))
    objective = first = -np.inf
    slack = 1e-13 if dtype == np.float64 else 2e-6
    for _ in range(25):
        seen = step(params, memory)
        assert seen.objective.dtype == dtype
        assert seen.objective >= objective - slack * seen.magnitude
        params, memory, objective = seen.proposal, seen.memory, seen.objective
        first = max(first, objective) if first == -np.inf else first
    assert objective > first + 1


def test_one_e_step_and_one_sweep_equal_those_of_scikit_learn():
    from sklearn.decomposition import LatentDirichletAllocation

    lam = TOPICS * SPREAD.mass[:, None]
    theirs = LatentDirichletAllocation(
        K,
        doc_topic_prior=0.3,
        topic_word_prior=0.2,
        mean_change_tol=1e-12,
        max_doc_update_iter=5000,
    )
    sparse = scipy.sparse.csr_matrix(COUNTS.astype(float))
    theirs.partial_fit(sparse)  # makes it ready; its state is then replaced
    theirs.components_ = lam
    expected = digamma(lam) - digamma(lam.sum(1, keepdims=True))
    theirs.exp_dirichlet_component_ = np.exp(expected)
    gamma, stats = theirs._e_step(sparse, cal_sstats=True, random_init=False)
    model = jaxem.LDA(K, alpha=0.3, eta=0.2, inference="bayes")
    params = dataclasses.replace(SPREAD, alpha=np.full(K, 0.3))
    q, _ = model.posterior(params, jaxem.Documents(sparse))
    np.testing.assert_allclose(q.gamma, gamma, atol=1e-5)
    theirs._e_step = lambda *args, **options: (gamma, stats)  # its sweep draws γ, ours does not
    theirs._em_step(sparse, total_samples=N, batch_update=True)
    new = model.maximize(params, statistics(model, params, np.ones(N)))
    np.testing.assert_allclose(new.topics * new.mass[:, None], theirs.components_, atol=1e-5)
    np.testing.assert_allclose(0.2 + stats, theirs.components_, atol=1e-5)


def test_blocks_padding_and_order_change_nothing(monkeypatch):
    """The documents in many blocks, of three lengths, against all in one."""
    n, v = 90, 200
    rng = np.random.default_rng(2)
    length = np.where(np.arange(n) % 3 == 0, 60, rng.integers(0, 30, n))
    pairs = [[(w, 1 + w % 3) for w in rng.choice(v, size, replace=False)] for size in length]
    documents = jaxem.Documents(pairs, vocabulary=v)
    params = jaxem.LDAParams(rng.dirichlet(np.full(v, 0.2), K), ALPHA)
    weights = rng.uniform(0, 2, n)

    def answer(documents, weights):
        q, bound = MAP.posterior(params, documents)
        stats = MAP.statistics(params, documents, q, weights)
        units, cold = MAP.arranged(documents), MAP.cold(params, documents)
        swept = MAP.improved(params, documents, units, weights, cold, True, 0.0, 1000)
        return q.gamma, bound, stats, swept

    def answers(*args):
        return jax.jit(lambda *a: answer(*a))(*args)  # traced anew: the layout may be another

    whole = answers(documents, weights)
    wide = jaxem.Documents(documents.toarray(), vocabulary=v)
    cells = np.pad(documents.words, ((0, 0), (0, 13))), np.pad(documents.counts, ((0, 0), (0, 13)))
    wide._set(documents.size, *cells, v)
    sizes = {
        "LEAST_DOCUMENTS": 8,
        "MOST_DOCUMENTS": 8,
        "SHORTEST": 8,
        "LENGTH_CLASSES": 3,
        "UNCONVERGED_DIVISOR": 9,  # more than a block: all its documents must converge
    }
    for name, value in sizes.items():
        monkeypatch.setattr(tuning, name, value)
    assert len(lda_classes.layout(wide.words.shape, K)[0]) == 3
    order = rng.permutation(n)
    gamma, bound, stats, (swept, *sums) = answers(wide[order], weights[order])
    back = np.argsort(order)
    found = gamma[back], bound[back], stats, (swept[back], sums[0], sums[1][back])
    close(found, whole)
    close(found[3], (whole[0], stats, whole[1]), 1e-8)  # one look comes to rest where packing does
    units = MAP.arranged(wide)
    step = jax.jit(lambda g: MAP.improved(params, wide, units, weights, g, True, 0.0, 1)[2])
    close(step(whole[0]), whole[1], 1e-8)  # a step from nothing is worse than this γ: it is kept


def test_one_long_document_does_not_pad_all_others():
    lengths, _ = lda_classes.layout((5000, 50_000), 10)
    assert lengths[-1] == 50_000 and lengths[0] <= 128
    assert lda_classes.layout((5000, 300), 10)[0] == [38, 58, 88, 133, 200, 300]


def unequal_corpus():
    """(plain, by class): 40 documents of at most 5 distinct words and two of 60, stored as rows of
    one width and as rows of two."""
    rng = np.random.default_rng(2)
    length = np.where(np.arange(42) % 30 == 7, 60, rng.integers(0, 6, 42))
    pairs = [[(int(w), 1 + int(w) % 3) for w in rng.choice(200, m, False)] for m in length]
    plain = jaxem.Documents(pairs, vocabulary=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "PADDED_CELLS", 0)
        by_class = jaxem.Documents(pairs, vocabulary=200)
    return plain, by_class


def test_documents_of_unequal_length_are_stored_by_class():
    plain, by_class = unequal_corpus()
    assert plain.words.shape == (42, 60)
    assert [leaf.shape for leaf in by_class.stored[0]] == [(40, 5), (2, 60)]
    dense = plain.toarray()
    np.testing.assert_array_equal(by_class.toarray(), dense)
    rows = np.array([7, 3, 7, 20])
    np.testing.assert_array_equal(by_class[rows].toarray(), dense[rows])
    for name in ("words", "counts", "size"):
        expected = getattr(plain, name)
        np.testing.assert_array_equal(getattr(by_class, name), expected)
        inside = jax.jit(lambda d, name=name: getattr(d, name))(by_class)
        np.testing.assert_array_equal(inside, expected)
    for made in (jaxem.topics.completed(by_class), jaxem.topics.completed(plain)):
        np.testing.assert_array_equal(made[0].toarray() + made[1].toarray(), dense)


def test_sparse_matrices_of_jax_are_documents():
    """A word that is listed twice counts twice; indices beyond the shape mean nothing."""
    parts = np.array([1.0, 2, 4, 7]), np.array([[1, 1], [0, 2], [1, 1], [2, 3]])
    expected = [[0, 0, 2], [0, 5, 0]]
    rows = parts[0][[1, 0, 2, 3]], np.array([2, 1, 1, 3]), np.array([0, 1, 3])
    for form in (sparse.BCOO(parts, shape=(2, 3)), sparse.BCSR(rows, shape=(2, 3))):
        np.testing.assert_array_equal(jaxem.Documents(form).toarray(), expected)
    blocks = sparse.BCOO((parts[0][None], parts[1][None]), shape=(1, 2, 3))
    for wrong in (blocks, sparse.COO((parts[0], *parts[1].T), shape=(2, 3))):
        with pytest.raises((TypeError, ValueError), match=r"without batch|shape \(documents"):
            jaxem.Documents(wrong)


def test_documents_stored_by_class_give_the_same_answers(monkeypatch):
    """Posterior, statistics, a pass, the start, a step of the stationary map and its slope."""
    monkeypatch.setattr(tuning, "UNCONVERGED_DIVISOR", 1000)  # all documents must converge
    topics = np.random.default_rng(3).dirichlet(np.full(200, 0.2), K)
    model, params = MAP, dataclasses.replace(POINT, topics=topics)

    def answer(documents, weights):
        q, bound = model.posterior(params, documents)
        stats = model.statistics(params, documents, q, weights)
        cold, units = model.cold(params, documents), model.arranged(documents)
        swept = model.improved(params, documents, units, weights, cold, False, 0.0, 1000)
        start = model.init(jax.random.key(0), documents, weights)

        def step(alpha):
            table = model.table(params, documents)._replace(alpha=alpha)
            return lda_stationary.stepped(table, cold, weights)

        slope = jax.grad(lambda alpha: (weights * step(alpha)[2]).sum())(ALPHA)
        return q.gamma, bound, stats, swept, start, step(ALPHA), slope

    weights = np.random.default_rng(4).uniform(0, 2, 42)
    plain, by_class = (jax.jit(answer)(documents, weights) for documents in unequal_corpus())
    close(by_class, plain, 1e-8)


def fit_from_point(x, weights, **options):
    """Three steps of three topics over 200 words from a given start."""
    start = dataclasses.replace(POINT, topics=np.random.default_rng(3).dirichlet(np.ones(200), K))
    if isinstance(x, jaxem.Batch):
        start = jax.tree.map(lambda leaf: np.stack([leaf] * 2), start)
    options |= {"init": start, "tol": 0, "max_iter": 3, "weights": weights}
    return jaxem.fit(jaxem.LDA(K, eta=1.1), x, **options)


@pytest.mark.slow
def test_fits_of_documents_stored_by_class(monkeypatch):
    """A batch with an invalid document of weight 0, against rows of one width."""
    monkeypatch.setattr(tuning, "UNCONVERGED_DIVISOR", 1000)  # all documents must converge
    monkeypatch.setattr(tuning, "PADDED_CELLS", 0)
    plain, by_class = unequal_corpus()
    first_counts = by_class.stored[1][0].copy()
    first_counts[0, 0] = np.nan
    leaves, structure = jax.tree.flatten(by_class)
    bad = jax.tree.unflatten(structure, [*leaves[:3], first_counts, *leaves[4:]])
    weights = np.r_[0.0, np.ones(41)]
    expected = fit_from_point(plain, weights)
    fleet = fit_from_point(jaxem.Batch([bad, bad[::-1]]), [weights, weights[::-1]])
    np.testing.assert_allclose(fleet.objective, [expected.objective] * 2, rtol=1e-6)
    explanation = arrays.explain_bad_input(expected.model, bad, None)
    assert "data.counts holds 1 value outside" in explanation and "(0, 0): nan" in explanation
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(expected.score_samples(bad))), [0])


def test_a_batch_stores_its_documents_by_class(monkeypatch):
    monkeypatch.setattr(tuning, "PADDED_CELLS", 0)
    by_class, short = unequal_corpus()[1], jaxem.Documents(np.ones((1, 200)))
    sizes = [jax.tree.leaves(b.x)[1].shape for b in as_blocks(jaxem.Batch([by_class, short]), None)]
    assert sizes == [(1, 8, 200), (1, 40, 5)]  # data sets of other sizes do not pad these


@pytest.mark.slow
def test_minibatches_of_documents_stored_by_class(monkeypatch):
    monkeypatch.setattr(tuning, "UNCONVERGED_DIVISOR", 1000)
    method = jaxem.OnlineEM(batch=20)
    found = [fit_from_point(x, None, method=method).objective for x in unequal_corpus()]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_one_long_document_takes_memory_in_proportion_to_its_words():
    """5,000 short texts and one of 50,000 distinct words: 2 GB as rows of one width."""
    rng = np.random.default_rng(0)
    rows = np.r_[np.repeat(np.arange(5000), 10), np.full(50_000, 5000)]
    columns = np.r_[rng.integers(0, 2000, 50_000), np.arange(50_000)]
    counts = scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)))
    needed = 8 * counts.nnz
    documents = jaxem.Documents(counts)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(documents)) < 2 * needed

    def fitted(documents):
        return jaxem.fit(jaxem.LDA(2), documents, key=0, tol=0, max_iter=2).params

    memory = jax.jit(fitted).lower(documents).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert total + memory.output_size_in_bytes < 10 * needed


def test_documents_of_a_block_that_is_not_full_move_too(monkeypatch):
    """Two of 26 in blocks of 8, of which two may be left behind."""
    monkeypatch.setattr(tuning, "LEAST_DOCUMENTS", 8)
    monkeypatch.setattr(tuning, "MOST_DOCUMENTS", 8)
    documents = jaxem.Documents(np.random.default_rng(0).poisson(1.0, (26, V)) + (np.arange(V) < 2))
    units, cold = MAP.arranged(documents), MAP.cold(POINT, documents)
    assert len(lda_classes.layout(documents.words.shape, K)[0]) == 1
    for anew in (True, False):
        args = POINT, documents, units, jnp.ones(26), cold, anew, 0.0, 20
        gamma = jax.jit(lambda *args: MAP.improved(*args)[0])(*args)
        assert (np.abs(gamma - cold).max(1) > 1e-3).all()


def test_an_online_pass_by_hand(monkeypatch):
    """Minibatches and averages of λ as in NumPy (Hoffman et al. 2010), γ at rest in each."""
    monkeypatch.setattr(lda_model, "LOOSE", 0.0)
    monkeypatch.setattr(lda_model, "BRIEF", 2000)
    decay, batch = jaxem.Decay(offset=3.0, power=0.7), 4
    method = jaxem.OnlineEM(decay, batch=batch, seed=2)
    options = {"weights": WEIGHTS, "init": SPREAD, "max_iter": 1, "tol": 0}
    found = jaxem.fit(BAYES, DOCUMENTS, method=method, **options)

    def sums(rows, lam):
        table = np.exp(digamma(lam) - digamma(lam.sum(1, keepdims=True)))
        gamma = np.tile(ALPHA, (len(rows), 1)) + COUNTS[rows].sum(1, keepdims=True) / K
        for _ in range(3000):
            e = np.exp(digamma(gamma))
            ratio = COUNTS[rows] / (e @ table)
            gamma = ALPHA + e * (ratio @ table.T)
        return np.append(((WEIGHTS[rows, None] * e).T @ ratio * table).ravel(), WEIGHTS[rows].sum())

    def estimate(s):
        return 0.2 + s[:-1].reshape(K, V) * WEIGHTS.sum() / s[-1]

    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(2), 0), N))
    blocks = np.split(order, 3)
    s, lam = np.zeros(K * V + 1), TOPICS * SPREAD.mass[:, None]
    mean = s
    for t, rows in enumerate(blocks):
        s = s + decay(t) * (sums(rows, lam) - s)
        mean = mean + 8 / (t + 8) * (s - mean)
        lam = estimate(s)
    lam = estimate(mean)
    np.testing.assert_allclose(found.params.topics * found.params.mass[:, None], lam, rtol=1e-6)
    score = WEIGHTS @ found.score_samples(DOCUMENTS) + BAYES.log_prior(found.params)
    np.testing.assert_allclose(found.objective, score, rtol=1e-9)


@pytest.mark.slow
def test_online_passes_come_near_the_batch_answer():
    _, documents = planted()
    model = jaxem.LDA(K, alpha=0.3, inference="bayes")
    start = jax.jit(model.init)(jax.random.key(3), documents, np.ones(len(documents)))
    batch = jaxem.fit(model, documents, init=start)
    options = {"init": start, "tol": 0}
    first, online = (
        jaxem.fit(model, documents, method=method, max_iter=2, **options).objective
        for method in (jaxem.EM(), jaxem.OnlineEM(batch=50))
    )
    gap = batch.objective - online
    assert gap < (batch.objective - first) / 3 and gap < 0.01 * abs(batch.objective)


def test_the_digamma_function_of_the_inner_steps(dtype):
    x = np.geomspace(0.02, 1e17, 3000).astype(dtype)
    eps = np.finfo(dtype).eps
    found = np.asarray(lda_blocks.digamma(x))
    wanted = digamma(x.astype(float))
    assert found.dtype == dtype and (abs(found - wanted) < 8 * eps * (1 + abs(wanted))).all()
    relative = np.asarray(exp_digamma(x), float) / np.exp(wanted) - 1
    assert (abs(relative) < 8 * eps * (1 + abs(wanted))).all()
    assert (exp_digamma(x[:1] * 1e-9) == 0).all()


@functools.cache
def planted(n=300):
    """Documents of three topics that hardly overlap."""
    rng = np.random.default_rng(8)
    topics = rng.dirichlet(np.full(30, 0.1), K)
    params = jaxem.LDAParams(topics, np.full(K, 0.3))
    return topics, jaxem.LDA(K, alpha=0.3).sample(jax.random.key(4), params, n, length=60)


def matched(topics, found):
    """The total variation of each topic from the nearest found one, the worst of them."""
    return (abs(topics[:, None] - np.asarray(found)[None]).sum(-1) / 2).min(1).max()


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(np.float32, marks=pytest.mark.slow), np.float64],
    ids=["float32", "float64"],
)
def test_a_fit_finds_planted_topics(tmp_path, dtype):
    topics, documents = planted()
    documents = jaxem.Documents(documents.toarray().astype(dtype))
    model = jaxem.LDA(K, alpha="symmetric", eta=1.05)
    found = jaxem.fit(model, documents, key=0, restarts=1 if dtype == np.float32 else 2)
    assert found.converged and found.objective.dtype == found.params.topics.dtype == dtype
    assert matched(topics, found.params.topics) < 0.1
    assert matched(topics, np.roll(np.asarray(found.params.topics), 7, 1)) > 0.5  # can fail
    assert 0.15 < found.params.alpha[0] < 0.45
    score = float(found.score_samples(documents).sum())
    assert abs(score / float(found.log_likelihood) - 1) < 1e-3  # γ from nothing, not from the fit
    shares = found.predict_proba(documents)
    np.testing.assert_allclose(np.asarray(shares).sum(1), 1, atol=1e-5)
    assert (found.predict(documents) == np.argmax(shares, 1)).all()
    found.save(tmp_path / "topics.npz")
    again = jaxem.load(tmp_path / "topics.npz")
    np.testing.assert_array_equal(again.predict_proba(documents), shares)


def test_weights_start_and_rules():
    _, documents = planted()
    weights = np.ones(len(documents))
    weights[:150] = 0
    model = jaxem.LDA(K, alpha=0.3, eta=1.1)
    start = jax.jit(model.init)(jax.random.key(0), documents, weights)
    some = jaxem.fit(model, documents, init=start, weights=weights, tol=1e-8)
    half = jaxem.fit(model, documents[150:], init=start, tol=1e-8)
    close(some.params.topics, half.params.topics, 1e-4)
    np.testing.assert_allclose(some.objective, half.objective, rtol=1e-7)
    with pytest.raises(TypeError, match="a posterior of its own"):
        jaxem.fit(model, documents, init=start, method=jaxem.EM(e_step=jaxem.Hard()))


def test_a_learnt_concentration_is_the_optimum():
    logs = np.log(RNG.dirichlet([0.2, 1.5, 4.0], 500)).mean(0)

    def wanted(x):
        alpha = np.exp(x)
        return -(gammaln(alpha.sum()) - gammaln(alpha).sum() + (alpha * logs).sum())

    best = np.exp(scipy.optimize.minimize(wanted, np.zeros(3), tol=1e-12).x)
    alpha = jnp.ones(3)
    step = jax.jit(lambda a: concentration.asymmetric(a, logs))
    for _ in range(200):
        new = step(alpha)
        assert wanted(np.log(new)) <= wanted(np.log(alpha)) + 1e-12
        alpha = new
    np.testing.assert_allclose(alpha, best, rtol=1e-4)
    flat = scipy.optimize.minimize_scalar(lambda x: wanted(np.full(3, x)), bounds=(-3, 3))
    one, same = jnp.ones(()), jax.jit(lambda a: concentration.symmetric(a, logs.sum(), 3))
    for _ in range(200):
        one = same(one)
    np.testing.assert_allclose(one, np.exp(flat.x), rtol=1e-4)


def test_what_a_document_may_lack():
    """An empty document, and a word that no topic holds."""
    q, bound = posterior()
    np.testing.assert_allclose(q.gamma[3], ALPHA)
    assert abs(bound[3]) < 1e-12
    topics = TOPICS.copy()
    topics[:, 0] = 0
    params = jaxem.LDAParams(topics / topics.sum(1, keepdims=True), ALPHA)
    q, bound = MAP.posterior(params, DOCUMENTS)
    assert np.isfinite(q.gamma).all()
    np.testing.assert_array_equal(np.isneginf(bound), COUNTS[:, 0] > 0)


def test_documents_in_every_form():
    lists = [[(w, c) for w, c in enumerate(row) if c] for row in COUNTS]
    split = [
        [*row[1:], *[(w, c - 1) for w, c in row[:1]], *[(w, 1) for w, c in row[:1]]]
        for row in lists
    ]
    forms = [
        np.asfortranarray(COUNTS.astype(np.float16)),
        scipy.sparse.coo_array(COUNTS),
        scipy.sparse.csc_matrix(COUNTS.astype(np.float32)),
        scipy.sparse.csr_array((np.ones(3), [1, 1, 2], [0, 3]), shape=(1, V)),
    ]
    for form in forms[:3]:
        np.testing.assert_array_equal(jaxem.Documents(form).toarray(), COUNTS)
    np.testing.assert_array_equal(jaxem.Documents(forms[3]).toarray()[0, :3], [0, 2, 1])
    for form in (lists, split):
        np.testing.assert_array_equal(jaxem.Documents(form, vocabulary=V).toarray(), COUNTS)
    some = DOCUMENTS[COUNTS[:, 0] > 0]
    np.testing.assert_array_equal(some.toarray(), COUNTS[COUNTS[:, 0] > 0])
    assert len(DOCUMENTS) == N and "12 of 9 words" in repr(DOCUMENTS)


UNUSABLE = {
    "negative": (
        np.array([[1, -2]]),
        ValueError,
        r"1 counts that are negative.*document 0, word 1",
    ),
    "a fraction": (np.array([[1, 0.5]]), ValueError, r"fractional.*word 1: 0.5.*weight"),
    "NaN": (np.array([[np.nan, 1]]), ValueError, r"not finite"),
    "one axis": (COUNTS[0], ValueError, r"\(documents, vocabulary\).*x\[None, :\]"),
    "strings": (COUNTS.astype(str), TypeError, r"dtype <U.*0, 1, 2"),
    "no document": (COUNTS[:0], ValueError, r"no document"),
    "no word": ([[], []], ValueError, r"vocabulary is empty"),
    "not pairs": ([[3, 4]], TypeError, r"data\[0\].*\(word, count\)"),
    "a text": (["the cat"], TypeError, r"data\[0\] must be a list of tokens.*split"),
    "tokens and pairs": ([["a"], [(1, 2)]], TypeError, r"data\[1\] must be a list of tokens"),
    "a mapping": ({0: 1}, TypeError, r"matrix of counts or a list.*dict"),
    "masked": (np.ma.masked_array(COUNTS), TypeError, r"masked array"),
    "twice": (DOCUMENTS, TypeError, r"Documents already"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_documents(name):
    data, error, message = UNUSABLE[name]
    with pytest.raises(error, match=message):
        jaxem.Documents(data)


def test_tokens_and_words_outside_the_vocabulary():
    texts = [["b", "a", "b"], [], ["c"]]
    documents = jaxem.Documents(texts)
    assert documents.terms == ("a", "b", "c") and documents[:1].terms == documents.terms
    np.testing.assert_array_equal(documents.toarray(), [[1, 2, 0], [0, 0, 0], [0, 0, 1]])
    other = jaxem.Documents([["c", "new", "c"]], vocabulary=documents.terms, unknown="drop")
    np.testing.assert_array_equal(other.toarray(), [[0, 0, 2]])
    with pytest.raises(ValueError, match=r"data\[0\] holds 'new'.*3 words.*unknown=\"drop\""):
        jaxem.Documents([["c", "new"]], vocabulary=documents.terms)
    for data in ([[(1, 2), (5, 1)]], scipy.sparse.csr_array(np.array([[0, 2, 0, 0, 0, 1]]))):
        with pytest.raises(ValueError, match=r"outside the vocabulary.*unknown=\"drop\""):
            jaxem.Documents(data, vocabulary=3)
        np.testing.assert_array_equal(
            jaxem.Documents(data, vocabulary=3, unknown="drop").toarray(), [[0, 2, 0]]
        )
    with pytest.raises(ValueError, match="unknown must be one of 'error', 'drop', got 'ignore'"):
        jaxem.Documents(texts, unknown="ignore")
    with pytest.raises(ValueError, match="holds 'a' twice"):
        jaxem.Documents(texts, vocabulary=["a", "a"])
    with pytest.raises(TypeError, match="list of strings for lists of tokens, got 3"):
        jaxem.Documents(texts, vocabulary=3)
    with pytest.raises(TypeError, match=r"sparse matrix.*jaxem.Documents\(data\)"):
        jaxem.fit(MAP, scipy.sparse.csr_array(COUNTS), key=0)


@pytest.mark.parametrize("name", ["map", "bayes"])
def test_small_concentrations_in_float32(name, monkeypatch):
    """exp(ψ(1/400)) = exp(−401): against float64; a cell that needs logarithms among them."""
    k, v = 400, 6
    rng = np.random.default_rng(0)
    counts = np.array([[3, 0, 2, 0, 0, 1], [0, 0, 0, 0, 1, 0], [0, 4, 0, 1, 0, 0]])
    of_topics = np.full((k, v), 1 / k)
    of_topics[:5, :5] += np.diag([30.0, 20, 10, 5, 2])  # no topic has met the last word
    topics = of_topics / of_topics.sum(1, keepdims=True)
    if name == "map":
        model, mass = jaxem.LDA(k), None
        topics = rng.dirichlet(np.ones(v), k)
    else:
        model, mass = jaxem.LDA(k, inference="bayes"), of_topics.sum(1)
    weights = np.array([1.0, 2.0, 0.5])
    answers = []
    for dtype in (np.float32, np.float64):
        arrays = (topics, np.full(k, 1 / k), mass)
        params = jaxem.LDAParams(*(None if a is None else a.astype(dtype) for a in arrays))
        documents = jaxem.Documents(counts.astype(dtype))

        def answer(params, documents, weights):
            table = model.table(params, documents)
            gamma = jnp.full((3, k), 1 / k, documents.counts.dtype).at[:, 5].add(3.0)
            sums = lda_posterior.sums_at_gamma(table, gamma, weights)
            block = lda_blocks.Block.of(table, documents.words, documents.counts)
            q, evidence = model.posterior(params, documents)
            return evidence, sums, lda_blocks.stepped_gamma(block, gamma), q.responsibilities

        answers.append(jax.jit(answer)(params, documents, weights.astype(dtype)))
    low, high = answers
    assert np.isfinite(high[1].evidence).all() and (high[1].evidence < -300).any() == (
        name == "bayes"
    )
    np.testing.assert_allclose(high[1].topics.sum(), weights @ counts.sum(1), rtol=1e-12)
    for a, b in zip(jax.tree.leaves(low[:3]), jax.tree.leaves(high[:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_equal_documents_have_a_start_that_is_no_saddle():
    one = jaxem.Documents(np.random.default_rng(1).poisson(1.0, (1, 30)))
    many = jaxem.Documents(np.repeat(one.toarray(), 5, 0))
    model = jaxem.LDA(4, alpha=0.5)
    start = jax.jit(model.init)
    for documents in (one, many):
        topics = start(jax.random.key(0), documents, np.ones(len(documents))).topics
        np.testing.assert_allclose(topics.sum(1), 1)
        assert min(abs(a - b).sum() for a, b in itertools.combinations(topics, 2)) > 0.1
    different = jaxem.Documents(np.random.default_rng(1).poisson(1.0, (40, 30)))
    topics = start(jax.random.key(0), different, np.ones(40)).topics
    assert (topics > 0).all()


def test_one_document_ends_no_lower_than_one_topic_in_use():
    """With posteriors of the topics, where a start of ten distinct topics ends 50 nats lower."""
    v, k = 300, 10
    frequencies = 1 / np.arange(1, v + 1)
    counts = np.random.default_rng(1).multinomial(60, frequencies / frequencies.sum())
    document, model = jaxem.Documents(counts[None]), jaxem.LDA(k, inference="bayes")
    first = jax.jit(model.init)
    starts = [first(jax.random.key(i), document, np.ones(1)) for i in range(3)]
    one_topic = np.vstack([(counts + 1e-3) / (counts + 1e-3).sum(), np.full((k - 1, v), 1 / v)])
    starts.append(dataclasses.replace(starts[0], topics=one_topic))
    *found, best = (jaxem.fit(model, document, init=start) for start in starts)
    assert all(f.converged and f.objective > best.objective - 0.01 for f in found)


def test_unusable_arguments():
    with pytest.raises(ValueError, match=r"words outside the vocabulary.*word 4: 4.*0 to 2"):
        jaxem.Documents([[(4, 1)]], vocabulary=3)
    with pytest.raises(TypeError, match=r'topics must be an int.*inference="bayes"'):
        jaxem.LDA("bayes")
    with pytest.raises(ValueError, match="topics must be an int of 1 or more, got 0"):
        jaxem.LDA(0)
    with pytest.raises(ValueError, match=r"alpha must be a number above 0, 3 of them.*\(2,\)"):
        jaxem.LDA(3, alpha=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"alpha must.*'asymmetric'; got 'auto'"):
        jaxem.LDA(3, alpha="auto")
    with pytest.raises(ValueError, match=r"eta must be 1 or more.*unbounded"):
        jaxem.LDA(3, eta=0.1)
    with pytest.raises(ValueError, match='needs inference="bayes"'):
        jaxem.LDA(3, eta="symmetric")
    with pytest.raises(ValueError, match='inference must be "map" or "bayes"'):
        jaxem.LDA(3, inference="vb")
    with pytest.raises(TypeError, match=r"LDA takes jaxem.Documents, got ndarray.*Documents\(x\)"):
        jaxem.fit(MAP, COUNTS, key=0)
    with pytest.raises(ValueError, match=r"vocabulary of 4 words, the topics one of 9"):
        MAP.posterior(POINT, jaxem.Documents([[(3, 1)]]))
    other = jaxem.Documents([[(3, 1)]])
    with pytest.raises(ValueError, match=r"data\[1\] has a vocabulary of 4 words, data\[0\] one"):
        jaxem.fit(MAP, jaxem.Batch([DOCUMENTS, other]), key=0)
    with pytest.raises(TypeError, match=r"data\[1\] is ndarray, others are Documents"):
        jaxem.fit(MAP, jaxem.Batch([DOCUMENTS, COUNTS]), key=0)
    with pytest.raises(TypeError, match="LDA has no gradient"):
        jaxem.fit(MAP, DOCUMENTS, key=0, gradient="unrolled", max_iter=2)

    def bound(alpha):
        options = {"init": POINT, "method": jaxem.OnlineEM(batch=6)}
        return jaxem.fit(jaxem.LDA(K, alpha=alpha), DOCUMENTS, **options).objective

    with pytest.raises(TypeError, match="gradient through a fit is not known"):
        jax.eval_shape(jax.grad(bound), 0.3)
    with pytest.raises(ValueError, match=r"init.topics must be 0 or more"):
        jaxem.fit(MAP, DOCUMENTS, init=jaxem.LDAParams(2 * TOPICS, ALPHA))


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(np.float32, marks=pytest.mark.slow), np.float64],
    ids=["float32", "float64"],
)
def test_a_batch_of_corpora_is_as_each_alone(dtype):
    """Corpora of other lengths and longest documents, of one vocabulary, with restarts too."""
    rng = np.random.default_rng(0)
    rates = ((12, 0.7), (9, 0.2), (30, 0.5))
    corpora = [jaxem.Documents(rng.poisson(r, (n, V)).astype(dtype)) for n, r in rates]
    assert len({c.words.shape[1] for c in corpora}) > 1
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 3), SPREAD)
    weights = [rng.uniform(0.5, 2, n) for n, _ in rates]
    fleet = jaxem.fit(BAYES, jaxem.Batch(corpora), init=stacked, weights=weights)
    assert fleet.converged.all() and fleet.objective.dtype == dtype
    alone = jaxem.fit(BAYES, corpora[1], init=SPREAD, weights=weights[1])
    tol = 1e-10 if dtype == np.float64 else 1e-4
    assert np.isclose(fleet.objective[1], alone.objective, rtol=tol)
    close(fleet[1].params.topics, alone.params.topics, 10 * tol)
    assert fleet[1].predict_proba(corpora[1]).shape == (9, K)
    if dtype == np.float32:
        several = jaxem.fit(BAYES, jaxem.Batch(corpora), key=0, restarts=3, weights=weights)
        every = np.asarray(several.restarts.objective)
        assert every.shape == (3, 3) and (several.objective == every.max(1)).all()


def test_what_topics_are_asked():
    topics, documents = planted()
    model = jaxem.LDA(K, alpha=0.3, eta=1.05)
    found = jaxem.fit(model, documents[:200], key=0, restarts=2)
    held_out = documents[200:]
    perplexity = jaxem.topics.perplexity(found, held_out)
    best = jaxem.topics.perplexity(dataclasses.replace(found, params=params_of(topics)), held_out)
    flat = np.full((K, 30), 1 / 30)
    none = jaxem.topics.perplexity(dataclasses.replace(found, params=params_of(flat)), held_out)
    assert abs(none - 30) < 1e-3 and abs(perplexity / best - 1) < 0.05 and best < 0.6 * none
    seen, unseen = jaxem.topics.completed(held_out)
    np.testing.assert_array_equal(seen.toarray() + unseen.toarray(), held_out.toarray())
    np.testing.assert_array_equal(seen.size, held_out.size // 2)

    words = [f"word {i}" for i in range(30)]
    top = jaxem.topics.top_words(found, 5, words)
    assert top[0][0] == words[int(np.argmax(found.params.topics[0]))]
    assert jaxem.topics.transform(found, held_out).shape == (100, K)
    with pytest.raises(ValueError, match="vocabulary has 2 words and the topics 30"):
        jaxem.topics.top_words(found, 5, ["a", "b"])
    with pytest.raises(ValueError, match="measure must be one of"):
        jaxem.topics.coherence(found, documents, measure="c_v")
    for measure in ("npmi", "umass"):
        good = jaxem.topics.coherence(found, documents, 5, measure)
        shuffled = np.random.default_rng(0).permutation(np.asarray(found.params.topics), axis=1)
        bad = dataclasses.replace(found, params=params_of(shuffled))
        assert (
            good.shape == (K,)
            and good.mean() > jaxem.topics.coherence(bad, documents, 5, measure).mean()
        )


def params_of(topics):
    return jaxem.LDAParams(topics, np.full(K, 0.3))


def test_coherence_by_hand():
    """Four documents over words a, b, c: a in 3, b in 2, a and b in 1, c in none."""
    documents = jaxem.Documents(np.array([[1, 0, 0], [2, 1, 0], [1, 0, 0], [0, 3, 0]]))
    found = jaxem.fit(jaxem.LDA(1), documents, key=0)
    result = dataclasses.replace(
        found, params=jaxem.LDAParams(np.array([[0.6, 0.3, 0.1]]), np.ones(1))
    )
    npmi = np.log((1 / 4) / (3 / 4 * 2 / 4)) / -np.log(1 / 4)
    np.testing.assert_allclose(jaxem.topics.coherence(result, documents, 2), npmi)
    np.testing.assert_allclose(jaxem.topics.coherence(result, documents, 3), (npmi - 2) / 3)
    umass = jaxem.topics.coherence(result, documents, 3, "umass")
    np.testing.assert_allclose(umass, np.log([2 / 3, 1 / 3, 1 / 2]).mean())


def test_a_large_corpus_goes_the_same_way(monkeypatch):
    """From CHUNKED numbers on a climb prepares its data and sweeps by `fused`."""
    rng = np.random.default_rng(0)
    documents = jaxem.Documents(rng.poisson(0.4, size=(40, 20)))
    small = jaxem.fit(jaxem.LDA(2), documents, key=0, tol=0, max_iter=5)
    monkeypatch.setattr(tuning, "CHUNKED", 1)
    jax.clear_caches()
    large = jaxem.fit(jaxem.LDA(2), documents, key=0, tol=0, max_iter=5)
    jax.clear_caches()
    np.testing.assert_allclose(large.objective, small.objective, rtol=1e-5)
