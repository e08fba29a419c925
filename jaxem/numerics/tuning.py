"""Constants that were measured on a machine: sizes of chunks, widths of batches, thresholds.

They change results by rounding errors only. They were measured on two cores of a CPU unless another
machine is named; accelerators have their own values where these are known. `platform` is the
platform on which programs run.
"""

import contextlib
import contextvars
from typing import NamedTuple

import jax
import jaxlib.version

_platform = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform that programs are compiled for: "cpu", "gpu" or "tpu".

    That of `on_platform`, else of the mesh of this thread or trace, of `jax.default_device`, or the
    default backend.
    """
    placed = _platform.get()
    if placed is not None:
        return placed
    device = jax.sharding.get_abstract_mesh().abstract_device
    device = jax.config.jax_default_device if device is None else device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def platform_of(tree) -> str:
    """The platform of the first array of a tree that was put on a device, else `platform()`."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.committed:
            return next(iter(leaf.sharding.device_set)).platform
    return platform()


@contextlib.contextmanager
def on_platform(name: str):
    """A context in which `platform()` is `name`."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)


def full_products():
    """A context in which every product of matrices has the precision of its numbers, a user's `@`
    included. By default accelerators round them to 8 or 11 bits."""
    return jax.default_matmul_precision("highest")


# Passes over the data

CHUNKED = 2**20
"""Units × features × components from which a pass is cut into chunks."""

CACHED = 2**17
"""Numbers of a (k, d, rows) block of centred rows that stays in cache (4 lanes,
n = 20,000, d = k = 8: 1.0 ms a lane against 1.8 to 2.7)."""

ACCELERATOR_NUMBERS = 2**27
"""Numbers of the largest array of a chunk on an accelerator: half a gigabyte in float32. A chunk
is a few dozen kernels there, so that few large ones are fast (compiled for an H200, n = 1e6,
d = 32, k = 64, full: a step of 126,598 launches with the chunks of a CPU)."""

GPU_NUMBERS = 2**29
"""The same on a GPU for passes on centred rows, of more kernels a chunk (the same fit: with 2**27
numbers a step of at most 725 launches and 1.6 GB of memory, with 2**28 476 and 2.7 GB, with 2**29
371 and 6.4 GB)."""


def chunk_numbers() -> int:
    """Numbers of the largest array of a chunk of centred rows."""
    return {"cpu": CACHED, "gpu": GPU_NUMBERS}.get(platform(), ACCELERATOR_NUMBERS)


LEAST_CHUNK_ROWS = 256
"""Rows of the smallest chunk."""

CHUNK_MULTIPLE, LARGE_MULTIPLE, LARGE_ROWS = 64, 4096, 2**15
"""Rows of a chunk are a multiple of the first, for vector instructions; the last chunk repeats
rows. Of an accelerator's chunks of LARGE_ROWS rows or more they are a multiple of the second: XLA
divides a product over many rows among a power of two of blocks, and pads its operands, which it
copies (H200, n = 1e6, d = 32, k = 64, full: 1 of 7.3 ms a step)."""


def chunk_multiple(rows: int) -> int:
    """What the rows of a chunk are a multiple of."""
    is_large = platform() != "cpu" and rows >= LARGE_ROWS
    return LARGE_MULTIPLE if is_large else CHUNK_MULTIPLE


SUM_BLOCK = 1024
"""The size of a block of `row_sum`, approximately."""

PARALLEL_CHUNKS = 2
"""The number of chunks that are computed at once on a CPU. XLA runs independent operations in two
threads; with one chunk, two cores are busy for half of the time (a pass in float32 over
131,072 × 16, k = 16, full: 13.3 to 10.4 ms; 524,288 × 16, k = 32, diagonal: 37 to 28 ms; with four
at once 11.4 and 32)."""

SEVERAL_CHUNKS = 8
"""Up to this many chunks are computed one after another, since two at once take longer to compile,
by a quarter or more. Exactly two chunks are computed at once: that needs no loop (10,000 × 16,
k = 32, diagonal: 1.4 to 1.1 ms)."""

COPIED_BYTES, ACCELERATOR_COPIED_BYTES = 2**26, 2**30
"""Bytes up to which data are copied, on a CPU and on an accelerator; larger data are standardised
chunk by chunk in every pass."""


def copied_bytes() -> int:
    """Bytes up to which data are copied."""
    return COPIED_BYTES if platform() == "cpu" else ACCELERATOR_COPIED_BYTES


SPARE_FEATURES = 2
"""Features are stored in place of the columns of data if they are at most this many more."""

PRODUCT_NUMBERS = 3 * 2**18
"""Numbers of a chunk for matrix products: features, joint and responsibilities. Twice as many do
not fit the cache (one core, d = k = 16, full, float64: 40 ms against 47)."""

LEAST_PRODUCT_ROWS, MOST_PRODUCT_ROWS = 256, 10240
"""Rows of such a chunk: products of fewer rows are slow, and more do not fit the cache (one core,
16,384 × 64, full, float64: 256 rows 55 ms, 512 rows 74 ms, 1,024 rows 88 ms; two cores, 200,000 ×
8, k = 8, spherical, float32: 6,144 rows 2.8 ms, 8,192 rows 2.6, 10,240 and 12,288 rows 2.2)."""

SURVEY_ROWS = 2**15
"""Rows of a chunk from which location and scale are computed, for data too large for a copy."""

CHECKED_NUMBERS = 2**20
"""Numbers that are checked at a time: a check makes several arrays of their size (1e6 × 16: 4.9 ms;
with 2**16 numbers 8.5, all at once 16)."""

EXPLAINED_UNITS = 2**16
"""Units, roughly, of which an explanation looks for collinear columns."""

SAMPLED_UNITS = 1024
"""Units from which the offset and the spread of host data are estimated."""

FRAME_UNITS = 64
"""Units whose quartiles are the units of the arithmetic. XLA sorts slowly (1,024 data sets of 2
features: 200 units of each 38 ms, 50 units 7 ms)."""

# Small linear algebra and sums

UNROLLED_FEATURES, ACCELERATOR_UNROLLED, DIFFERENTIATED_UNROLLED = 4, 8, 2
"""The most features whose Cholesky factor is unrolled into elementwise code: on a CPU, on an
accelerator, and where it is differentiated. Unrolled code takes long to compile (seconds to the
first answer and milliseconds of a warm call, unrolled and in loops: 50,000 × 8, k = 8 9.0 and 60,
4.4 and 55; 512 fits of 200 × 6 6.1 and 124, 4.5 and 125; 2,048 fits of 60 × 6 6.0 and 213, 4.3 and
259; the gradient of 500 × 4 13.1 and 7.8, 9.9 and 4.7, of 500 × 8 17.9 and 3.4, 6.8 and 1.2)."""

_is_differentiated = contextvars.ContextVar("is_differentiated", default=False)


def unrolled_features() -> int:
    """The most features whose Cholesky factor is unrolled into elementwise code."""
    if platform() != "cpu":
        return ACCELERATOR_UNROLLED
    return DIFFERENTIATED_UNROLLED if _is_differentiated.get() else UNROLLED_FEATURES


@contextlib.contextmanager
def differentiated():
    """A context in which `unrolled_features` is that of code to be differentiated."""
    token = _is_differentiated.set(True)
    try:
        yield
    finally:
        _is_differentiated.reset(token)


ELIMINATED_FEATURES, ELIMINATED_ROWS = 16, 8
"""Up to this many features a Cholesky factorisation eliminates all rows column by column; it takes
larger matrices in blocks of ELIMINATED_ROWS (64 matrices of 32 features: blocks of 8 rows 0.40 ms,
of 16 rows 0.71; 128 fits of 500 × 10, k = 3: one block 136 ms, blocks of 8 rows 205)."""

FEW_TERMS, MANY_SUMS = 16, 1024
"""A sum of at most FEW_TERMS terms is written as additions where there are at least MANY_SUMS sums.
On a CPU XLA hands a plain sum to a library whose threads wait for one another. The additions took a
pass over 1e6 × 12 units in float32, k = 8, from 23 to 20 ms for diagonal normals and from 28 to
22 ms for 4 levels; k = 16 made no difference, and k = 32 was a tenth slower."""

STACKED_FEATURES = 4
"""Up to this many features full moments are one product with stacked rows: products of small
matrices are slow (in lanes, d = 2: 2.3 µs against 5.6)."""

WIDEST_PRODUCTS = 96
"""Features up to which full covariances use products of all pairs of features (n = 65,536, k = 16,
float32: d = 32 32 ms against 200 on centred rows, d = 40 45 and 113, d = 64 130 and 210)."""

# Many fits at once, and compiling

PREDICTED = 2**20
"""The most numbers, of data and params, for which a batch of fits is asked at once: it bounds the
memory of the answers' temporaries."""

