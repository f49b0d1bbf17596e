"""Initial values of a fit: a given grid, or a grid around the data.

Legend: S starts, p free parameters. theta is the vector of the free parameters in unit scale.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np


def start_grid(starts, free, internal) -> np.ndarray:
    """Return theta [S, p] of given starts: a grid {name: values}, or a list of dicts.

    `free` lists the names of the free parameters. `internal` converts parameters to theta.
    """
    if isinstance(starts, Mapping):
        axes = product(*(np.atleast_1d(values) for values in starts.values()))
        starts = [dict(zip(starts, point, strict=True)) for point in axes]
    for name in free:
        if name not in starts[0] and f"log_{name}" not in starts[0]:
            raise ValueError(
                f"starts contain {', '.join(starts[0])}, but neither {name} nor log_{name}"
            )
        values = [start.get(name, 1.0) for start in starts]
        if name[0].isupper() and min(values) <= 0:
            raise ValueError(f"starts contain {name}={min(values)!r}: pass positive numbers")
    return internal({key: np.array([start[key] for start in starts], float) for key in starts[0]})


def default_starts(log_y, free, coefficients, exponents, scale) -> np.ndarray:
    """Return theta [S, p] of a grid of starts around the data of a sum of power laws.

    Exponents range from 0.03 to 1.5, E from 20% to 98% of the lowest loss. The remaining loss is
    split between the other terms.
    """
    lowest, middle = np.exp(log_y.min()), np.exp(np.median(log_y))
    slopes = [name for name in dict.fromkeys(exponents) if name in free]
    n_others = max(len(coefficients) - 1, 1)
    thetas = []
    for fraction in (0.2, 0.6, 0.85, 0.98) if "E" in free else (0.0,):
        for split in [1.0] if len(coefficients) == 1 else [0.15, 0.5, 0.85]:
            for point in product((0.03, 0.1, 0.25, 0.45, 0.8, 1.5), repeat=len(slopes)):
                theta = dict(zip(slopes, np.array(point) * scale, strict=True))
                theta["E"] = np.log(fraction * lowest) if fraction else 0.0
                for k, name in enumerate(coefficients):
                    theta[name] = np.log(
                        (split if k == 0 else (1 - split) / n_others) * (middle - fraction * lowest)
                    )
                thetas.append([theta[name] for name in free])
    return np.array(thetas)
