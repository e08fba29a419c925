"""The covariance structures by name: mclust's 14, and four of them by a word."""

from jaxem.families.normal.axes import EEI, EII, EVI, VEI
from jaxem.families.normal.diagonal import Diagonal
from jaxem.families.normal.full import Full
from jaxem.families.normal.matrices import EVV, VEE
from jaxem.families.normal.orientations import EEV, EVE, VEV, VVE
from jaxem.families.normal.spherical import Spherical
from jaxem.families.normal.tied import Tied

STRUCTURES = {"full": Full(), "tied": Tied(), "diagonal": Diagonal(), "spherical": Spherical()}
STRUCTURES |= {
    "EII": EII(),
    "VII": STRUCTURES["spherical"],
    "EEI": EEI(),
    "VEI": VEI(),
    "EVI": EVI(),
    "VVI": STRUCTURES["diagonal"],
    "EEE": STRUCTURES["tied"],
    "VEE": VEE(),
    "EVE": EVE(),
    "VVE": VVE(),
    "EEV": EEV(),
    "VEV": VEV(),
    "EVV": EVV(),
    "VVV": STRUCTURES["full"],
}
