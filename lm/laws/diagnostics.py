"""Diagnostics of a fit: noise between repeats, residuals, and warnings."""

import numpy as np

from lm.laws import fit


def seed_noise(result: fit.Fit) -> float | None:
    """Return the pooled standard deviation between replicates, or None without any.

    Replicates have equal inputs and differ only in the seed: see run_table.RunTable.replicates. The
    unit is log y, or y for a fit with additive noise.
    """
    y = result.y if result.additive_noise else np.log(result.y)
    replicates = result.data.replicates(result.x)
    counts = np.bincount(replicates)
    if counts.max() < 2:
        return None
    means = np.bincount(replicates, y) / counts
    return float(np.sqrt(((y - means[replicates]) ** 2).sum() / (counts - 1).sum()))


def residuals(result: fit.Fit, y: np.ndarray) -> np.ndarray:
    """Return the residuals: law - y for additive noise, else their difference in logs."""
    return result.fitted - y if result.additive_noise else np.log(result.fitted) - np.log(y)


def diagnose(problem, theta: np.ndarray, result: fit.Fit) -> list[str]:
    """Return the reasons not to trust a fit: convergence, agreement of starts, weak parameters."""
    texts = []
    if not result.converged and result.gradient > 1e-4:
        texts.append(
            f"the optimizer has not converged (scaled gradient {result.gradient:.1e}): do not use "
            "these numbers"
        )
    if np.abs(problem.starts - theta).max(1).min() < 1e-5 and result.gradient > 1e-4:
        texts.append("the solution equals one of its starts: nothing was fitted")
    if result.start_agreement < 0.02 and len(problem.starts) >= 100:
        texts.append(
            f"only {result.start_agreement:.1%} of {len(problem.starts)} starts agree on the "
            "optimum"
        )
    for i, name in enumerate(problem.free):
        value = result.params[name]
        if name in problem.watch and value == 0:
            texts.append(f"{name} = 0: the loss does not fall with this input")
        elif theta[i] <= problem.lower[i] + 1e-9 or theta[i] >= problem.upper[i] - 1e-9:
            texts.append(f"{name} = {value:.3g} is at its bound: these runs do not determine it")
    for name in problem.watch:
        if name in result.ensemble:
            lo, hi = result.interval(name)
            if hi > 4 * max(lo, 1e-9):
                texts.append(
                    f"{name} is hardly determined, [{lo:.3g}, {hi:.3g}]: the objective is flat "
                    "along it, see its profile"
                )
    return texts
