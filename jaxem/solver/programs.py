"""Compiled programs: screening of restarts, slices of long climbs, and compiler options."""

import contextlib
import contextvars
import re
import threading
from dataclasses import replace
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics import rows, tuning
from jaxem.numerics.tree import in_jit, is_traced, merge, split
from jaxem.protocol.status import HANDED_OVER
from jaxem.solver import devices, host, parts, recording, threads
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
    watch,
)


def search(numeric, x, weights, start, tol, max_iter, *, plan):
    """The best `Fit` and the fits of all restarts, screened first where `plan.restarts` is
    `Restarts`.

    The fits have a leading axis of restarts; in a batch an axis of data sets precedes it.
    """
    restarts = plan.restarts
    if not isinstance(restarts, Restarts):
        return _climb(numeric, x, weights, start, tol, max_iter, plan=plan)
    screen = (jnp.minimum if is_traced(max_iter) else min)(restarts.screen_iters, max_iter)
    first = plan._replace(restarts=restarts.count)
    every = _climb(numeric, x, weights, start, tol, screen, plan=first)[1]
    index, start = _promising(every, restarts.keep)
    if recording.current() is not None:
        recording.current().index = np.asarray(index)
    model, method, _ = merge(numeric, plan.structure)
    numeric, structure = split((model, method, None))
    second = plan._replace(structure=structure, given=True, restarts=restarts.keep)
    continued_fits = _climb(numeric, x, weights, start, tol, max_iter - screen, plan=second)[1]
    every = _continued(every, index, continued_fits)
    return _winner(every, plan.batched), every


@contextlib.contextmanager
def run_once():
    """A context for programs that run once: they are compiled faster, with less optimisation."""
    token = _runs_once.set(True)
    try:
        yield
    finally:
        _runs_once.reset(token)


_runs_once = contextvars.ContextVar("runs_once", default=False)


def _unoptimised_work() -> int:
    """The most work, in units × features² × components × restarts, of unoptimised programs."""
    return tuning.ONCE_WORK if _runs_once.get() else tuning.TINY_WORK


def fleet_effort(seconds: float) -> str:
    """The compiler options of many fits that take so many seconds, by estimate."""
    is_small = tuning.platform() == "cpu" and seconds < tuning.SMALL_FLEET
    return "fleet" if is_small else "full"


def _climb(numeric, x, weights, start, tol, max_iter, *, plan):
    """The best `Fit` and the fits of all restarts, with compiler options by the size of the
    problem.

    On a CPU the default fusion emitters double the compile time. They do not make a single fit of
    few units faster; they make a batch faster by up to four times, and a fit of many units by up to
    two thirds. A step below a tenth of a millisecond needs no optimisation at all (measured with
    jaxlib 0.10.2). The options can only be set outside other transformations.
    """
    args = (numeric, x, weights, start, tol, max_iter)
    if is_traced(args) or in_jit():
        return SOLVE("full", *args, plan=plan._replace(entropy=True), transformed=True)
    leaf, *_ = leaves = jax.tree.leaves(x)
    sets = leaf.shape[0] if plan.batched else 1
    n = leaf.shape[plan.batched]
    model, method, rule = merge(numeric, plan.structure)
    k, n_rows = model.domain.components, int(n * model.domain.rows(x))
    features = sum(leaf.size for leaf in leaves) // (sets * n_rows)
    cost, fits = n_rows * features**2 * k, sets * plan.restarts
    effort = "full"
    if not plan.batched and tuning.platform() == "cpu":
        effort = "tiny" if cost * plan.restarts <= _unoptimised_work() else "less"
        effort = "full" if n_rows * features * k >= tuning.CHUNKED else effort
    seconds = min(max_iter, tuning.USUAL_STEPS) * tuning.step_seconds(cost * fits)
    if plan.batched:
        effort = fleet_effort(seconds)
    if not plan.batched:
        if plan.restarts == 1 and (rule is None or rule.random):
            x, weights = devices.with_sharded_units(args, n_rows * features * k)
            args = (numeric, x, weights, start, tol, max_iter)
            plan = plan._replace(clean=plan.clean and weights is None)
        plan = plan._replace(shards=devices.shards(x))
    size = sets if plan.batched else plan.restarts
    spread = devices.spread(args, plan.batched, size, seconds)
    if recording.current() is not None:
        spread, seconds, plan = None, 0, recording.one_step_a_slice(plan)
    count = parts.number_of_parts(size, seconds)
    if count > 1 and not (parts.are_ours(model, method, rule) and devices.on_default_device(args)):
        count = 1
    unit, total = (host.FITS, fits) if fits > 1 else (host.STEPS, int(max_iter))
    with host.bar(total, unit, is_long(cost * fits, plan.stopping.most(max_iter))) as bar:
        climb = partial(_climb_part, effort, cost, bar)
        if spread is not None:
            return _climb_on_devices(climb, spread, size, *args, plan=plan)
        if count == 1:
            return climb(*args, plan=plan)
        return _climb_in_parts(climb, count, size, *args, plan=plan)


