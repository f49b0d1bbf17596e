"""Law of the best learning rate, batch size and weight decay, as functions of size and tokens.

    lr*  = lr_k N^lr_N D^lr_D          peak learning rate
    B*   = batch_k D^batch_D           tokens per step
    tau* = tau_k (D / N)^tau_DN        timescale of the weight decay

tau = B / (lr weight_decay D) is the number of steps over which weight decay averages the updates,
as a fraction of all steps (Wang and Aitchison 2024, arXiv:2405.13698). Its optimum is a power of
the tokens per parameter (Bergsma et al. 2025, arXiv:2505.13738). lr* and B* have the form of the
Step Law (Li et al. 2025, arXiv:2503.04715).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lm.laws import option_validation, prediction_intervals, run_table
from lm.laws.tuning import quadratic_surface, tuned_runs

LEVEL = 0.95
MAX_INCREASE = 0.05  # of the loss above the best run; the surface is quadratic only near it
ONE_SIGMA = 0.6827  # probability within one standard deviation of a normal distribution
N_DRAWS = 2000  # of the distance between the law's optimum and the true one
STEP = 1e-5  # of a numerical derivative, in units of the parameters
INPUTS = {"lr": ("N", "D"), "batch": ("D",), "tau": ("DN",)}  # of each optimum
TITLES = {"lr": "learning rate", "batch": "batch size", "tau": "weight decay"}
UNITS = {"lr": "", "batch": " tokens per step", "tau": " of all steps"}


class Optimum(NamedTuple):
    """Best value of a hyperparameter, with its interval."""

    value: float
    lo: float
    hi: float


class BestHyperparameters(NamedTuple):
    """Best hyperparameters of a size and a token budget.

    A hyperparameter that the runs do not vary is None. weight_decay is for the best learning rate
    and batch size, and timescale is that of the weight decay. `loss_increase` is the expected
    relative increase of the loss because the law is uncertain, and `loss_increase_hi` its upper
    bound. `factor` is N D divided by the largest N D of the runs, at least 1.
    """

    lr: Optimum
    batch_tokens: Optimum | None
    weight_decay: Optimum | None
    timescale: Optimum | None
    loss_increase: float
    loss_increase_hi: float
    factor: float


class CellCheck(NamedTuple):
    """Check of the law at one size and one token budget.

    optimum: best hyperparameters of the runs of this cell, with the curvature of all runs.
    loss_increase: relative increase of the loss at the optimum of a law that is fitted without this
    cell. edges: hyperparameters whose optimum is outside the tested values.
    """

    n: float
    d: float
    n_runs: int
    optimum: dict[str, float]
    loss_increase: float
    edges: list[str]


@dataclass
class HyperparameterLaw:
    """Fitted law of the best hyperparameters: see `hyperparameters`."""

    names: list[str]  # fitted hyperparameters: lr, batch, tau
    params: dict[str, float]
    curvature: np.ndarray  # [h, h] of log L in the natural logs of the hyperparameters
    sigma: float  # standard deviation of log L around the surface
    n_runs: int
    cells: list[CellCheck]
    excluded: list[tuple[str, str]]  # (name, reason)
    warnings: list[str]
    largest_cell: float  # largest N D
    batch_tokens: float  # geometric mean of the tokens per step
    is_decay_independent: bool  # of the learning rate: see lm/config/optimizer_config.py
    centers: dict[str, float]  # means of log N, log D and log (D / N)
    surface: quadratic_surface.Surface
    jackknife: np.ndarray  # [number of cells, p] parameters of fits without one cell

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Return the interval of a parameter, such as "lr_N"."""
        prediction_intervals.check_level(level)
        if name not in self.params:
            raise ValueError(f"{name!r} is no parameter; allowed: {', '.join(self.params)}")

        def value(theta):
            number = parameters(theta, self.names, self.centers)[name]
            return np.array([np.log(number) if name.endswith("_k") else number])

        center, half_width = value(self.surface.theta)[0], self._half_width(value, level)[0]
        lo, hi = center - half_width, center + half_width
        return (float(np.exp(lo)), float(np.exp(hi))) if name.endswith("_k") else (lo, hi)

    def predict(self, n: float, d: float, level: float = LEVEL) -> BestHyperparameters:
        """Return the best hyperparameters of n parameters and d training tokens.

        Raises ValueError unless n and d are positive numbers.
        """
        prediction_intervals.check_level(level)
        for name, number in (("n", n), ("d", d)):
            if not option_validation.is_number(number) or number <= 0:
                raise ValueError(f"{name}={number!r} must be a number above 0")
        logs = self._log_optima(self.surface.theta, n, d)
        half_width = self._half_width(lambda theta: self._log_optima(theta, n, d), level)
        optima = [
            Optimum(*np.exp([log, log - half, log + half]).tolist()) if np.isfinite(log) else None
            for log, half in zip(logs, half_width, strict=True)
        ]
        lr, batch_tokens, weight_decay, timescale = optima
        assert lr, "every law has learning rates"
        mean, upper = self._loss_increase(n, d, level)
        factor = max(n * d / self.largest_cell, 1.0)
        return BestHyperparameters(lr, batch_tokens, weight_decay, timescale, mean, upper, factor)

    def __str__(self) -> str:
        lines = [f"{self.n_runs} runs of {len(self.cells)} pairs of size and token budget"]
        for name in self.names:
            factors = " ".join(f"{x}^{self.params[f'{name}_{x}']:.3f}" for x in INPUTS[name])
            k = self.params[f"{name}_k"]
            lines.append(f"{name}* = {k:.3g} {factors.replace('DN', '(D/N)')}{UNITS[name]}")
            for x in INPUTS[name]:
                lo, hi = self.interval(f"{name}_{x}")
                lines.append(f"  exponent of {x.replace('DN', 'D/N')}: 95% [{lo:.3f}, {hi:.3f}]")
        for j, name in enumerate(self.names):
            cost = np.expm1(0.5 * self.curvature[j, j] * np.log(2) ** 2)
            quantity = "timescale" if name == "tau" else TITLES[name]
            lines.append(f"twice or half the best {quantity}: loss {cost:+.2%}")
        increases = [cell.loss_increase for cell in self.cells]
        lines.append(
            "loss increase of a law that is fitted without a size and token budget, there: mean"
            f" {np.mean(increases):.2%}, maximum {np.max(increases):.2%}"
        )
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def _log_optima(self, theta: np.ndarray, n: float, d: float) -> np.ndarray:
        """Return the logs [4] of the best lr, tokens per step, weight decay and timescale.

        Unknown values are NaN.
        """
        logs = _log_law(theta, self.names, self.centers, n, d)
        log_batch, log_tau = logs.get("batch", np.nan), logs.get("tau", np.nan)
        used_batch = logs.get("batch", float(np.log(self.batch_tokens)))
        rate = 0.0 if self.is_decay_independent else logs["lr"]
        return np.array([logs["lr"], log_batch, used_batch - rate - log_tau - np.log(d), log_tau])

    def _half_width(self, function: Callable[[np.ndarray], np.ndarray], level: float) -> np.ndarray:
        """Return half the width of the interval of a function of the parameters.

        It is the larger of two: from the residuals, and from a jackknife over cells, which contains
        the scatter of the optima of cells around the law.
        """
        from scipy import special  # its import takes longer than that of all laws

        gradient = _gradient(function, self.surface.theta)
        variance = np.einsum("pk,pq,qk->k", gradient, self.surface.covariance, gradient)
        of_residuals = np.sqrt(variance) * special.stdtrit(self.surface.degrees, (1 + level) / 2)
        values = np.stack([function(theta) for theta in self.jackknife])
        scatter = np.sqrt((len(values) - 1) * values.var(0))
        return np.fmax(of_residuals, scatter * special.stdtrit(len(values) - 1, (1 + level) / 2))

    def _loss_increase(self, n: float, d: float, level: float) -> tuple[float, float]:
        """Return mean and upper bound of the relative loss increase at the law's optimum.

        The true optimum is normally distributed around that of the law, with the correlations of
        the residuals and the standard errors of `_half_width`.
        """

        def optimum(theta):
            return np.array(list(_log_law(theta, self.names, self.centers, n, d).values()))

        gradient = _gradient(optimum, self.surface.theta)
        covariance = gradient.T @ self.surface.covariance @ gradient
        sd = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
        widened = self._half_width(optimum, ONE_SIGMA)
        rng = np.random.default_rng(0)
        correlation = covariance / np.outer(sd, sd)
        deviations = widened * rng.multivariate_normal(np.zeros(len(sd)), correlation, N_DRAWS)
        increase = np.expm1(0.5 * np.einsum("sh,hk,sk->s", deviations, self.curvature, deviations))
        return float(increase.mean()), float(np.quantile(increase, level))