LONG_STEP = 2**15
"""Numbers in a fit's largest array from which a step takes longer than a check of the lanes."""


class LaneSizes(NamedTuple):
    """How many fits run at once. least, most: the number of lanes. bytes: of the widest array of
    all lanes. fits: there is one lane for so many fits, so that few lanes are empty while the
    slowest fits end; but at least `few` lanes."""

    least: int
    most: int
    bytes: int
    fits: int
    few: int


CPU_LANES = LaneSizes(4, 64, 2**19, 32, 16)
"""The bytes are about half of a core's level-2 cache (1,024 fits of 500 × 2, k = 3: 16 lanes 0.42
ms a fit, 64 lanes 0.55, 256 lanes 1.26; 1,024 fits of 200 × 2, k = 2, on two cores: 16 lanes 132
ms, 32 lanes 152, 64 lanes 212; 256 fits of 2,000 × 4, k = 3: 5 lanes 464 ms, 8 lanes 527, 16 lanes
1,172)."""

GPU_LANES = LaneSizes(4, 8192, 2**27, 4, 64)
"""An H200, 4,096 fits of 500 × 2, k = 3: 256 lanes 233 ms, 512 172, 1,024 155, 2,048 184, 4,096
275; with criterion="change" 78, 61, 52, 64 and 77 ms. A step takes 40 µs and 24 ns a lane; by that,
65,536 fits take less time in 8,192 lanes than in 4,096. Compiled for it, 4,096 fits of 20,000 × 8,
k = 8: with 2**30 bytes 8.1 GB of scratch memory, with 4,096 lanes 51 GB."""