def _climb_in_parts(climb, count, size, numeric, x, weights, start, *limits, plan):
    """`climb` in `count` parts of the data sets, or else of the restarts, each in a thread. size:
    the number of these."""
    if plan.given:
        starts = parts.cut(start, count)
    else:
        starts = [(start[0], index) for index in parts.cut(start[1], count)]
    if plan.batched:
        data = parts.cut((x, weights), count)
    else:
        data = [(jax.tree.map(jnp.asarray, x), weights)] * count
        plan = plan._replace(restarts=parts.size_of_part(size, count))

    def climb_part(part):
        (x, weights), start = part
        fits = climb(numeric, x, weights, start, *limits, plan=plan)
        threads.until_ready(fits)
        return fits

    found = threads.in_threads(climb_part, list(zip(data, starts, strict=True)))
    every = parts.joined([every for _, every in found], size)
    if not plan.batched:
        return _winner(every, False), every
    return parts.joined([best for best, _ in found], size), every


def _climb_on_devices(climb, spread, size, numeric, x, weights, start, *limits, plan):
    """`climb` with its data sets, or else its restarts, spread over devices. size: their number.

    The fits of sharded data sets stay on their devices, unless these are of several processes.
    """
    stays = plan.batched and devices.shards(x) is not None
    x, weights = spread.placed((x, weights), plan.batched)
    key, numbers = (None, start) if plan.given else start
    numbers = spread.placed(numbers, True)
    start = numbers if plan.given else (key, numbers)
    if not plan.batched:
        plan = plan._replace(restarts=len(jax.tree.leaves(start)[-1]))
    best, every = devices.fetched(
        climb(numeric, x, weights, start, *limits, plan=plan._replace(spread=spread))
    )
    if stays:
        return best, every
    every = parts.joined([every], size)
    return (parts.joined([best], size) if plan.batched else _winner(every, False)), every


def _climb_part(effort, cost, bar, numeric, x, weights, start, tol, max_iter, *, plan):
    """`_climb` in this thread. cost: of a step of one fit, in units × features² × components."""
    args = (numeric, x, weights, start, tol, max_iter)
    batched, restarts = plan.batched, plan.restarts
    fits = restarts * (jax.tree.leaves(x)[0].shape[0] if batched else 1)
    steps = plan.stopping.most(max_iter)
    recorder = recording.current()
    if recorder is None and not is_long(cost * fits, steps):
        if fits == 1 and not batched and plan.stopping.accelerates:
            return _climb_single(effort, *args, plan=plan)
        best, every = SOLVE(effort, *args, plan=plan, transformed=False)
        if is_long(cost * fits, steps, tuning.WAIT_SECONDS):
            threads.until_ready(best.status)
        return best, (jax.tree.map(_alone, best) if every is None else every)
    x = jax.tree.map(jnp.asarray, x)  # once, not for every slice
    form = {"batched": batched, "spread": plan.spread}
    problems, queue, ends = BEGIN(effort, numeric, x, *args[2:], plan=plan)

    def advance_slice(queue, budget):
        return ADVANCE(effort, problems, x, queue, ends, budget, **form)

    sets = jax.eval_shape(lambda x: problems.on(as_sets(x, batched)).data, x)
    width, steps = lane_plan(plan, problems.climbed, sets, fits)
    work = cost * (width * steps if fits > 1 else 1)
    record = None
    if recorder is not None:
        recorder.begin()

        def record(before, queue):
            recorder.add(WATCH(effort, problems, x, before, queue, batched=batched))

    def objective(queue):
        return float(END(effort, problems, x, queue, **form)[0].objective)

    objective = None if batched or plan.spread is not None else objective
    queue = host.run_in_slices(advance_slice, queue, work, bar, record, objective)
    best, every = END(effort, problems, x, queue, **form)
    threads.until_ready(best.status)
    return best, every


def _climb_single(effort, numeric, x, weights, start, tol, max_iter, *, plan):
    """A single climb that is accelerated where it is slow. The accelerated part is a program of its
    own, which is compiled only where it is needed."""
    model, method, rule = merge(numeric, plan.structure)
    plain, structure = split((model, method.without_later(), rule))
    first = replace(plan.stopping, hands_over=True)
    first = plan._replace(structure=structure, stopping=first)
    best, _ = SOLVE(effort, plain, x, weights, start, tol, max_iter, plan=first, transformed=False)
    threads.until_ready(best.status)
    if int(best.status) == HANDED_OVER:
        numeric, structure = split((model, method.later, None))
        later = replace(plan.stopping, patience=0)
        plan = plan._replace(structure=structure, given=True, stopping=later)
        start = jax.tree.map(_alone, best.params)
        left = type(max_iter)(max_iter - int(best.n_iter))
        args = (numeric, x, weights, start, tol, left)
        rest, _ = SOLVE(effort, *args, plan=plan, transformed=False)
        best = replace(rest, n_iter=rest.n_iter + best.n_iter)
    return best, jax.tree.map(_alone, best)


