"""Cost of a run in FLOPs from the rows of a fit, and its seconds from those of finished runs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lm.laws import fit, run_table

MAX_COST_ERROR = 1.3  # largest factor between the FLOPs of a row and the fitted cost


def cost_of_rows(law_fit: fit.Fit, column: str = "flops") -> Callable[..., np.ndarray]:
    """Return the cost in FLOPs as a function of the inputs of a law, from the rows of its fit.

    A law of C costs C. Otherwise, rows need the column of their FLOPs. FLOPs per token are
    6 N + k N^p, where k and p are fitted to the rows; they are k N^p if a row has fewer than 6 N.
    A law without D has the token budget of its rows, a power of the inputs. Without N or tokens,
    FLOPs are a power of each input.

    Raises ValueError for rows without FLOPs, and for FLOPs that differ from this function by more
    than MAX_COST_ERROR, such as several token budgets in a law of N.
    """
    letters, logs = law_fit.inputs, [np.log(x) for x in law_fit.x]
    if "C" in letters:
        return lambda *inputs: np.asarray(inputs[letters.index("C")], float)
    remedy = f"pass cost=, a function from {', '.join(letters)} to FLOPs"
    numbers = [run_table.to_number(row.get(column)) for row in law_fit.data.rows]
    flops = np.array(numbers, float)
    if not (np.isfinite(flops) & (flops > 0)).all():
        raise ValueError(f"cost=None needs the column {column!r} in all rows of the fit: {remedy}")
    tokens = np.array([run_table.to_number(row.get("tokens")) for row in law_fit.data.rows])
    if "D" in letters:
        tokens = law_fit.x[letters.index("D")]
    if "N" in letters and (np.isfinite(tokens) & (tokens > 0)).all():
        per_token = fit_flops_per_token(law_fit.x[letters.index("N")], flops / tokens)
        budget = None if "D" in letters else _power_of(logs, np.log(tokens))

        def price(*inputs: Any) -> np.ndarray:
            n_tokens = budget(*inputs) if budget else np.asarray(inputs[letters.index("D")], float)
            return per_token(inputs[letters.index("N")]) * n_tokens
    else:
        price = _power_of(logs, np.log(flops))
    error = float(np.exp(np.abs(np.log(price(*law_fit.x) / flops)).max()))
    if error > MAX_COST_ERROR:
        raise ValueError(
            f"the FLOPs of the rows are no function of {', '.join(letters)}: a row differs by a "
            f"factor {error:.3g}; {remedy}"
        )
    return price


def fit_flops_per_token(n: np.ndarray, measured: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Return FLOPs per token as a function of N: 6 N and a power of N, or a power of N."""
    excess = measured - 6 * n
    if (excess > 1e-6 * measured).all():
        rest = _power_of([np.log(n)], np.log(excess))
        return lambda size: 6 * np.asarray(size, float) + rest(size)
    return _power_of([np.log(n)], np.log(measured))


def _power_of(logs: list[np.ndarray], log_y: np.ndarray) -> Callable[..., np.ndarray]:
    """Return y as a product of powers of the inputs, by least squares on log y."""
    design = np.stack([np.ones_like(log_y), *logs], 1)
    coefficients = np.linalg.lstsq(design, log_y, rcond=None)[0]

    def power(*inputs: Any) -> np.ndarray:
        terms = [
            a * np.log(np.asarray(x, float)) for a, x in zip(coefficients[1:], inputs, strict=True)
        ]
        return np.exp(sum(terms, coefficients[0]))

    return power


def price_points(price: Callable[..., Any], points: np.ndarray) -> np.ndarray:
    """Return the FLOPs of points [inputs, m]. Raises ValueError unless they are positive."""
    remedy = "it must accept the inputs of the law as arrays and return positive FLOPs"
    try:
        flops = np.broadcast_to(np.asarray(price(*points), float), points.shape[1:])
    except Exception as error:
        raise ValueError(f"cost= has raised {type(error).__name__} ({error}): {remedy}") from error
    if not (np.isfinite(flops) & (flops > 0)).all():
        raise ValueError(f"cost= has returned numbers that are not positive: {remedy}")
    return flops


def calibrate_seconds(
    estimates: np.ndarray, measured_estimates: np.ndarray, measured: np.ndarray
) -> np.ndarray:
    """Return estimated seconds that are corrected by the measured seconds of finished runs.

    estimates: of the candidates. measured_estimates, measured: estimated and measured seconds of
    each finished run. The log ratio of both is interpolated in the log of the estimate. Beyond the
    finished runs, it has the value of the nearest one. Without finished runs, nothing is corrected.
    """
    if not len(measured):
        return np.asarray(estimates, float)
    known = np.log(np.asarray(measured_estimates, float))
    ratios = np.log(np.asarray(measured, float)) - known
    positions = np.unique(known)
    means = [ratios[known == position].mean() for position in positions]
    log_estimates = np.log(np.asarray(estimates, float))
    return np.exp(log_estimates + np.interp(log_estimates, positions, means))