TPU_LANES = LaneSizes(4, 4096, 2**28, 32, 64)
"""An estimate, not measured. Compiled for a TPU v5e, 4,096 fits of 500 × 2, k = 3: 8 MB of scratch
memory with 128 lanes, 193 with 256."""

NARROWER = 8
"""By how much the lanes for the last fits are fewer on an accelerator. Simulated from measured step
counts (1,024, 4,096, 16,384 and 65,536 fits of 200 × 2, k = 2: 80 steps in the mean, 1,521 at
most): all lanes take 1.23 to 1.30 times the useful steps, without this 1.49 to 2.13 times; fits of
500 × 2, k = 3: 1.15 to 1.18 times, without this 1.31 to 1.63 times."""


def lane_sizes() -> LaneSizes:
    return {"cpu": CPU_LANES, "gpu": GPU_LANES}.get(platform(), TPU_LANES)


INTERVAL = 4
"""EM steps between two checks for finished lanes, where a step takes less time than a check."""

ACCELERATOR_INTERVAL = 8
"""The same on accelerators (an H200: a step of 1,024 lanes 45 µs, a check about 60 µs)."""

CONSTANT_UNITS = 4096
"""Units up to which weights of 1 are constants of a program. XLA folds constants, which takes
seconds of compile time for many."""

QUICK_OPTIONS = {"xla_llvm_disable_expensive_passes": True}
"""Compiler options of a single fit of few units on a CPU."""

FLEET_OPTIONS, SMALL_FLEET = {}, 0.1
"""Those of a batch that takes fewer seconds than that by estimate (512 × 200 × 2: 8.1 to 5.6 CPU
seconds for the first call, no slower when warm; some larger ones become slower)."""

if jaxlib.version.__version_info__ < (0, 11):
    for options in (QUICK_OPTIONS, FLEET_OPTIONS):
        options["xla_cpu_use_fusion_emitters"] = False
    """The fusion emitters double the compile time (jaxlib 0.10.2); from jaxlib 0.11 on there is no
    such option."""

TINY_WORK = 4096
"""Units × features² × components × restarts below which a step takes less than 0.1 ms with any
compiler options."""

ONCE_WORK = 2**21
"""The same for a program that runs once (14 structures of 145 × 3: 35 to 20 s)."""

TINY_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
"""Further options for such steps."""

SLICE_SECONDS = 0.3
"""The intended seconds of a slice. What was begun when an interrupt came runs on for that long."""

WAIT_SECONDS = 0.01
"""The estimated seconds of a fit from which its end is awaited in steps, so that an interrupt takes
effect at once."""

PART_SECONDS, PART_FITS = 0.02, 16
"""The estimated seconds of a call from which it is cut into parts, one for each core of a CPU, and
the fewest fits of a part."""

USUAL_STEPS = 64
"""The steps of a fit of a fleet, roughly."""

STEP_SECONDS, ACCELERATOR_STEP_SECONDS, LAUNCH_SECONDS = 1e-9, 1e-12, 5e-5
"""Seconds of a step for one unit × feature² × component, roughly, on a CPU and on an accelerator,
where a step takes at least LAUNCH_SECONDS (H200: fleets of 500 × 2, k = 3, 4,096 lanes 130 µs a
step)."""


