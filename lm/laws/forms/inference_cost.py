"""Best parameters and tokens of a model by the cost of its training and of its inference.

Legend: N parameters, D training tokens, D_inf inference tokens, L loss, S parameter vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, option_validation, prediction_intervals
from lm.laws.forms import compute_optimal

N_GRID = 2001  # values of N per search
N_SEARCHES = 3  # each search refines the interval around the minimum of the previous search
MAX_SIZE_FACTOR = 1e6  # largest searched N, relative to the smallest possible N
TRAINING_FLOPS = 6.0  # per parameter and token
INFERENCE_FLOPS = 2.0


@dataclass
class InferenceAllocation:
    """Model of least total FLOPs for its loss, or of least loss for its total FLOPs."""

    n: float
    d: float
    loss: float
    training_flops: float
    inference_flops: float
    n_interval: tuple[float, float]
    d_interval: tuple[float, float]
    # Fraction of the total FLOPs that this model saves against the model of least training FLOPs
    # for the same loss.
    saving: float

    @property
    def tokens_per_param(self) -> float:
        """D* / N*."""
        return self.d / self.n

    @property
    def flops(self) -> float:
        """FLOPs of training and inference."""
        return self.training_flops + self.inference_flops

    def __str__(self) -> str:
        n_bounds, d_bounds = (
            prediction_intervals.format_interval(*interval)
            for interval in (self.n_interval, self.d_interval)
        )
        return (
            f"L = {self.loss:.4g}: N* = {self.n:.4g}{n_bounds}, D* = {self.d:.4g}{d_bounds}, "
            f"{self.tokens_per_param:.3g} tokens per parameter; training "
            f"{self.training_flops:.4g} and inference {self.inference_flops:.4g} FLOPs, "
            f"{self.saving:.0%} less in total than the model of least training FLOPs"
        )


def inference_allocation(
    law: fit.Fit | Mapping[str, float],
    inference_tokens: float,
    loss: float | None = None,
    flops: float | None = None,
    level: float = 0.95,
) -> InferenceAllocation:
    """Return the N and D of least training and inference FLOPs, 6 N D + 2 N D_inf.

    This is the objective of Sardana et al. (2024, arXiv:2401.00448). law: a fit or a
    `given` law of chinchilla or overtrained, or a dict of E, A, B, alpha, beta. inference_tokens:
    D_inf, tokens processed during the lifetime of the model. Give either `loss`, the wanted loss,
    or `flops`, the budget of training and inference. level: level of the intervals.

    Raises ValueError for a law of another form, for a loss at or below E, and for a law of runs on
    one line of N and D, which does not determine N*.
    """
    if (loss is None) == (flops is None):
        raise ValueError("give either loss= (the wanted loss) or flops= (the total budget)")
    prediction_intervals.check_level(level)
    if not (option_validation.is_number(inference_tokens) and inference_tokens >= 0):
        raise ValueError(f"inference_tokens={inference_tokens!r} must be a number of at least 0")
    given_target = {"flops": flops} if loss is None else {"loss": loss}
    option_validation.check_positive(**given_target)
    params, draws = _parameters(law)
    target = float(loss if loss is not None else flops or 0.0)
    if loss is not None and target <= params["E"]:
        raise ValueError(
            f"loss={loss} must be above E = {params['E']:.4g}, the loss of infinite N and D: pass a"
            " higher loss"
        )
    search = _cheapest if flops is None else _lowest_loss
    n, d = (float(v[0]) for v in search(_stack(params, {}), target, inference_tokens))
    reached = float(
        params["E"] + params["A"] * n ** -params["alpha"] + params["B"] * d ** -params["beta"]
    )
    intervals = [(float("nan"), float("nan"))] * 2
    if draws:
        stacked = _stack(params, draws)
        if flops is None:
            stacked = {k: v[stacked["E"] < target] for k, v in stacked.items()}
        percentiles = [50 * (1 - level), 50 * (1 + level)]
        sizes_and_tokens = search(stacked, target, inference_tokens)
        intervals = [
            (float(lo), float(hi))
            for lo, hi in (np.percentile(v, percentiles) for v in sizes_and_tokens)
        ]
    plain_n, plain_d = (float(v[0]) for v in _cheapest(_stack(params, {}), reached, 0.0))
    total = _total_flops(n, d, inference_tokens)
    return InferenceAllocation(
        n,
        d,
        reached,
        TRAINING_FLOPS * n * d,
        INFERENCE_FLOPS * n * inference_tokens,
        intervals[0],
        intervals[1],
        1 - total / _total_flops(plain_n, plain_d, inference_tokens),
    )


def _total_flops(n: Any, d: Any, inference_tokens: float) -> Any:
    return TRAINING_FLOPS * n * d + INFERENCE_FLOPS * n * inference_tokens


def _parameters(law: fit.Fit | Mapping[str, float]) -> tuple[dict[str, float], fit.Ensemble]:
    """Return E, A, B, alpha and beta of a law, and their draws."""
    if not isinstance(law, fit.Fit):
        option_validation.check_coefficients(law)
    params: dict[str, float] = dict(law.params if isinstance(law, fit.Fit) else law)
    draws = dict(law.ensemble) if isinstance(law, fit.Fit) else {}
    if isinstance(law, fit.Fit):
        compute_optimal.check_split_is_known(law)
    if "beta" not in params and "alpha" in params:
        params["beta"] = params["alpha"]
        draws |= {"beta": draws["alpha"]} if "alpha" in draws else {}
    params.setdefault("E", 0.0)
    option_validation.check_coefficients(params)
    names = ("E", "A", "B", "alpha", "beta")
    return {name: float(params[name]) for name in names}, {
        name: draws[name] for name in names if name in draws
    }


def _stack(params: Mapping[str, float], draws: fit.Ensemble) -> dict[str, np.ndarray]:
    """Return each parameter as an array [S]: its draws, or its value."""
    n_draws = max((len(v) for v in draws.values()), default=1)
    return {name: draws.get(name, np.full(n_draws, value)) for name, value in params.items()}


def _cheapest(
    p: dict[str, np.ndarray], loss: float, inference_tokens: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return N and D, each [S], of least FLOPs at a loss."""
    smallest = (p["A"] / (loss - p["E"])) ** (1 / p["alpha"])

    def tokens(n: np.ndarray) -> np.ndarray:
        rest = loss - p["E"][:, None] - p["A"][:, None] * n ** -p["alpha"][:, None]
        return (p["B"][:, None] / np.maximum(rest, 1e-300)) ** (1 / p["beta"][:, None])

    n = _minimize_over_size(
        lambda n: np.log(_total_flops(n, tokens(n), inference_tokens)),
        smallest * (1 + 1e-9),
        smallest * MAX_SIZE_FACTOR,
    )
    return n, tokens(n[:, None])[:, 0]


