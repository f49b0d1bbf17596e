"""What a reader must know before using a fit: its noise, and the reasons not to trust it."""

import numpy as np

from lm import fit


def seed_noise(result: fit.Fit) -> float | None:
    """Pooled standard deviation between rows of equal inputs, of log y (y for plain squares)."""
    y = result.y if result.plain else np.log(result.y)
    same = np.unique(np.stack(result.x, 1), axis=0, return_inverse=True)[1].ravel()
    counts = np.bincount(same)
    if counts.max() < 2:
        return None
    means = np.bincount(same, y) / counts
    return float(np.sqrt(((y - means[same]) ** 2).sum() / (counts - 1).sum()))


def difference(result: fit.Fit, y: np.ndarray) -> np.ndarray:
    return result.fitted - y if result.plain else np.log(result.fitted) - np.log(y)


def warnings(problem, theta: np.ndarray, result: fit.Fit) -> list[str]:
    """What a reader must know before using the numbers."""
    doubts = []
    if not result.converged and result.gradient > 1e-4:
        doubts.append(
            f"the optimiser has not converged (scaled gradient {result.gradient:.1e}): do not use "
            "these numbers"
        )
    if np.abs(problem.starts - theta).max(1).min() < 1e-5 and result.gradient > 1e-4:
        doubts.append("the solution equals one of its starts: nothing was fitted")
    if result.agree < 0.02 and len(problem.starts) >= 100:
        doubts.append(
            f"only {result.agree:.1%} of {len(problem.starts)} starts agree on the optimum"
        )
    for i, name in enumerate(problem.free):
        value = result.params[name]
        if name in problem.watch and value == 0:
            doubts.append(f"{name} = 0: the loss does not fall with this input")
        elif theta[i] <= problem.lower[i] + 1e-9 or theta[i] >= problem.upper[i] - 1e-9:
            doubts.append(f"{name} = {value:.3g} is at its bound: these runs do not determine it")
    for name in problem.watch:
        if name in result.ensemble:
            lo, hi = result.interval(name)
            if hi > 4 * max(lo, 1e-9):
                doubts.append(
                    f"{name} is hardly determined, [{lo:.3g}, {hi:.3g}]: a flat valley, see its "
                    "profile"
                )
    return doubts
