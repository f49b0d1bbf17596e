"""Compute-optimal allocation: the best N and D of a budget.

Legend: C budget in FLOPs, N parameters, D tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, option_validation, prediction_intervals, run_table

UNKNOWN_INTERVAL = (float("nan"), float("nan"))


def best_allocation_grid(
    law: fit.Fit, rows: run_table.Rows, flops, points: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) of lowest loss by a law of N and D for each budget in FLOPs.

    flops: budgets, [n]. Return two arrays [n]. points: number of sizes in the search. The FLOPs per
    token are those of the runs in `rows`, fitted by a quadratic in log N. They replace the 6 N of
    `allocation`, because the vocabulary is a large part of a small model. N is searched over the
    sizes of the rows and a factor of three beyond.
    """
    n, d, c = (
        np.log([run_table.to_number(row.get(k)) for row in rows])
        for k in (law.columns["N"], law.columns["D"], "flops")
    )
    per_token = np.polynomial.Polynomial.fit(n, c - d, min(2, len(np.unique(n)) - 1))
    grid = np.linspace(n.min() - np.log(3), n.max() + np.log(3), points)
    tokens = np.log(np.asarray(flops, float))[:, None] - per_token(grid)
    losses = np.asarray(law.values(law.params, np.exp(grid), np.exp(tokens)))
    index = losses.argmin(1)
    return np.exp(grid[index]), np.exp(tokens[np.arange(len(tokens)), index])


@dataclass
class Allocation:
    """Best parameters and tokens of a budget, with intervals, and the loss of the law there."""

    flops: float
    n: float
    d: float
    n_interval: tuple[float, float]
    d_interval: tuple[float, float]
    loss: float
    note: str = ""

    @property
    def tokens_per_param(self) -> float:
        """D* / N*."""
        return self.d / self.n

    def __str__(self) -> str:
        n_interval, d_interval = (
            prediction_intervals.format_interval(*bounds)
            for bounds in (self.n_interval, self.d_interval)
        )
        return (
            f"C = {self.flops:.4g}: N* = {self.n:.4g}{n_interval}, "
            f"D* = {self.d:.4g}{d_interval}, "
            f"{self.tokens_per_param:.3g} tokens per parameter"
            + (f"; {self.note}" if self.note else "")
        )


def allocation(
    law: fit.Fit | Mapping[str, float],
    flops: float,
    flops_per_param_token: float = 6.0,
    unique_tokens: float | None = None,
    level: float = 0.95,
) -> Allocation:
    """Return the N and D of lowest loss for a budget C = k N D, by default with k = 6.

    law: a fit, or a dict of E, A, B, alpha, beta. A fit is of chinchilla, overtrained,
    data_constrained (with `unique_tokens`), isoflop or envelope. flops: budget C.
    flops_per_param_token: k. level: level of the intervals.

    For E + A N^-alpha + B D^-beta: N* = G (C/k)^(beta/(alpha+beta)), D* = (C/k) / N*, with G =
    (alpha A / (beta B))^(1/(alpha+beta)). Raises ValueError for a law of runs on one line of N and
    D, which does not determine N*.
    """
    prediction_intervals.check_level(level)
    option_validation.check_positive(flops=flops, flops_per_param_token=flops_per_param_token)
    if unique_tokens is not None:
        option_validation.check_positive(unique_tokens=unique_tokens)
    product = float(flops) / flops_per_param_token
    if not isinstance(law, fit.Fit):
        option_validation.check_coefficients(law)
        n = float(_best_size(law, product))
        loss = (
            law.get("E", 0.0)
            + law["A"] * n ** -law["alpha"]
            + law["B"] * (product / n) ** -law.get("beta", law["alpha"])
        )
        return Allocation(
            float(flops), n, product / n, UNKNOWN_INTERVAL, UNKNOWN_INTERVAL, float(loss)
        )
    if law.law in ("isoflop", "envelope", "log_linear"):
        return _allocate_by_line(law, flops, product, level)
    if "B" not in law.params and law.law != "data_constrained":
        raise ValueError(
            f"{law.law} of {', '.join(law.inputs)} does not split a budget: fit chinchilla"
        )
    check_split_is_known(law)
    sizes = _best_sizes(law, product, unique_tokens)
    n = float(sizes[0])
    percentiles = [50 * (1 - level), 50 * (1 + level)]
    draws = sizes[1:] if len(sizes) > 1 else np.array([np.nan])
    lo, hi = (float(v) for v in np.percentile(draws, percentiles))
    inputs = (n, product / n) if law.law != "data_constrained" else (n, product / n, unique_tokens)
    prediction = law.predict(*inputs, noise=False)
    return Allocation(
        float(flops),
        n,
        product / n,
        (lo, hi),
        (product / hi, product / lo),
        float(prediction.value),
        prediction.note,
    )


def check_split_is_known(law: fit.Fit) -> None:
    """Raise ValueError for a law of N and D whose runs do not determine the best split."""
    if law.max_off_line_factor is not None:
        raise ValueError(
            "all fitted runs lie on one line of N and D, so the best split is not known: vary the "
            "tokens per parameter"
        )
    unknown = [name for name in ("A", "B", "alpha", "beta") if name in law.undetermined]
    if unknown:
        raise ValueError(
            f"the fitted runs do not determine {', '.join(unknown)}, so the best split is not "
            "known: fit runs with at least three sizes and three token budgets"
        )


def _allocate_by_line(law: fit.Fit, flops: float, product: float, level: float) -> Allocation:
    """Return the allocation of a line of N* or D* against C."""
    best_x = law.predict(flops, level=level, noise=False)
    values = [best_x.value, best_x.lo, best_x.hi]
    is_of_tokens = law.output.startswith("D")
    n, n_lo, n_hi = [product / v for v in values] if is_of_tokens else values
    d_lo, d_hi = sorted((product / n_lo, product / n_hi))
    n_lo, n_hi = sorted((n_lo, n_hi))
    return Allocation(
        float(flops), n, product / n, (n_lo, n_hi), (d_lo, d_hi), float("nan"), best_x.note
    )


def _best_sizes(law: fit.Fit, product: float, unique_tokens: float | None) -> np.ndarray:
    """Return N* by the parameters of the law, followed by N* of each resample."""
    ensemble = {
        k: np.r_[law.params[k], law.ensemble.get(k, np.full(0, np.nan))]
        for k in law.params
        if k in law.ensemble or not law.ensemble
    }
    n_draws = len(next(iter(ensemble.values())))
    params = {k: ensemble.get(k, np.full(n_draws, law.params[k])) for k in law.params}
    if law.law != "data_constrained":
        return _best_size(params, product)
    if unique_tokens is None:
        raise ValueError("a data_constrained law needs unique_tokens= to allocate a budget")
    grid = np.geomspace(product**0.5 / 1e4, product**0.5 * 1e4, 4001)
    losses = law.values(
        {k: v[:, None] for k, v in params.items()},
        grid,
        product / grid,
        np.full_like(grid, unique_tokens),
    )
    return grid[np.asarray(losses).argmin(1)]


def _best_size(p: Mapping[str, Any], product: float) -> Any:
    alpha, beta = p["alpha"], p["beta"] if "beta" in p else p["alpha"]
    scale = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
    return scale * product ** (beta / (alpha + beta))
