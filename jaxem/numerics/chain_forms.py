"""Which form the recursions of a chain take, by its size and by the platform."""

from jaxem.numerics import tuning

LEVEL_ROWS, LEVEL_NUMBERS = 16, 2**26
"""The fewest rows, and the most numbers (rows × states² × sequences), of the chains whose
recursions are associative scans on accelerators. Larger ones would take too much memory."""

LONG_ROWS, LONG_STATES = 1024, 256
"""The fewest rows, and the most numbers (states × sequences) of a row, of the chains whose loops
hold only what rows need from each other (CPU, 100,000 rows, 3 states: 9.4 to 5.9 ms)."""


def takes_levels(rows: int, states: int, sequences: int) -> bool:
    """Whether the recursions of a chain are associative scans."""
    numbers = rows * states**2 * sequences
    return tuning.platform() != "cpu" and rows >= LEVEL_ROWS and numbers <= LEVEL_NUMBERS


def is_long(rows: int, states: int, sequences: int) -> bool:
    """Whether chains are few and long."""
    return tuning.platform() == "cpu" and rows >= LONG_ROWS and states * sequences <= LONG_STATES
