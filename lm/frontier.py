"""The frontier of least loss: the envelope of learning curves, the best N and D for a budget.

Legend: C budget in FLOPs, N parameters, D tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import fit, lines, table


def envelope(
    rows: table.Rows,
    n: str = "params.non_embedding",
    y: str = "eval.loss",
    c: str = "flops",
    run: str = "run",
    hull: str = "lower",
    points: int = 1500,
    edges: str = "keep",
    where: table.Where = None,
    bootstrap: int = 1000,
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """N* = k C^exponent from learning curves: the run of least loss at each budget, approach 1.

    Rows are evaluations along runs, `n` the column whose best value is wanted (parameters, tokens,
    tokens a parameter), `c` the FLOPs spent so far. hull="lower" takes, at `points` log-spaced
    budgets, the run whose curve (linear in logs between evaluations) is lowest; hull="convex" the
    corners of the lower convex hull of all evaluations in logs, loss falling. edges="drop" leaves
    out budgets where the smallest or the largest model wins: there the best may lie beyond the
    sweep. Whole runs are resampled. Parameters: exponent, k; derived log10_k; extra["envelope"]
    holds C, n and the loss along the hull. Mid-run points under a decaying schedule lie above runs
    that end there: prefer runs of constant rate, or finals of runs of many lengths.
    """
    if hull not in ("lower", "convex") or edges not in ("drop", "keep"):
        raise ValueError(f"hull={hull!r}, edges={edges!r}: known are lower, convex; drop, keep")
    data = table.read(rows, [n, c, y], run, where)
    log_n, log_c, log_y = (np.log(data.columns[k]) for k in (n, c, y))
    if hull == "convex":
        index = _lower_hull(log_c, log_y)
        at, size, low, owner = log_c[index], log_n[index], log_y[index], data.groups[index]
    else:
        at = np.linspace(log_c.min(), log_c.max(), points)
        losses, sizes = (
            np.full((data.groups.max() + 1, points), np.inf),
            np.full((data.groups.max() + 1, points), np.nan),
        )
        for g in range(len(losses)):
            own = np.flatnonzero(data.groups == g)
            own = own[np.argsort(log_c[own])]
            losses[g] = np.interp(at, log_c[own], log_y[own], np.inf, np.inf)
            sizes[g] = np.interp(at, log_c[own], log_n[own])
        owner = losses.argmin(0)
        low, size = losses.min(0), sizes[owner, np.arange(points)]
        reached = np.isfinite(low)
        at, size, low, owner = at[reached], size[reached], low[reached], owner[reached]
    at_edge = (size <= log_n.min() + 1e-9) | (size >= log_n.max() - 1e-9)
    kept = ~at_edge if edges == "drop" else np.ones(len(at), bool)
    if len(np.unique(owner[kept])) < 2:
        raise ValueError(
            f"the envelope belongs to {len(np.unique(owner[kept]))} run(s) inside the sweep: an "
            "exponent needs 2"
        )
    hulls = [
        {
            "name": f"{data.names[int(np.flatnonzero(data.groups == g)[0])]} at {np.exp(v):.6g}",
            "run": int(g),
            c: float(np.exp(v)),
            n: float(np.exp(s)),
        }
        for v, s, g in zip(at[kept], size[kept], owner[kept], strict=True)
    ]
    result = lines.loglog(
        hulls,
        c,
        n,
        group="run",
        bootstrap=bootstrap,
        resample="runs",
        seed=seed,
        reach=reach,
        law="envelope",
    )
    result.columns["L"] = y
    result.data.excluded[:] = data.excluded
    result.extra["envelope"] = {
        "C": np.exp(at[kept]).tolist(),
        "n": np.exp(size[kept]).tolist(),
        "loss": np.exp(low[kept]).tolist(),
    }
    if edges == "keep" and at_edge.any():
        result.warnings.append(
            f"{at_edge.mean():.0%} of the envelope belongs to the smallest or largest model, "
            "where the best may lie beyond"
        )
    return result


def best(law: fit.Fit, rows: table.Rows, flops, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) of least loss by a law of N and D for each of these budgets in FLOPs.

    Unlike `allocation`, with the FLOPs that the fitted runs' own sizes take: those of a token grow
    with N as their logarithms do over `rows` (small models pay much for the vocabulary), and N is
    searched for over the sizes that were fitted and a factor of three beyond.
    """
    n, d, c = (
        np.log([table.number(row.get(k)) for row in rows])
        for k in (law.columns["N"], law.columns["D"], "flops")
    )
    per_token = np.polynomial.Polynomial.fit(n, c - d, min(2, len(np.unique(n)) - 1))
    grid = np.linspace(n.min() - np.log(3), n.max() + np.log(3), points)
    tokens = np.log(np.asarray(flops, float))[:, None] - per_token(grid)
    losses = np.asarray(law.values(law.params, np.exp(grid), np.exp(tokens)))
    index = losses.argmin(1)
    return np.exp(grid[index]), np.exp(tokens[np.arange(len(tokens)), index])


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Corners of the lower convex hull, from left to right, as far as y falls."""
    corners: list[int] = []
    for i in np.lexsort((y, x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (x[b] - x[a]) * (y[i] - y[a]) > (y[b] - y[a]) * (x[i] - x[a]):
                break
            corners.pop()
        corners.append(int(i))
    hull = np.array(corners)
    return hull[np.r_[True, np.diff(np.minimum.accumulate(y[hull])) < 0]]


@dataclass
class Allocation:
    """The best parameters and tokens for a budget, with intervals, and the law's loss there."""

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
        (a, b), (c, d) = self.n_interval, self.d_interval
        text = (
            f"C = {self.flops:.4g}: N* = {self.n:.4g} [{a:.4g}, {b:.4g}], D* = {self.d:.4g} "
            f"[{c:.4g}, {d:.4g}], "
        )
        return (
            text
            + f"{self.tokens_per_param:.3g} tokens a parameter"
            + (f"; {self.note}" if self.note else "")
        )


