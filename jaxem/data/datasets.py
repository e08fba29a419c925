"""Small published data sets for the demonstration and the examples."""

import numpy as np

from jaxem.data.tables import IRIS, WINE

_ERUPTIONS = """
3.6 1.8 3.333 2.283 4.533 2.883 4.7 3.6 1.95 4.35 1.833 3.917 4.2 1.75 4.7 2.167 1.75 4.8 1.6
4.25 1.8 1.75 3.45 3.067 4.533 3.6 1.967 4.083 3.85 4.433 4.3 4.467 3.367 4.033 3.833 2.017
1.867 4.833 1.833 4.783 4.35 1.883 4.567 1.75 4.533 3.317 3.833 2.1 4.633 2.0 4.8 4.716 1.833
4.833 1.733 4.883 3.717 1.667 4.567 4.317 2.233 4.5 1.75 4.8 1.817 4.4 4.167 4.7 2.067 4.7 4.033
1.967 4.5 4.0 1.983 5.067 2.017 4.567 3.883 3.6 4.133 4.333 4.1 2.633 4.067 4.933 3.95 4.517
2.167 4.0 2.2 4.333 1.867 4.817 1.833 4.3 4.667 3.75 1.867 4.9 2.483 4.367 2.1 4.5 4.05 1.867
4.7 1.783 4.85 3.683 4.733 2.3 4.9 4.417 1.7 4.633 2.317 4.6 1.817 4.417 2.617 4.067 4.25 1.967
4.6 3.767 1.917 4.5 2.267 4.65 1.867 4.167 2.8 4.333 1.833 4.383 1.883 4.933 2.033 3.733 4.233
2.233 4.533 4.817 4.333 1.983 4.633 2.017 5.1 1.8 5.033 4.0 2.4 4.6 3.567 4.0 4.5 4.083 1.8
3.967 2.2 4.15 2.0 3.833 3.5 4.583 2.367 5.0 1.933 4.617 1.917 2.083 4.583 3.333 4.167 4.333 4.5
2.417 4.0 4.167 1.883 4.583 4.25 3.767 2.033 4.433 4.083 1.833 4.417 2.183 4.8 1.833 4.8 4.1
3.966 4.233 3.5 4.366 2.25 4.667 2.1 4.35 4.133 1.867 4.6 1.783 4.367 3.85 1.933 4.5 2.383 4.7
1.867 3.833 3.417 4.233 2.4 4.8 2.0 4.15 1.867 4.267 1.75 4.483 4.0 4.117 4.083 4.267 3.917 4.55
4.083 2.417 4.183 2.217 4.45 1.883 1.85 4.283 3.95 2.333 4.15 2.35 4.933 2.9 4.583 3.833 2.083
4.367 2.133 4.35 2.2 4.45 3.567 4.5 4.15 3.817 3.917 4.45 2.0 4.283 4.767 4.533 1.85 4.25 1.983
2.25 4.75 4.117 2.15 4.417 1.817 4.467
"""

_WAITING = """
79 54 74 62 85 55 88 85 51 85 54 84 78 47 83 52 62 84 52 79 51 47 78 69 74 83 55 76 78 79 73 77
66 80 74 52 48 80 59 90 80 58 84 58 73 83 64 53 82 59 75 90 54 80 54 83 71 64 77 81 59 84 48 82
60 92 78 78 65 73 82 56 79 71 62 76 60 78 76 83 75 82 70 65 73 88 76 80 48 86 60 90 50 78 63 72
84 75 51 82 62 88 49 83 81 47 84 52 86 81 75 59 89 79 59 81 50 85 59 87 53 69 77 56 88 81 45 82
55 90 45 83 56 89 46 82 51 86 53 79 81 60 82 77 76 59 80 49 96 53 77 77 65 81 71 70 81 93 53 89
45 86 58 78 66 76 63 88 52 93 49 57 77 68 81 81 73 50 85 74 55 77 83 83 51 78 84 46 83 55 81 57
76 84 77 81 87 77 51 78 60 82 91 53 78 46 77 84 49 83 71 80 49 75 64 76 53 94 55 76 50 82 54 75
78 79 78 78 70 79 70 54 86 50 90 54 54 77 79 64 75 47 86 63 85 82 57 82 67 74 54 83 73 73 88 80
71 83 56 79 78 84 58 83 43 60 75 81 46 90 46 74
"""

_PATENTS = """
42 1 3 2 3 40 60 30 7 3 5 59 26 3 0 66 0 8 2 4 0 0 3 6 3 0 6 2 3 0 1 1 0 25 2 4 1 1 51 105 1 0 0 166
8 6 173 25 14 3 0 0 2 93 3 2 0 5 23 11 13 0 90 63 112 115 48 15 69 4
"""

_INTENSITY = """
0.0549 0.0032 0.0078 0.0803 0.0686 3.3319 0.0243 0.0128 0.0252 0.0094 0.0146 0.0496 0.0395 0.078
0.0171 0.0347 0.0569 0.1095 0.019 0.0084 0.1003 0.0623 0.0707 0.0359 0.0596 0.0076 0.0185 0.008
0.064 0.078 0.0025 0.004 0.0329 0.0234 0.0387 0.0133 0.0324 0.0882 0.0587 0.0446 0.0131 0.016 0.0143
0.0843 0.032 0.0599 0.0821 0.0535 0.0226 0.0397 0.0103 0.7159 0.0107 0.0467 0.0369 0.0316 0.0355
0.0166 0.0417 0.0447 0.0401 0.005 0.0618 0.069 0.0813 0.0409 0.0331 0.0323 0.0859 0.0591
"""