def _lowest_loss(
    p: dict[str, np.ndarray], flops: float, inference_tokens: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return N and D, each [S], of least loss at a total budget."""
    largest = flops / (INFERENCE_FLOPS * inference_tokens + TRAINING_FLOPS)  # one training token

    def tokens(n: np.ndarray) -> np.ndarray:
        return (flops - INFERENCE_FLOPS * n * inference_tokens) / (TRAINING_FLOPS * n)

    def losses(n: np.ndarray) -> np.ndarray:
        column = {name: v[:, None] for name, v in p.items()}
        terms = column["B"] * np.maximum(tokens(n), 1e-300) ** -column["beta"]
        return column["A"] * n ** -column["alpha"] + terms

    high = np.full(len(p["E"]), largest)
    n = _minimize_over_size(losses, np.minimum(1.0, high), high)
    return n, tokens(n)


def _minimize_over_size(
    function: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return the N of the lowest value of a function of N [S, grid], by repeated log grids."""
    fractions = np.linspace(0, 1, N_GRID)
    logs = [np.log(low), np.log(high)]
    for _ in range(N_SEARCHES):
        grid = logs[0][:, None] + fractions * (logs[1] - logs[0])[:, None]
        best = function(np.exp(grid)).argmin(1)
        rows = np.arange(len(grid))
        logs = [grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, N_GRID - 1)]]
    return np.exp(0.5 * (logs[0] + logs[1]))
