"""The minimum of one budget of an isoFLOP sweep: a parabola's vertex or the lowest Akima point."""

from typing import Any

import numpy as np


def minimum(budget, x, y, method, nearest, in_log, points) -> dict[str, Any]:
    """The minimum of one budget: where, how low, and what is wrong with it."""
    one: dict[str, Any] = {
        "budget": budget,
        "n": len(x),
        "x": np.nan,
        "loss": np.nan,
        "opens_up": False,
        "inside": False,
    }
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.log(y[order]) if in_log else y[order]
    if method == "akima" and len(x):
        sizes, place = np.unique(x, return_inverse=True)
        lowest = np.full(len(sizes), np.inf)
        np.minimum.at(lowest, place, y)
        x, y = sizes, lowest
    if nearest is not None and len(x) > nearest:
        first = min(max(int(y.argmin()) - nearest // 2, 0), len(x) - nearest)
        x, y = x[first : first + nearest], y[first : first + nearest]
    one |= {
        "log_x": np.log(x),
        "values": y,
        "method": method,
        "coefficients": None,
        "residuals": np.zeros(0),
    }
    if len(np.unique(x)) < 3:
        one["reason"] = f"{len(np.unique(x))} sizes are too few for a minimum"
        return one
    middle, design = one["log_x"].mean(), None
    design = np.stack([np.ones(len(x)), one["log_x"] - middle, (one["log_x"] - middle) ** 2], 1)
    one["design"], one["middle"] = design, middle
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    one["residuals"], one["fitted"] = y - design @ coefficients, design @ coefficients
    if method == "parabola":
        one["coefficients"] = [float(v) for v in coefficients]
        one["opens_up"] = bool(coefficients[2] > 0)
        if not one["opens_up"]:
            one["reason"] = "the parabola opens down"
            return one
        star = middle - coefficients[1] / (2 * coefficients[2])
        value = coefficients[0] - coefficients[1] ** 2 / (4 * coefficients[2])
        one["inside"] = bool(one["log_x"][0] <= star <= one["log_x"][-1])
    else:
        grid, curve = _akima(one["log_x"], y[:, None], points)
        i = int(curve[:, 0].argmin())
        star, value, one["opens_up"] = grid[i], curve[i, 0], True
        one["inside"] = 0 < i < len(grid) - 1
    one["x"], one["loss"] = float(np.exp(star)), float(np.exp(value) if in_log else value)
    side = "below the smallest" if star <= one["log_x"][0] else "above the largest"
    one["reason"] = "" if one["inside"] else f"the minimum {one['x']:.4g} is at or {side} size"
    return one


def _akima(log_x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy import interpolate  # takes longer to import than all laws together

    grid = np.linspace(log_x[0], log_x[-1], (len(log_x) - 1) * points)
    return grid, np.asarray(interpolate.Akima1DInterpolator(log_x, y)(grid))


def pooled_noise(found: list[dict[str, Any]]) -> float:
    """Scale of the noise from the residuals of all parabolas; 0 when three sizes leave none."""
    degrees = sum(max(len(one["residuals"]) - 3, 0) for one in found)
    squares = sum(
        float((one["residuals"] ** 2).sum()) for one in found if len(one["residuals"]) > 3
    )
    return float(np.sqrt(squares / degrees)) if degrees else 0.0


def resampled(one, scale, given, in_log, points, resample, bootstrap, rng) -> np.ndarray:
    """x* of each resample of a budget's runs; NaN where the resample has none inside."""
    nothing = np.full(bootstrap, np.nan)
    if "design" not in one or not bootstrap:
        return nothing
    x, y, design = one["log_x"], one["values"], one["design"]
    sd = scale / np.exp(y) if given and in_log else scale  # given noise is in units of the loss
    base = y if one["method"] == "akima" else one["fitted"]
    noisy = base + rng.standard_normal((bootstrap, len(y))) * sd
    if one["method"] == "akima":
        grid, curves = _akima(x, noisy.T, points)
        best = curves.argmin(0)
        return np.where((best > 0) & (best < len(grid) - 1), np.exp(grid[best]), np.nan)
    if resample == "runs":
        w = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=bootstrap).astype(float)
        gram = np.einsum("bn,np,nq->bpq", w, design, design) + 1e-12 * np.eye(3)
        coefficients = np.linalg.solve(gram, np.einsum("bn,np,n->bp", w, design, y)[:, :, None])[
            :, :, 0
        ]
    else:
        coefficients = noisy @ np.linalg.pinv(design).T
    with np.errstate(all="ignore"):
        star = one["middle"] - coefficients[:, 1] / (2 * coefficients[:, 2])
        good = (coefficients[:, 2] > 0) & (star >= x[0]) & (star <= x[-1])
        return np.where(good | (not one["inside"] and coefficients[:, 2] > 0), np.exp(star), np.nan)
