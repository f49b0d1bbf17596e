"""Minimum of one budget of an isoFLOP sweep, by a parabola or by Akima interpolation.

Legend: t = log x, n runs of a budget, B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lm.laws import fit

ASYMMETRY_LEVEL = 0.01  # p-value of the cubic term below which a parabola is biased
MIN_SIZES_FOR_ASYMMETRY = 6  # with fewer sizes, a cubic has too few residuals for a test


@dataclass(frozen=True)
class IsoflopOptions(fit.FitOptions):
    """Options of `isoflop.isoflop`, which describes them."""

    resample: str = "noise"
    method: str = "auto"
    budgets: Sequence[float] | None = None
    tolerance: float = 0.1
    nearest: int | None = None
    log_loss: bool | None = None
    edges: str = "drop"
    points: int = 25
    noise: float | None = None
    median: bool = False
    weighted: bool = False

    @property
    def uses_log_loss(self) -> bool:
        """True if minima are those of log L. The default is log L for akima and L for parabola."""
        return self.method == "akima" if self.log_loss is None else self.log_loss


@dataclass
class BudgetMinimum:
    """Minimum of one budget: the best size x and its loss, or the reason to exclude it.

    The parabola is c0 + c1 t + c2 t^2 with t = log x - center.
    """

    budget: float  # FLOPs
    n_runs: int
    log_x: np.ndarray  # log sizes of the runs near the minimum, ascending
    losses: np.ndarray  # their losses, or log losses
    x: float = float("nan")
    loss: float = float("nan")
    method: str = "parabola"  # or akima
    opens_up: bool = False
    is_inside: bool = False  # x is inside the sizes of the runs
    is_used: bool = False  # the budget is a point of the line
    reason: str = ""  # reason to exclude the budget
    log_x_sd: float = float("nan")  # standard deviation of log x over resamples
    weight: float = 1.0  # of the budget in the fit of the line
    center: float | None = None
    coefficients: list[float] | None = None  # of the parabola
    design: np.ndarray | None = None  # [n, 3]
    fitted: np.ndarray = field(default_factory=lambda: np.zeros(0))  # parabola at log_x
    residuals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    # Draws of x, the minima of resamples [B]; NaN for no minimum.
    resampled_x: np.ndarray = field(default_factory=lambda: np.zeros(0))


def fit_budget(
    budget: float, x: np.ndarray, y: np.ndarray, options: IsoflopOptions
) -> BudgetMinimum:
    """Fit the minimum of a budget to the sizes x and losses y of its runs."""
    n_runs = len(x)
    x, y = _runs_near_minimum(x, y, options)
    result = BudgetMinimum(budget, n_runs, np.log(x), y)
    n_sizes = len(np.unique(x))
    if n_sizes < 3:
        count = "1 size is" if n_sizes == 1 else f"{n_sizes} sizes are"
        result.reason = f"{count} too few for a minimum"
        return result
    center = result.log_x.mean()
    t = result.log_x - center
    design = np.stack([np.ones(len(x)), t, t**2], 1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    result.design, result.center = design, center
    result.fitted = design @ coefficients
    result.residuals = y - design @ coefficients
    result.method = options.method
    if options.method == "auto":
        is_biased = coefficients[2] > 0 and is_asymmetric(result.log_x, y)
        result.method = "akima" if is_biased else "parabola"
    if result.method == "parabola":
        result.coefficients = [float(v) for v in coefficients]
        result.opens_up = bool(coefficients[2] > 0)
        if not result.opens_up:
            result.reason = "the parabola opens down"
            return result
        log_best = center - coefficients[1] / (2 * coefficients[2])
        value = coefficients[0] - coefficients[1] ** 2 / (4 * coefficients[2])
        result.is_inside = bool(result.log_x[0] <= log_best <= result.log_x[-1])
    else:
        result.log_x, result.losses = _lowest_per_size(result.log_x, y)
        grid, curve = _akima(result.log_x, result.losses[:, None], options.points)
        i = int(curve[:, 0].argmin())
        log_best, value, result.opens_up = grid[i], curve[i, 0], True
        result.is_inside = 0 < i < len(grid) - 1
    result.x = float(np.exp(log_best))
    result.loss = float(np.exp(value) if options.uses_log_loss else value)
    side = "below the smallest" if log_best <= result.log_x[0] else "above the largest"
    if not result.is_inside:
        result.reason = f"the minimum {result.x:.4g} is at or {side} size"
    return result


def _runs_near_minimum(
    x: np.ndarray, y: np.ndarray, options: IsoflopOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes, ascending, and (log) losses of the runs that determine the minimum."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.log(y[order]) if options.uses_log_loss else y[order]
    if options.method == "akima" and len(x):
        x, y = _lowest_per_size(x, y)
    nearest = options.nearest
    if nearest is not None and len(x) > nearest:
        first = min(max(int(y.argmin()) - nearest // 2, 0), len(x) - nearest)
        x, y = x[first : first + nearest], y[first : first + nearest]
    return x, y


def is_asymmetric(log_x: np.ndarray, y: np.ndarray) -> bool:
    """Return True if a cubic fits the losses better than a parabola, whose vertex is then biased.

    The test is Student's t of the cubic term, for at least MIN_SIZES_FOR_ASYMMETRY sizes. A loss of
    unequal exponents is not symmetric around its minimum.
    """
    if len(np.unique(log_x)) < MIN_SIZES_FOR_ASYMMETRY:
        return False
    from scipy import special  # its import takes longer than that of all laws

    t = (log_x - log_x.mean()) / np.ptp(log_x)
    design = np.vander(t, 4)
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    residuals, degrees = y - design @ coefficients, len(y) - rank
    variance = float(residuals @ residuals) / degrees * np.linalg.inv(design.T @ design)[0, 0]
    statistic = abs(coefficients[0]) / np.sqrt(variance + 1e-30)
    return bool(special.stdtr(degrees, -statistic) < ASYMMETRY_LEVEL / 2)


def _lowest_per_size(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes without repeats, ascending, and the lowest loss of each."""
    sizes, inverse = np.unique(x, return_inverse=True)
    lowest = np.full(len(sizes), np.inf)
    np.minimum.at(lowest, inverse, y)
    return sizes, lowest