def step_seconds(work: int) -> float:
    """The first estimate of the seconds of a step. work: units × features² × components."""
    if platform() == "cpu":
        return work * STEP_SECONDS
    return LAUNCH_SECONDS + work * ACCELERATOR_STEP_SECONDS


PADDED_WORK = 2**22
"""The most units × features² × restarts × absent components for each compilation that padding
saves. At twice this, both ways took equally long on 2 cores (jax 0.10.2)."""

ACCELERATOR_LENGTHS = 4
"""The most lengths to which the data sets of a list are padded on an accelerator. Every length is a
program of its own (H200, five lengths: a first call of 18 s)."""

# Gradients

STORED_NUMBERS = 2**16
"""The size of the storage for search directions, in numbers."""

LEAST_DIRECTIONS = 40
"""The search directions that are stored at least, whatever their size."""

DENSE_SIZE = 32
"""The most parameters for which J and (I − J)⁻¹ are formed. Each column of J costs one product; a
solve by products takes fewer products than there are parameters."""

FORMED_CURVATURE = 256
"""Parameters up to which a curvature is formed and inverted; the norms of its rows are estimated
for more."""

CURVATURE_PROBES = 8
"""Random products from which the norms of the rows of a larger curvature are estimated."""

# Topics

PADDED_CELLS, PADDED_RATIO = 2**16, 4
"""Documents are stored as rows of one width where these take at most PADDED_CELLS cells, or
PADDED_RATIO times those of the documents. Every further width takes compile time."""

CLASS_NUMBERS = 2**19
"""The most numbers of a (w, k, l) block of documents that are stored in rows of several widths,
where it holds more than one document, on a CPU."""


SHORTEST, LENGTH_RATIO, LENGTH_CLASSES = 16, 1.5, 6
"""Blocks are padded to at most LENGTH_CLASSES lengths: that of the longest document, and each
further one shorter by the factor LENGTH_RATIO, down to SHORTEST cells."""

ACCELERATOR_LENGTH_RATIO, ACCELERATOR_LENGTH_CLASSES = 1.75, 4
"""The same on accelerators, where compiling a class takes longer."""


def length_classes() -> tuple[float, int]:
    """(the factor between lengths, the most lengths) of blocks of documents."""
    if platform() == "cpu":
        return LENGTH_RATIO, LENGTH_CLASSES
    return ACCELERATOR_LENGTH_RATIO, ACCELERATOR_LENGTH_CLASSES


LENGTH_SPAN = 8
"""Where the longest document is so long that the shortest length would be above LENGTH_SPAN ·
SHORTEST, the factor is larger, so that the shortest length is that: an estimate, not measured."""

DOCUMENT_NUMBERS = 2**16
"""Numbers of a (w, k, l) block on a CPU. A first E-step of 20 topics and 4,000 documents of 112
words took 94 ms, with 2**17 numbers 98 ms and with 2**18 128 ms: in a larger block more documents
wait for the last one to converge."""

LEAST_DOCUMENTS, MOST_DOCUMENTS = 16, 512
"""The least and the largest number of documents of a block on a CPU."""

UNCONVERGED_DIVISOR = 4
"""The loop over a block stops when at most one document in UNCONVERGED_DIVISOR has not
converged."""

SPARSE = 64
"""Statistics are scattered cell by cell where the vocabulary has more than SPARSE words for every
cell of the longest document, and always on a CPU; else they are a dense matrix product."""

ACCELERATOR_DOCUMENTS, ACCELERATOR_DOCUMENT_NUMBERS = 2**13, 2**26
"""The largest number of documents of a block on accelerators, and the numbers of its (w, k, l)
block. The last block of a class is padded, and the class of the longest documents may hold few
(H200, 20,000 documents, 100 topics: a sweep 104 ms with 2**13 documents of any length, with 2**25
numbers 64, with 2**26 52. With one condition for all steps of a block, in place of one a step, it
took 65: XLA fuses more, and computes more anew)."""

MAP_NUMBERS = 2**20
"""Numbers of a (w, k, l) block of documents in a step of the stationary map."""

PATTERN_FEATURES, PATTERN_ROWS = 8, 4
"""The most features for which all patterns of observed cells are told apart, and the fewest rows
for each of them in the mean."""

SWEPT_SMALL, SWEPT_LARGE = 4, 16
"""`numerics.sweeps.are_unrolled`."""

DIRECTIONS, CURVATURE_NUMBERS = 64, 2**18
"""The most directions of a block of second derivatives, and directions × numbers of a chunk."""