def _solve(numeric, x, weights, start, tol, max_iter, *, plan, transformed):
    """A whole climb: the best `Fit` and the fits of all restarts, None for a single fit, whose axis
    of restarts is added outside the program."""
    with rows.sharded(plan.shards):
        return _solve_here(numeric, x, weights, start, tol, max_iter, plan, transformed)


def _solve_here(numeric, x, weights, start, tol, max_iter, plan, transformed):
    if not (plan.batched or transformed) and plan.restarts == 1:
        first = jax.tree.map(lambda a: a[0], start) if plan.given else typed(start[0])
        return single(plan, numeric, x, weights, first, tol, max_iter), None
    problems = canonical(numeric, x, weights, start, tol, max_iter, plan=plan)
    every = (transformable(plan) if transformed else partial(many, plan))(*problems)
    return _best(every, plan.batched)


def _begin(*args, plan):
    """The first part of a long climb: `solve.begin`."""
    with rows.sharded(plan.shards):
        return begin(plan, *canonical(*args, plan=plan))


def _advance(problems, x, queue, ends, budget, *, batched, spread):
    """The next slice of a long climb."""
    with rows.sharded(problems.plan.shards):
        return advance(problems.on(as_sets(x, batched)), queue, ends, budget, spread)


def _watch(problems, x, before, queue, *, batched):
    """What is recorded of a slice of one step."""
    with rows.sharded(problems.plan.shards):
        return watch(problems.on(as_sets(x, batched)), before, queue)


def _end(problems, x, queue, *, batched, spread):
    """The last part of a long climb: the best `Fit` and the fits of all restarts."""
    with rows.sharded(problems.plan.shards):
        return _best(end(problems.on(as_sets(x, batched)), queue, spread), batched)


def _best(every, batched):
    """The best `Fit` and the fits of all restarts, without the axis of data sets of a single
    set."""
    every = every if batched else jax.tree.map(lambda a: a[0], every)
    return best_of(every, batched), every


_winner = jax.jit(best_of, static_argnums=1)
_promising = jax.jit(promising, static_argnums=1)
_continued = jax.jit(continued)


class Program:
    """A function that is compiled with one of the sets of compiler options in `EFFORTS`.

    Options that this version of XLA does not know are left out, from the first refusal on for the
    whole process.
    """

    refused: ClassVar[set[str]] = set()

    def __init__(self, function, *static: str):
        self.function, self.static = function, static
        self.jitted, self.signatures, self.locks = {}, set(), {}

    def __call__(self, effort: str, *args, **static):
        while True:
            try:
                jitted = self.compiled(effort)
                with tuning.full_products():
                    self._compile(jitted, args, static)
                    return jitted(*args, **static)
            except jax.errors.JaxRuntimeError as error:
                unknown = re.search(r"No such compile option: '(\w+)'", str(error))
                if unknown is None or unknown[1] in self.refused:
                    raise
                self.refused.add(unknown[1])

    def _compile(self, jitted, args, static) -> None:
        """Compiles the program for these arguments, so that an interrupt does not abandon it: the
        call of `jitted` finds it in JAX's cache."""
        leaves, structure = jax.tree.flatten(args)
        kinds = tuple((np.shape(a), getattr(a, "dtype", type(a))) for a in leaves)
        options = tuple(static.items()), jax.config.jax_enable_x64
        signature = hash((jitted, structure, kinds, options))  # keeps no model alive
        if signature in self.signatures:
            return
        threads.check()
        if is_traced(leaves) or jax.config.jax_disable_jit:
            return
        if threads.can_abandon():
            threads.not_abandoned(jitted.lower(*args, **static).compile)
            self.signatures.add(signature)
        elif threads.is_inside():  # the threads of a call share its programs
            with self.locks.setdefault(signature, threading.Lock()):
                if signature not in self.signatures:
                    jitted.lower(*args, **static).compile()
                    self.signatures.add(signature)

    def compiled(self, effort: str):
        """The jitted function for one of `EFFORTS`."""
        key = effort, len(self.refused)
        if key not in self.jitted:
            options = {k: v for k, v in EFFORTS[effort].items() if k not in self.refused}
            jitted = jax.jit(
                self.function, static_argnames=self.static, compiler_options=options or None
            )
            self.jitted[key] = jitted
        return self.jitted[key]


EFFORTS = {
    "full": {},
    "fleet": tuning.FLEET_OPTIONS,
    "less": tuning.QUICK_OPTIONS,
    "tiny": tuning.QUICK_OPTIONS | tuning.TINY_OPTIONS,
}
SOLVE = Program(_solve, "plan", "transformed")
BEGIN = Program(_begin, "plan")
ADVANCE = Program(_advance, "batched", "spread")
WATCH = Program(_watch, "batched")
END = Program(_end, "batched", "spread")


def _alone(leaf):
    """A leaf with a leading axis of one; by NumPy where it is concrete, which compiles nothing."""
    return leaf[None] if is_traced(leaf) else np.asarray(leaf)[None]
