"""The covariance structures by name: each has a file of its own."""

from jaxem.families.normal.diagonal import Diagonal
from jaxem.families.normal.full import Full
from jaxem.families.normal.spherical import Spherical
from jaxem.families.normal.tied import Tied

STRUCTURES = {"full": Full(), "tied": Tied(), "diagonal": Diagonal(), "spherical": Spherical()}