def _akima(log_x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy import interpolate  # its import takes longer than that of all laws

    grid = np.linspace(log_x[0], log_x[-1], (len(log_x) - 1) * points)
    return grid, np.asarray(interpolate.Akima1DInterpolator(log_x, y)(grid))


def pooled_noise(minima: list[BudgetMinimum]) -> float:
    """Return the noise from the residuals of all parabolas; 0 if each has only three sizes."""
    degrees = sum(max(len(minimum.residuals) - 3, 0) for minimum in minima)
    squares = sum(
        float((minimum.residuals**2).sum()) for minimum in minima if len(minimum.residuals) > 3
    )
    return float(np.sqrt(squares / degrees)) if degrees else 0.0


def bootstrap_minimum(
    minimum: BudgetMinimum, scale: float, options: IsoflopOptions, rng: np.random.Generator
) -> np.ndarray:
    """Return the best size in each resample of the runs of a budget [B].

    A value is NaN if its resample has no minimum inside the sizes.
    """
    bootstrap, design = options.bootstrap, minimum.design
    if design is None or minimum.center is None or not bootstrap:
        return np.full(bootstrap, np.nan)
    x, y = minimum.log_x, minimum.losses
    # A given noise is in units of the loss.
    sd = scale / np.exp(y) if options.noise is not None and options.uses_log_loss else scale
    base = y if minimum.method == "akima" else minimum.fitted
    noisy = base + rng.standard_normal((bootstrap, len(y))) * sd
    if minimum.method == "akima":
        grid, curves = _akima(x, noisy.T, options.points)
        best = curves.argmin(0)
        return np.where((best > 0) & (best < len(grid) - 1), np.exp(grid[best]), np.nan)
    if options.resample == "runs":
        w = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=bootstrap).astype(float)
        gram = np.einsum("bn,np,nq->bpq", w, design, design) + 1e-12 * np.eye(3)
        moments = np.einsum("bn,np,n->bp", w, design, y)
        coefficients = np.linalg.solve(gram, moments[:, :, None])[:, :, 0]
    else:
        coefficients = noisy @ np.linalg.pinv(design).T
    with np.errstate(all="ignore"):
        log_best = minimum.center - coefficients[:, 1] / (2 * coefficients[:, 2])
        opens_up = coefficients[:, 2] > 0
        is_inside = opens_up & (log_best >= x[0]) & (log_best <= x[-1])
        is_valid = is_inside | (not minimum.is_inside and opens_up)
        return np.where(is_valid, np.exp(log_best), np.nan)