_SPENDING = """
4.0869 -2.0794 0.1187 1.8796 1.1033 2.0794 4.0953 2.8333 1.3915 2.6048 0.7957 3.5207 3.0001 0.5371
0.7761 4.2338 2.2178 0.851 -0.1567 1.8358 -1.6045 0.7071 -0.9916 1.2296 -0.531 -1.231 0.927 -1.1332
-0.0419 -1.8326 -1.8264 -0.1985 -1.7838 3.5525 -2.5639 0.4523 1.0529 1.4873 2.7793 4.7233 -0.6444
-2.9565 -0.9545 4.7278 2.1831 1.5773 4.9152 3.1807 1.4036 1.0043 -2.333 -0.1815 0.267 4.4785 0.7105
0.2979 -2.8647 2.7622 3.4383 2.5439 2.4436 -0.4125 3.9865 3.962 4.0029 3.9051 3.5909 2.9242 3.1707
1.8089
"""

_SEIZURES = """
56 57 36 54 41 72 54 28 53 41 61 20 30 54 36 31 48 72 52 21 12 35 34 38 41 50 59 42 34 54 22 16 9 15
22 13 25 16 18 13 10 5 6 6 3 31 23 3 12 7 26 25 23 9 1 4 9 3 2 34 0 4 1 3 3 0 17 3 20 11 5 14 16 13
1 3 13 1 1 13 13 2 11 13 2 0 18 4 3 23 1 1 1 1 8 1 0 0 0 1 0 1 1 0 0 0 2 1 1 0 0 0 3 1 0 1 0 0 7 9 0
1 11 2 0 3 1 1 13 0 1 13 0 2 1 1 1 1 0 0
"""

_HOURS = """
7 7 8 10 8 8 8 7 8 10 14 7 8 8 8 8 9 13 9 9 5 8 9 10 13 13 13 13 14 14 10 10 8 8 8 8 8 8 14 8 8 8 8
8 10 10 8 8 10 11 12 12 12 12 8 8 14 8 8 14 12 8 8 9 9 9 10 14 9 9 6 6 8 8 7 6 6 6 6 7 7 6 6 7 12 6
12 12 12 16 8 8 8 6 6 12 7 7 7 7 7 12 12 7 7 7 7 7 12 12 7 7 12 8 12 8 13 7 7 7 7 7 10 12 6 6 9 12
13 12 12 13 7 7 7 7 7 13 7 3
"""


def old_faithful() -> np.ndarray:
    """Old Faithful geyser, Yellowstone: eruption length and waiting time, both in minutes.

    Returns a float64 array (272, 2): the length of an eruption and the wait until the next one.
    Source: Azzalini & Bowman 1990, Applied Statistics 39, 357-365; Härdle 1991 for this table.
    """
    columns = [np.array(text.split(), float) for text in (_ERUPTIONS, _WAITING)]
    return np.stack(columns, axis=1)


def patents() -> np.ndarray:
    """Patents of 70 pharmaceutical and biomedical companies in 1976.

    Returns a float64 array (70, 3): the number of patents, the logarithm of the spending on
    research, in millions of dollars, and that spending as a part of sales. Source: Wang, Cockburn &
    Puterman 1998, Journal of Business & Economic Statistics 16, 27-41.
    """
    columns = [np.array(text.split(), float) for text in (_PATENTS, _SPENDING, _INTENSITY)]
    return np.stack(columns, axis=1)


def seizures() -> np.ndarray:
    """Epileptic seizures of a child, as observed by a parent on 140 days.

    Returns a float64 array (140, 4): the number of seizures, the hours of observation, whether the
    child was treated (from day 28 on, 0 or 1), and the day, from 1. Source: Wang, Puterman,
    Cockburn & Le 1996, Biometrics 52, 381-400.
    """
    counts, hours = (np.array(text.split(), float) for text in (_SEIZURES, _HOURS))
    day = np.arange(1.0, 141.0)
    return np.stack([counts, hours, (day > 27) * 1.0, day], axis=1)


def iris() -> np.ndarray:
    """Iris flowers: length and width of sepals and of petals, in centimetres.

    Returns a float64 array (150, 4): 50 flowers each of Iris setosa, versicolor and virginica, in
    that order. Source: Fisher 1936, Annals of Eugenics 7, 179-188 (as in R).
    """
    digits = np.array(["".join(IRIS.split())]).view("U2")
    return digits.astype(float).reshape(150, 4) / 10


def wine() -> np.ndarray:
    """Chemical analysis of 178 wines from one region of Italy.

    Returns a float64 array (178, 13): alcohol, malic acid, ash, alcalinity of ash, magnesium, total
    phenols, flavanoids, other phenols, proanthocyanins, colour intensity, hue, OD280/OD315 of
    diluted wine, and proline. The first 59 are of one cultivar, the next 71 of a second, the last
    48 of a third. Source: Forina and others 1986, Vitis 25, 189-201; the UCI repository for this
    selection.
    """
    return np.array(WINE.split(), float).reshape(178, 13)
