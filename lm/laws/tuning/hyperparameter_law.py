"""Law of the best learning rate, batch size and weight decay, as functions of size and tokens.

    lr*  = lr_k N^lr_N D^lr_D (B / B*)^lr_B     peak learning rate
    B*   = batch_k D^batch_D                    tokens per step
    tau* = tau_k (D / N)^tau_DN                 timescale of the weight decay

tau = B / (lr weight_decay D) is the number of steps over which weight decay averages the updates,
as a fraction of all steps (Wang and Aitchison 2024, arXiv:2405.13698). Its optimum is a power of
the tokens per parameter (Bergsma et al. 2025, arXiv:2505.13738). lr* and B* have the form of the
Step Law (Li et al. 2025, arXiv:2503.04715).

The fit has two steps. The first surface is the loss as a function of lr and tau. Each batch size
of a size and token budget has its own least loss there, because the loss is far from quadratic in
the batch size. The second surface is this least loss as a function of the batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lm.laws import option_validation, prediction_intervals, run_table
from lm.laws.tuning import optimum_parameters, tuned_runs, tuned_surfaces

LEVEL = 0.95
MAX_INCREASE = 0.05  # of the loss above the best run; the surface is quadratic only near it
ONE_SIGMA = 0.6827  # probability within one standard deviation of a normal distribution
N_DRAWS = 2000  # of the distance between the law's optimum and the true one
TITLES = {"lr": "learning rate", "batch": "batch size", "tau": "weight decay"}
SYMBOLS = {"N": "N", "D": "D", "B": "(B/B*)", "DN": "(D/N)"}
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


@dataclass
class HyperparameterLaw:
    """Fitted law of the best hyperparameters: see `hyperparameters`."""

    layout: optimum_parameters.Layout
    theta: np.ndarray  # [p] parameters of both surfaces
    covariance: np.ndarray  # [p, p]
    jackknife: np.ndarray  # [number of cells, p] parameters of fits without one cell
    sigma: float  # standard deviation of log L around the first surface
    degrees: int  # of freedom, the smaller of both surfaces
    n_runs: int
    cells: list[tuned_surfaces.CellCheck]
    excluded: list[tuple[str, str]]  # (name, reason)
    warnings: list[str]
    largest_cell: float  # largest N D
    is_decay_independent: bool  # of the learning rate: see lm/config/optimizer_config.py

    @property
    def names(self) -> list[str]:
        """Fitted hyperparameters: lr, batch, tau."""
        return self.layout.names

    @property
    def params(self) -> dict[str, float]:
        """Parameters of the law by name, such as lr_N."""
        return self.layout.parameters(self.theta)

    @property
    def curvature(self) -> np.ndarray:
        """Curvature [h, h] of log L in the natural logs of the hyperparameters."""
        return self.layout.curvature(self.theta)

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Return the interval of a parameter, such as "lr_N"."""
        prediction_intervals.check_level(level)
        if name not in self.params:
            raise ValueError(f"{name!r} is no parameter; allowed: {', '.join(self.params)}")

        def value(theta):
            number = self.layout.parameters(theta)[name]
            return np.array([np.log(number) if name.endswith("_k") else number])

        center, half_width = value(self.theta)[0], self._half_width(value, level)[0]
        lo, hi = center - half_width, center + half_width
        return (float(np.exp(lo)), float(np.exp(hi))) if name.endswith("_k") else (lo, hi)

    def predict(
        self, n: float, d: float, batch_tokens: float | None = None, level: float = LEVEL
    ) -> BestHyperparameters:
        """Return the best hyperparameters of n parameters and d training tokens.

        batch_tokens: tokens per step for which learning rate and weight decay are the best ones;
        None is the best batch size. Raises ValueError unless these are positive numbers.
        """
        prediction_intervals.check_level(level)
        inputs = {"n": n, "d": d}
        if batch_tokens is not None:
            inputs["batch_tokens"] = batch_tokens
        for name, number in inputs.items():
            if not option_validation.is_number(number) or number <= 0:
                raise ValueError(f"{name}={number!r} must be a number above 0")

        def log_optima(theta):
            return self._log_optima(theta, n, d, batch_tokens)

        logs, half_width = log_optima(self.theta), self._half_width(log_optima, level)
        optima = [
            Optimum(*np.exp([log, log - half, log + half]).tolist()) if np.isfinite(log) else None
            for log, half in zip(logs, half_width, strict=True)
        ]
        lr, batch, weight_decay, timescale = optima
        assert lr, "every law has learning rates"
        mean, upper = self._loss_increase(n, d, batch_tokens, level)
        factor = max(n * d / self.largest_cell, 1.0)
        return BestHyperparameters(lr, batch, weight_decay, timescale, mean, upper, factor)

    def __str__(self) -> str:
        lines = [f"{self.n_runs} runs of {len(self.cells)} pairs of size and token budget"]
        params = self.params
        for name in self.names:
            exponents = [key for key in params if key.startswith(f"{name}_") and key[-2:] != "_k"]
            symbols = [SYMBOLS[key.partition("_")[2]] for key in exponents]
            factors = " ".join(
                f"{symbol}^{params[key]:.3f}"
                for symbol, key in zip(symbols, exponents, strict=True)
            )
            lines.append(f"{name}* = {params[f'{name}_k']:.3g} {factors}{UNITS[name]}")
            for symbol, key in zip(symbols, exponents, strict=True):
                lo, hi = self.interval(key)
                lines.append(f"  exponent of {symbol.strip('()')}: 95% [{lo:.3f}, {hi:.3f}]")
        for name, curvature in zip(self.names, np.diag(self.curvature), strict=True):
            quantity = "timescale" if name == "tau" else TITLES[name]
            cost = np.expm1(0.5 * curvature * np.log(2) ** 2)
            lines.append(f"twice or half the best {quantity}: loss {cost:+.2%}")
        increases = [cell.loss_increase for cell in self.cells]
        lines.append(
            "loss increase of a law that is fitted without a size and token budget, there: mean"
            f" {np.mean(increases):.2%}, maximum {np.max(increases):.2%}"
        )
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def _log_optima(
        self, theta: np.ndarray, n: float, d: float, batch_tokens: float | None
    ) -> np.ndarray:
        """Return the logs [4] of the best lr, tokens per step, weight decay and timescale.

        Unknown values are NaN.
        """
        logs = self.layout.log_optima(theta, n, d, batch_tokens)
        log_batch, log_tau = logs.get("batch", np.nan), logs.get("tau", np.nan)
        used_batch = logs.get("batch", float(np.log(self.layout.batch_tokens)))
        if batch_tokens is not None:
            used_batch = float(np.log(batch_tokens))
        rate = 0.0 if self.is_decay_independent else logs["lr"]
        return np.array([logs["lr"], log_batch, used_batch - rate - log_tau - np.log(d), log_tau])

    def _half_width(self, function: Callable[[np.ndarray], np.ndarray], level: float) -> np.ndarray:
        """Return half the width of the interval of a function of the parameters.

        It is the larger of two: from the residuals, and from a jackknife over cells, which contains
        the scatter of the optima of cells around the law.
        """
        from scipy import special  # its import takes longer than that of all laws

        gradient = optimum_parameters.differentiate(function, self.theta)
        variance = np.einsum("pk,pq,qk->k", gradient, self.covariance, gradient)
        of_residuals = np.sqrt(variance) * special.stdtrit(self.degrees, (1 + level) / 2)
        values = np.stack([function(theta) for theta in self.jackknife])
        scatter = np.sqrt((len(values) - 1) * values.var(0))
        return np.fmax(of_residuals, scatter * special.stdtrit(len(values) - 1, (1 + level) / 2))

    def _loss_increase(
        self, n: float, d: float, batch_tokens: float | None, level: float
    ) -> tuple[float, float]:
        """Return mean and upper bound of the relative loss increase at the law's optimum.

        The true optimum is normally distributed around that of the law, with the correlations of
        the residuals and the standard errors of `_half_width`. A given batch size is not uncertain.
        """

        def optimum(theta):
            logs = self.layout.log_optima(theta, n, d, batch_tokens)
            return np.array([logs[name] for name in names])

        names = [name for name in self.names if name != "batch" or batch_tokens is None]
        gradient = optimum_parameters.differentiate(optimum, self.theta)
        covariance = gradient.T @ self.covariance @ gradient
        sd = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
        widened = self._half_width(optimum, ONE_SIGMA)
        rng = np.random.default_rng(0)
        correlation = covariance / np.outer(sd, sd)
        deviations = widened * rng.multivariate_normal(np.zeros(len(sd)), correlation, N_DRAWS)
        indices = [self.names.index(name) for name in names]
        matrix = self.curvature[np.ix_(indices, indices)]
        increase = np.expm1(0.5 * np.einsum("sh,hk,sk->s", deviations, matrix, deviations))
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

    The loss is quadratic in the logs of learning rate and timescale around their optimum at each
    batch size. The least losses of neighboring batch sizes are quadratic in its log. All sizes and
    token budgets share the curvatures. The optima are power laws in size and tokens. Batch size and
    weight decay are fitted if three values of them occur at one size and token budget.

    n, d, y: columns. The hyperparameters are the columns optim.lr, optim.weight_decay and tokens /
    steps. An independent weight decay is not multiplied by lr. max_increase: runs whose loss is
    more than this fraction above the best run of their size, token budget, batch size and seed are
    excluded. Weak priors (`quadratic_surface.weak_prior`) bound what the runs do not determine.
    Intervals are the larger of two: from the residuals, and from a jackknife over sizes and token
    budgets. Raises ValueError for fewer than three sizes, token budgets or learning rates, and if
    the loss has no minimum within the tested values.
    """
    option_validation.check_columns(n=n, d=d, y=y)
    option_validation.check_selection(where, mixed)
    if not option_validation.is_number(max_increase) or max_increase <= 0:
        raise ValueError(f"max_increase={max_increase!r} must be a number above 0: use 0.05")
    runs, table, is_decay_independent = tuned_runs.read_runs(rows, n, d, y, where, mixed)
    names = tuned_runs.varied_hyperparameters(runs)
    is_near, excluded = tuned_runs.near_optimum(runs, table.names, names, max_increase)
    runs = runs.select(is_near)
    fitted = tuned_surfaces.fit_surfaces(runs, names)
    law = HyperparameterLaw(
        layout=fitted.layout,
        theta=fitted.theta,
        covariance=fitted.covariance,
        jackknife=fitted.jackknife,
        sigma=fitted.sigma,
        degrees=fitted.degrees,
        n_runs=len(runs.n),
        cells=tuned_surfaces.check_cells(runs, fitted),
        excluded=table.excluded + excluded,
        warnings=list(table.warnings),
        largest_cell=float((runs.n * runs.d).max()),
        is_decay_independent=is_decay_independent,
    )
    law.warnings += _list_warnings(law)
    return law


def _list_warnings(law: HyperparameterLaw) -> list[str]:
    """Return the reasons not to trust the law."""
    warnings = [
        f"N = {cell.n:.4g}, D = {cell.d:.4g}: the best"
        f" {' and '.join(TITLES[name] for name in cell.edges)} is outside the tested values"
        for cell in law.cells
        if cell.edges
    ]
    missing = [TITLES[name] for name in optimum_parameters.NAMES if name not in law.names]
    if missing:
        warnings.append(
            f"the runs do not vary {' and '.join(missing)}: the law holds for their value only"
        )
    return warnings