def hyperparameters(
    rows: run_table.Rows,
    n: str = "params.non_embedding",
    d: str = "tokens",
    y: str = "eval.loss",
    max_increase: float = MAX_INCREASE,
    where: run_table.Where = None,
    mixed: bool | tuple[str, ...] = False,
) -> HyperparameterLaw:
    """Fit the best learning rate, batch size and weight decay of runs that vary them.

    The loss is quadratic in the logs of the hyperparameters around their optimum. All sizes and
    token budgets share its curvature. The optimum is a power law in size and tokens. Batch size and
    weight decay are fitted if three values of them occur at one size and token budget.

    n, d, y: columns. The hyperparameters are the columns optim.lr, optim.weight_decay and tokens /
    steps. An independent weight decay is not multiplied by lr. max_increase: runs whose loss is
    more than this fraction above the best run of their size, token budget and seed are excluded.
    Weak priors (`quadratic_surface.weak_prior`) bound what the runs do not determine. Intervals are
    the larger of two: from the residuals, and from a jackknife over sizes and token budgets. Raises
    ValueError for fewer than three sizes, token budgets or learning rates, and if the loss has no
    minimum within the tested values.
    """
    option_validation.check_columns(n=n, d=d, y=y)
    option_validation.check_selection(where, mixed)
    if not option_validation.is_number(max_increase) or max_increase <= 0:
        raise ValueError(f"max_increase={max_increase!r} must be a number above 0: use 0.05")
    runs, table, is_decay_independent = tuned_runs.read_runs(rows, n, d, y, where, mixed)
    names = tuned_runs.varied_hyperparameters(runs)
    is_near, excluded = tuned_runs.near_optimum(runs, table.names, names, max_increase)
    runs = runs.select(is_near)
    centers = {x: float(logs.mean()) for x, logs in _log_inputs(runs.n, runs.d).items()}
    rows_of_surface = _surface_rows(runs, names, centers)
    surface = quadratic_surface.fit_surface(rows_of_surface, [TITLES[name] for name in names])
    without_cell = [
        quadratic_surface.refit_surface(rows_of_surface.select(runs.cell != cell), surface)
        for cell in range(runs.cell.max() + 1)
    ]
    law = HyperparameterLaw(
        names=names,
        params=parameters(surface.theta, names, centers),
        curvature=quadratic_surface.curvature(surface.theta, rows_of_surface.n_features),
        sigma=surface.sigma,
        n_runs=len(runs.n),
        cells=[
            _check_cell(runs, rows_of_surface, cell, names, theta)
            for cell, theta in enumerate(without_cell)
        ],
        excluded=table.excluded + excluded,
        warnings=list(table.warnings),
        largest_cell=float((runs.n * runs.d).max()),
        batch_tokens=float(np.exp(runs.hyperparameters["batch"].mean())),
        is_decay_independent=is_decay_independent,
        centers=centers,
        surface=surface,
        jackknife=np.stack(without_cell),
    )
    law.warnings += _list_warnings(law)
    return law


