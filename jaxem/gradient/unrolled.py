"""A fit of a fixed number of steps, which reverse differentiation can differentiate."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxem.gradient.tangents import guarded
from jaxem.numerics.tree import merge, select
from jaxem.protocol.status import Status
from jaxem.solver import loop
from jaxem.solver.axes import best_of, canonical
from jaxem.solver.problem import Problem, finish
from jaxem.solver.solve import lane_plan, over


@partial(jax.jit, static_argnames=("plan", "max_iter"))
def unrolled(numeric, x, weights, start, tol, *, plan, max_iter):
    """The result of `gradient.rules.Unrolled.fit`: exactly `max_iter` steps from every start.

    Reverse differentiation stores the params of every step and computes the step again, so memory
    grows by one tree of params a step. Statuses are those of any fit, but only the last step can
    converge. A fit that fails does not change any more, and its gradient is NaN.
    """
    restarts, batched = plan.restarts, plan.batched
    data, starts, (tol, _) = canonical(numeric, x, weights, start, tol, max_iter, plan=plan)
    width, _ = lane_plan(plan, merge(data[0], plan.structure)[0], data[1], tol.size)

    def climbs(args):
        data, starts, tol = args
        problem = Problem.of(plan, *data, absent=True)
        climb = partial(_climb, plan, problem, max_iter)
        return over(lambda args: climb(*args), (starts, tol), max(1, width // restarts))

    every = over(climbs, (data, starts, tol), max(1, width // restarts))
    every = every if batched else jax.tree.map(lambda a: a[0], every)
    best = best_of(every, batched)
    return best, every, _is_usable(best.status)


def _climb(plan, problem, max_iter, start, tol):
    """One `Fit` of `max_iter` steps."""
    limits = (tol * problem.total, max_iter, plan.stopping)

    @jax.checkpoint
    def step(state):
        updated = loop.step(state, problem.evaluate(state), *limits)
        is_early = (updated.status == Status.CONVERGED) & (updated.n_iter < max_iter)
        status = jnp.where(is_early, Status.RUNNING, updated.status).astype(jnp.int32)
        updated = replace(updated, status=status, memory=stop_gradient(updated.memory))
        return select(state.status == Status.RUNNING, updated, state), None

    state = problem.initial_state(start)
    state, _ = jax.lax.scan(lambda state, _: step(state), state, length=max_iter + 1)
    fit = finish(problem, state)
    ok = _is_usable(fit.status)
    return jax.tree.map(lambda leaf: guarded(ok, leaf), fit)


def _is_usable(status):
    return (status == Status.CONVERGED) | (status == Status.MAX_ITER)
