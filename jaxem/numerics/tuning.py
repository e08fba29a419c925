"""Constants that were measured on a machine: sizes of chunks, widths of batches, thresholds.

None of them changes an answer beyond rounding. Where no other machine is named, they were measured
on two cores of a CPU; an accelerator has its own value where one is known. `platform` says where a
program will run.
"""

import jax


def platform() -> str:
    """The platform that programs are compiled for: "cpu", "gpu" or "tpu"."""
    return jax.default_backend()


# Passes over the data

CHUNKED = 2**20
"""Units × features × components from which a pass is cut into chunks."""

CACHED = 2**17
"""Numbers of a (k, d, rows) block of centred rows: a chunk that stays in cache (4 lanes,
n = 20,000, d = k = 8: 1.0 ms a lane against 1.8 to 2.7)."""

LEAST_CHUNK_ROWS = 256
"""Rows of the smallest chunk."""

CHUNK_MULTIPLE = 64
"""Chunks are of equal size but for this: the last one repeats few rows, and vectors fit."""

SUM_BLOCK = 1024
"""Numbers of a block of `row_sum`, more or less."""

CHAINS = 2
"""Chunks at work at once on a CPU: XLA runs in two threads what does not depend on each other; of
one chunk, products and loops keep two cores busy for half of the time (a pass in float32 over
131,072 × 16, k = 16, full: 13.3 to 10.4 ms; 524,288 × 16, k = 32, diagonal: 37 to 28 ms; four at
once 11.4 and 32)."""

SEVERAL_CHUNKS = 8
"""Up to so many chunks go one after another: two at once take longer to compile, by a quarter and
more. Not so just two: then there is no loop (10,000 × 16, k = 32, diagonal: 1.4 to 1.1 ms)."""

ROOM = 2**26
"""Bytes up to which data are copied; beyond they are standardised chunk by chunk in every pass."""

SPARE_FEATURES = 2
"""Features above the number of columns up to which they are kept in place of the columns."""

PRODUCT_NUMBERS = 3 * 2**18
"""Numbers of a chunk for matrix products: features, joint and responsibilities. Twice as many leave
the cache (one core, d = k = 16, full, float64: 40 ms against 47)."""

LEAST_PRODUCT_ROWS, MOST_PRODUCT_ROWS = 256, 10240
"""Rows of such a chunk: products of fewer rows are slow, and more leave the cache (one core,
16,384 × 64, full, float64: 256 rows 55 ms, 512 rows 74 ms, 1,024 rows 88 ms; two cores, 200,000 ×
8, k = 8, spherical, float32: 6,144 rows 2.8 ms, 8,192 rows 2.6, 10,240 and 12,288 rows 2.2)."""

SURVEY_ROWS = 2**15
"""Rows of a chunk in which location and scale of data are found that have no room for a copy."""

CHECKED_UNITS = 2**16
"""Units that are checked at a time: a check allocates several arrays of the size of its units."""

# Small linear algebra and sums

UNROLLED_FEATURES = 8
"""The most features whose Cholesky factor is unrolled into elementwise code. A LAPACK call costs
about 0.3 µs at any size, and XLA does not fuse across it."""

ONE_THREAD_FEATURES = 16
"""The most features for which LAPACK solves a triangular system in one thread. Several threads wait
for one another in a busy loop: 16 systems of 64 unknowns took 500 ms instead of 0.5 ms while other
work held a core."""

FEW_TERMS, MANY_SUMS = 16, 1024
"""A sum of at most FEW_TERMS terms is written as additions where there are at least MANY_SUMS sums.
On a CPU XLA hands a plain sum to a library whose threads wait for one another. The additions took a
pass over 1e6 × 12 units in float32, k = 8, from 23 to 20 ms for diagonal normals and from 28 to
22 ms for 4 levels; k = 16 made no difference, and k = 32 was a tenth slower."""

STACKED_FEATURES = 4
"""Up to this many features full moments are one product with stacked rows: matrices of few rows
are slow (in lanes, d = 2: 2.3 µs against 5.6)."""

WIDEST_PRODUCTS = 96
"""Features up to which full covariances take all products (n = 65,536, k = 16, float32: d = 32
32 ms against 200 on centred rows, d = 40 45 against 113, d = 64 130 against 210)."""

# Many fits at once, and compiling

LANES_BYTES = 2**19
"""Bytes of work that the lanes of a CPU share: about half of a core's level-2 cache."""

LONG_STEP = 2**15
"""Numbers in a fit's widest array beyond which a step takes longer than a look at who is done."""

LEAST_LANES, MOST_LANES = 4, 64
"""Lanes of a CPU at least and at most (1,024 fits of 500 × 2, k = 3: 16 lanes 0.42 ms a fit, 64
lanes 0.55, 256 lanes 1.26)."""

INTERVAL = 4
"""EM steps between looks at who is done, where a step is shorter than that."""

ACCELERATOR_LANES, ACCELERATOR_INTERVAL = 4096, 8
"""The same elsewhere: estimates, not measured."""

FOLDED = 4096
"""Units up to which weights of 1 are constants of a program. XLA folds constants, which takes
seconds of compile time for many."""

QUICK_OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True}
"""Compiler options of a single fit of few units on a CPU: the default fusion emitters double the
compile time (jaxlib 0.10.2)."""

TINY = 4096
"""Units × features² × components × restarts below which a step takes under 0.1 ms however built."""

TINY_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
"""Further options for such steps."""

SLICE = 0.3
"""Seconds that a slice should take: Ctrl-C waits for the end of one."""

PACE = 1e-9
"""Seconds that one unit × feature² × component costs in a step, roughly; only a first guess."""

WORTH = 2**22
"""The most units × features² × restarts × absent components that are climbed for each compilation
saved. On 2 cores both ways took equally long at twice this (jax 0.10.2)."""

# Gradients

STORED_NUMBERS = 2**16
"""The size of the storage for search directions, in numbers."""

LEAST_DIRECTIONS = 40
"""The search directions that are stored at least, whatever their size."""

DENSE_SIZE = 32
"""The most parameters for which J and (I − J)⁻¹ are formed. Each column of J costs one product; a
solve by products takes fewer products than there are parameters."""

FORMED_CURVATURE = 256
"""Parameters up to which a curvature is formed and inverted; above it its rows are measured."""

CURVATURE_PROBES = 8
"""Random products from which the rows of a larger curvature are measured."""

# Topics

SHORTEST, LENGTH_RATIO, LENGTH_CLASSES = 16, 1.5, 6
"""Blocks are padded to at most LENGTH_CLASSES lengths: that of the longest document, and each
further one shorter by the factor LENGTH_RATIO, down to SHORTEST cells."""

DOCUMENT_NUMBERS = 2**16
"""Numbers of a (w, k, l) block on a CPU. A first E-step of 20 topics and 4,000 documents of 112
words took 94 ms, with 2**17 numbers 98 ms and with 2**18 128 ms: in a larger block more documents
wait for the last one to converge."""

LEAST_DOCUMENTS, MOST_DOCUMENTS = 16, 512
"""The least and the largest number of documents of a block on a CPU."""

LEFT = 4
"""The loop over a block stops when at most one document in LEFT has not converged."""

SPARSE = 64
"""Statistics are scattered cell by cell where the vocabulary has more than SPARSE words for every
cell of the longest document, and always on a CPU; else they are a dense matrix product."""

ACCELERATOR_DOCUMENTS = 2**13
"""Documents of a block elsewhere: an estimate, not measured."""

CELLS = 2**20
"""Numbers of a (w, k, l) block of documents in a step of the map that is differentiated."""