def parameters(
    theta: np.ndarray, names: Sequence[str], centers: Mapping[str, float]
) -> dict[str, float]:
    """Return the parameters of the law by name. theta has the logs of the optima at the centers."""
    values = {}
    for name, (log_center, *slopes) in _split(theta, names).items():
        by_input = dict(zip(INPUTS[name], map(float, slopes), strict=True))
        log_k = log_center - sum(slope * centers[x] for x, slope in by_input.items())
        values[f"{name}_k"] = float(np.exp(log_k))
        values |= {f"{name}_{x}": slope for x, slope in by_input.items()}
    return values


def _log_law(
    theta: np.ndarray, names: Sequence[str], centers: Mapping[str, float], n: float, d: float
) -> dict[str, float]:
    """Return the log of the optimum of each hyperparameter."""
    inputs = _log_inputs(n, d)
    return {
        name: log_center
        + sum(s * (inputs[x] - centers[x]) for x, s in zip(INPUTS[name], slopes, strict=True))
        for name, (log_center, *slopes) in _split(theta, names).items()
    }


def _log_inputs(n: Any, d: Any) -> dict[str, Any]:
    """Return the logs of the inputs of the optima. n, d: numbers or arrays."""
    return {"N": np.log(n), "D": np.log(d), "DN": np.log(d) - np.log(n)}


