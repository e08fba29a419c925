"""Which form the recursions of a chain take, by its size and by the platform."""

from jaxem.numerics import tuning

LEVEL_ROWS, LEVEL_NUMBERS, LEVEL_WIDTH = 16, 2**28, 2**17
"""The fewest rows, and the most numbers (rows × states² × sequences), of the chains whose
recursions are associative scans on accelerators; larger ones would take too much memory. Those with
more numbers a row (states² × sequences) are faster row by row (H200, both passes: a row takes 15
µs, an associative scan 0.3 ms and 0.1 ns a number; 200 rows of 1,024 sequences, 3 states: 3.1 to
0.57 ms, 64 rows of 8,192, 8 states: 1.4 to 4.6)."""

LONG_ROWS, LONG_STATES = 1024, 256
"""The fewest rows, and the most numbers (states × sequences) of a row, of the chains whose loops
hold only what rows need from each other (CPU, 100,000 rows, 3 states: 9.4 to 5.9 ms)."""


def takes_levels(rows: int, states: int, sequences: int) -> bool:
    """Whether the recursions of a chain are associative scans."""
    width = states**2 * sequences
    fits = width <= LEVEL_WIDTH and rows * width <= LEVEL_NUMBERS
    return tuning.platform() != "cpu" and rows >= LEVEL_ROWS and fits


def is_long(rows: int, states: int, sequences: int) -> bool:
    """Whether chains are few and long."""
    return tuning.platform() == "cpu" and rows >= LONG_ROWS and states * sequences <= LONG_STATES


CPU_BLOCK, BLOCK = 2**23, 2**26
"""The most numbers (rows × states × sequences) of the arrays of a pass, of which there are about
ten, on a CPU and on accelerators. Longer sequences are passed in blocks of rows."""


def blocks(numbers: int) -> int:
    """In how many blocks of rows a pass over so many numbers is made."""
    return -(-numbers // (CPU_BLOCK if tuning.platform() == "cpu" else BLOCK))
