"""Compiled programs: screening, slices, and how hard to compile."""

import contextlib
import gc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.tree import is_traced, merge, split
from jaxem.passes.collect import CHUNKED
from jaxem.solver import host as slices
from jaxem.solver.axes import as_sets, best_of, canonical, typed
from jaxem.solver.host import is_long
from jaxem.solver.restarts import Restarts, continued, promising
from jaxem.solver.solve import (
    advance,
    begin,
    end,
    lane_plan,
    many,
    single,
    transformable,
)

CPU_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True}
TINY = 4096
"""Units × features² × components × restarts below which a step takes under 0.1 ms however built."""


@contextlib.contextmanager
def collector_paused():
    """Python's cyclic garbage collector off while a fit is traced and compiled, then as it was: one
    full collection walks over all of JAX and takes as long as compiling a small fit."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def search(model, method, numeric, x, weights, start, tol, most, *, spec, restarts, batched):
    """The best `Fit` and every restart's, screened first where `restarts` is `Restarts`."""
    static = {"spec": spec, "restarts": restarts, "batched": batched}
    if not isinstance(restarts, Restarts):
        return _climb(numeric, x, weights, start, tol, most, **static)
    screen = (jnp.minimum if is_traced(most) else min)(restarts.screen_iters, most)
    static["restarts"] = restarts.count
    every = _climb(numeric, x, weights, start, tol, screen, **static)[1]
    index, start = _promising(every, restarts.keep)
    numeric, structure = split((model, method, None))
    static["spec"] = spec._replace(structure=structure, given=True)
    static["restarts"] = restarts.keep
    later = _climb(numeric, x, weights, start, tol, most - screen, **static)[1]
    every = _continued(every, index, later)
    return _winner(every, batched), every


def _climb(numeric, x, weights, start, tol, max_iter, *, spec, restarts, batched):
    """The best `Fit` and every restart's, compiled with as much effort as it is worth.

    On a CPU the default fusion emitters double the compile time; a single fit of few units does not
    run faster for them (a batch does by a tenth, a fit of many units by up to two thirds), and a
    step below a tenth of a millisecond is not worth optimising at all (measured with jaxlib
    0.10.2). The options can only be set outside other transformations, and other versions may lack
    them.
    """
    args = (numeric, x, weights, start, tol, max_iter)
    static = {"spec": spec, "restarts": restarts, "batched": batched}
    if is_traced(args):
        return SOLVE["full"](*args, **static, transformed=True)
    leaf, *_ = leaves = jax.tree.leaves(x)
    sets = leaf.shape[0] if batched else 1
    n = leaf.shape[batched]
    features = sum(leaf.size for leaf in leaves) // (sets * n)
    k = merge(numeric, spec.structure)[0].domain.components
    cost = n * features**2 * k
    effort = "full"
    if not batched and jax.default_backend() == "cpu":
        effort = "tiny" if cost * restarts <= TINY else "less"
        effort = "full" if n * features * k >= CHUNKED else effort
    fits = sets * restarts
    if not is_long(cost * fits, max_iter):
        best, every = compiled(SOLVE, effort, *args, **static, transformed=False)
        return best, (jax.tree.map(_alone, best) if every is None else every)
    x = jax.tree.map(jnp.asarray, x)  # once, not for every slice
    problems, queue, ends = compiled(BEGIN, effort, *args[:1], x, *args[2:], **static)

    def on(queue, budget):
        return compiled(ADVANCE, effort, problems, x, queue, ends, budget, batched=batched)

    sets = jax.eval_shape(lambda x: problems.on(as_sets(x, batched)).data, x)
    width, steps = lane_plan(spec, problems.climbed, sets, fits)
    watched = ("fits", fits) if fits > 1 else ("steps", int(max_iter))
    queue = slices.run(on, queue, cost * (width * steps if fits > 1 else 1), *watched)
    return compiled(END, effort, problems, x, queue, batched=batched)


def _solve(numeric, x, weights, start, tol, max_iter, *, spec, restarts, batched, transformed):
    """A whole run: the best `Fit` and every restart's, None where a single one needs no axis."""
    if not (batched or transformed) and restarts == 1:
        first = jax.tree.map(lambda a: a[0], start) if spec.given else typed(start)
        return single(spec, numeric, x, weights, first, tol, max_iter), None
    options = {"spec": spec, "restarts": restarts, "batched": batched}
    problems = canonical(numeric, x, weights, start, tol, max_iter, **options)
    every = (transformable(spec) if transformed else partial(many, spec))(*problems)
    every = every if batched else jax.tree.map(lambda a: a[0], every)
    return best_of(every, batched), every


def _begin(*args, spec, **options):
    """The first part of a long run: what `solve.begin` returns."""
    return begin(spec, *canonical(*args, spec=spec, **options))


def _advance(problems, x, queue, ends, budget, *, batched):
    """The next slice of a long run."""
    return advance(problems.on(as_sets(x, batched)), queue, ends, budget)


def _end(problems, x, queue, *, batched):
    """The last part of a long run: the best `Fit` and every restart's."""
    every = end(problems.on(as_sets(x, batched)), queue)
    every = every if batched else jax.tree.map(lambda a: a[0], every)
    return best_of(every, batched), every


_winner = jax.jit(best_of, static_argnums=1)
_promising = jax.jit(promising, static_argnums=1)
_continued = jax.jit(continued)


def efforts(function, *static):
    """The program of `function` for every effort of the compiler."""
    tiny = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
    options = {"full": None, "less": CPU_OPTIONS, "tiny": CPU_OPTIONS | tiny}
    return {
        effort: jax.jit(function, static_argnames=static, compiler_options=chosen)
        for effort, chosen in options.items()
    }


SOLVE = efforts(_solve, "spec", "restarts", "batched", "transformed")
BEGIN = efforts(_begin, "spec", "restarts", "batched")
ADVANCE = efforts(_advance, "batched")
END = efforts(_end, "batched")


def compiled(programs, effort, *args, **static):
    """A program's answer, with the full effort where the compiler does not know the options."""
    try:
        with collector_paused():
            return programs[effort](*args, **static)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if effort == "full" or "compile" not in str(error):
            raise
        return programs["full"](*args, **static)


def _alone(leaf):
    """A leaf with a leading axis of one, on the host where it is known: that compiles nothing."""
    return leaf[None] if is_traced(leaf) else np.asarray(leaf)[None]