def _split(theta: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the parameters of the optimum of each hyperparameter."""
    values = quadratic_surface.exponents(theta, [len(INPUTS[name]) + 1 for name in names])
    return dict(zip(names, values, strict=True))


def _gradient(function: Callable[[np.ndarray], np.ndarray], theta: np.ndarray) -> np.ndarray:
    """Return the derivatives [p, k] of a function with k values."""
    steps = STEP * np.eye(len(theta))
    return np.stack([(function(theta + s) - function(theta - s)) / (2 * STEP) for s in steps])


def _surface_rows(
    runs: tuned_runs.TunedRuns, names: Sequence[str], centers: Mapping[str, float]
) -> quadratic_surface.SurfaceRows:
    """Return the rows of the surface, with centered features."""
    inputs = _log_inputs(runs.n, runs.d)
    features = [
        np.stack([np.ones(len(runs.n)), *(inputs[x] - centers[x] for x in INPUTS[name])], 1)
        for name in names
    ]
    x = np.stack([runs.hyperparameters[name] for name in names], 1)
    return quadratic_surface.SurfaceRows(runs.log_loss, x, features, runs.cell_and_seed)


def _check_cell(
    runs: tuned_runs.TunedRuns,
    rows: quadratic_surface.SurfaceRows,
    cell: int,
    names: Sequence[str],
    theta: np.ndarray,
) -> CellCheck:
    """Compare the optimum of the runs of a cell with a law that is fitted without it."""
    is_in_cell = runs.cell == cell
    subset = rows.select(is_in_cell)
    deviation = quadratic_surface.cell_optimum(theta, subset)
    log_optimum = (subset.x - quadratic_surface.distances(theta, subset))[0] + deviation
    curvature = quadratic_surface.curvature(theta, rows.n_features)
    edges = [
        TITLES[name]
        for name, log, tested in zip(names, log_optimum, subset.x.T, strict=True)
        if np.ptp(tested) > 0 and not tested.min() < log < tested.max()
    ]
    return CellCheck(
        n=float(runs.n[is_in_cell][0]),
        d=float(runs.d[is_in_cell][0]),
        n_runs=int(is_in_cell.sum()),
        optimum=dict(zip(names, np.exp(log_optimum).tolist(), strict=True)),
        loss_increase=float(np.expm1(0.5 * deviation @ curvature @ deviation)),
        edges=edges,
    )


def _list_warnings(law: HyperparameterLaw) -> list[str]:
    """Return the reasons not to trust the law."""
    warnings = [
        f"N = {cell.n:.4g}, D = {cell.d:.4g}: the best {' and '.join(cell.edges)} is outside the"
        " tested values"
        for cell in law.cells
        if cell.edges
    ]
    missing = [TITLES[name] for name in INPUTS if name not in law.names]
    if missing:
        warnings.append(
            f"the runs do not vary {' and '.join(missing)}: the law holds for their value only"
        )
    return warnings