def allocation(
    law: fit.Fit | Mapping[str, float],
    flops: float,
    flops_per_param_token: float = 6.0,
    unique_tokens: float | None = None,
    level: float = 0.95,
) -> Allocation:
    """The N and D of least loss for a budget C = k N D, k = 6 unless given.

    For E + A N^-alpha + B D^-beta: N* = G (C/k)^(beta/(alpha+beta)), D* = (C/k) / N*, with G =
    (alpha A / (beta B))^(1/(alpha+beta)). `law` is a fit (chinchilla, overtrained, data_constrained
    with `unique_tokens`, or an isoflop or envelope fit of parameters or tokens) or a dict of E, A,
    B, alpha, beta. Raises ValueError for a law fitted on one ray of N and D, whose best split is
    not known.
    """
    product = float(flops) / flops_per_param_token
    if not product > 0:
        raise ValueError(f"flops={flops} must be a positive number")
    if isinstance(law, Mapping):
        n = float(_split(law, product))
        loss = (
            law.get("E", 0.0)
            + law["A"] * n ** -law["alpha"]
            + law["B"] * (product / n) ** -law.get("beta", law["alpha"])
        )
        nothing = (float("nan"), float("nan"))
        return Allocation(float(flops), n, product / n, nothing, nothing, float(loss))
    if law.law in ("isoflop", "envelope", "loglog"):
        star = law.predict(flops, level=level, noise=False)
        edges = [star.value, star.lo, star.hi]
        of_tokens = law.output.startswith("D")
        n, n_lo, n_hi = [product / v for v in edges] if of_tokens else edges
        d_interval = tuple(sorted((product / n_lo, product / n_hi)))
        return Allocation(
            float(flops),
            n,
            product / n,
            tuple(sorted((n_lo, n_hi))),
            d_interval,
            float("nan"),
            star.note,
        )
    if "B" not in law.params and law.law != "data_constrained":
        raise ValueError(
            f"{law.law} of {', '.join(law.inputs)} does not split a budget: fit chinchilla"
        )
    if law.ray is not None:
        raise ValueError(
            "all fitted runs lie on one line of N and D, so that the best split is not known: "
            "vary tokens a parameter"
        )
    ensemble = {
        k: np.r_[law.params[k], law.ensemble.get(k, np.full(0, np.nan))]
        for k in law.params
        if k in law.ensemble or not law.ensemble
    }
    params = {
        k: ensemble.get(k, np.full(len(next(iter(ensemble.values()))), law.params[k]))
        for k in law.params
    }
    if law.law == "data_constrained":
        if unique_tokens is None:
            raise ValueError("a data_constrained law needs unique_tokens= to allocate a budget")
        grid = np.geomspace(product**0.5 / 1e4, product**0.5 * 1e4, 4001)
        losses = law.values(
            {k: v[:, None] for k, v in params.items()},
            grid,
            product / grid,
            np.full_like(grid, unique_tokens),
        )
        n_all = grid[np.asarray(losses).argmin(1)]
    else:
        n_all = _split(params, product)
    n = float(n_all[0])
    cut = [50 * (1 - level), 50 * (1 + level)]
    draws = n_all[1:] if len(n_all) > 1 else np.array([np.nan])
    lo, hi = (float(v) for v in np.percentile(draws, cut))
    inputs = (n, product / n) if law.law != "data_constrained" else (n, product / n, unique_tokens)
    found = law.predict(*inputs, noise=False)
    return Allocation(
        float(flops),
        n,
        product / n,
        (lo, hi),
        (product / hi, product / lo),
        float(found.value),
        found.note,
    )


def _split(p: Mapping[str, Any], product: float) -> Any:
    alpha, beta = p["alpha"], p["beta"] if "beta" in p else p["alpha"]
    scale = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
    return scale * product ** (beta / (alpha + beta))
