"""Uses of what jaxem does not make public, in one place, and the listener for compilations."""

import contextlib
import importlib

import jax.monitoring

import jaxem
from jaxem.analysis import padded_mixtures as padded
from jaxem.analysis.free_energy import ascent, decompose
from jaxem.analysis.plot.ellipses import ellipses
from jaxem.data import arrays
from jaxem.data.arrays import as_data
from jaxem.data.batch import as_blocks, padded_length
from jaxem.data.precision import lost_columns
from jaxem.estimators.kmeans import Centres, Clusters
from jaxem.families.degrees_of_freedom import information, tail_slope
from jaxem.families.gamma import solve_shape
from jaxem.families.normal.products import packed, pairs, products, unpacked
from jaxem.families.normal.structures import STRUCTURES
from jaxem.gradient.krylov import krylov
from jaxem.methods.acceleration import Chart
from jaxem.methods.e_steps import parted, sampled
from jaxem.methods.suited import suited
from jaxem.models.hmm import durations
from jaxem.models.hmm.stationary import stationary
from jaxem.models.lda import blocks as lda_blocks
from jaxem.models.lda import classes as lda_classes
from jaxem.models.lda import concentration
from jaxem.models.lda import lda as lda_model
from jaxem.models.lda import posterior as lda_posterior
from jaxem.models.lda import stationary as lda_stationary
from jaxem.models.lda.lda import DocumentsDomain
from jaxem.numerics import chain_forms, chains, segments, special, tuning
from jaxem.numerics.assignment import assigned
from jaxem.numerics.linalg import Factor, floored, is_floored, triangular_inverse
from jaxem.numerics.softmax import normalize
from jaxem.numerics.special import exp_digamma
from jaxem.numerics.tree import float_dtype, merge, pytree, split
from jaxem.passes.chunks import in_chunks, row_sum
from jaxem.passes.collect import TRUSTED, collect, prepared
from jaxem.protocol import capabilities, domains
from jaxem.protocol.capabilities import SmoothMap, has, names
from jaxem.protocol.domains import whole
from jaxem.protocol.posterior import expectation, responsibilities_of
from jaxem.protocol.spaces import POSITIVE, REAL, SIMPLEX
from jaxem.protocol.status import Status
from jaxem.protocol.units import inward, outward, standardized
from jaxem.results.optima import Optimum, optima
from jaxem.solver import host as slices
from jaxem.solver import lanes, loop, threads
from jaxem.solver.problem import Plan
from jaxem.solver.solve import single
from jaxem.solver.stopping import Aitken
from jaxem.wrappers.adopt import adopt
from jaxem.wrappers.factored import Factored
from jaxem.wrappers.restricted import coordinates

__all__ = [
    "CLIMBS",
    "POSITIVE",
    "REAL",
    "SIMPLEX",
    "STRUCTURES",
    "TRUSTED",
    "Aitken",
    "Centres",
    "Chart",
    "Clusters",
    "DocumentsDomain",
    "Factor",
    "Factored",
    "Optimum",
    "Plan",
    "SmoothMap",
    "Status",
    "adopt",
    "arrays",
    "as_blocks",
    "as_data",
    "ascent",
    "assigned",
    "capabilities",
    "chain_forms",
    "chains",
    "collect",
    "compilations",
    "concentration",
    "coordinates",
    "decompose",
    "domains",
    "durations",
    "ellipses",
    "evaluate",
    "exp_digamma",
    "expectation",
    "float_dtype",
    "floored",
    "has",
    "in_chunks",
    "information",
    "inward",
    "is_floored",
    "krylov",
    "lanes",
    "lda_blocks",
    "lda_classes",
    "lda_model",
    "lda_posterior",
    "lda_stationary",
    "loop",
    "lost_columns",
    "merge",
    "names",
    "normalize",
    "optima",
    "outward",
    "packed",
    "padded",
    "padded_length",
    "pairs",
    "parted",
    "prepared",
    "products",
    "pytree",
    "responsibilities_of",
    "row_sum",
    "sampled",
    "segments",
    "select_module",
    "single",
    "slices",
    "solve_shape",
    "special",
    "split",
    "standardized",
    "stationary",
    "suited",
    "tail_slope",
    "threads",
    "triangular_inverse",
    "tuning",
    "unpacked",
    "whole",
]


select_module = importlib.import_module("jaxem.analysis.select")
"""The module, which the function of its name hides."""

CLIMBS = "jit(_solve)"
"""The program that climbs, as JAX's events name it."""


def evaluate(model, params, data, weights):
    """One evaluation by exact EM: the objective at params and the proposal of the M-step."""
    return jaxem.EM().evaluate(model, params, data, weights)


_compiled = []


@jax.monitoring.register_event_duration_secs_listener
def _listen(event, duration, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(fun_name)


@contextlib.contextmanager
def compilations():
    """The names of the programs that are compiled, or loaded from JAX's cache, in the block."""
    seen, before = [], len(_compiled)
    yield seen
    seen.extend(_compiled[before:])
