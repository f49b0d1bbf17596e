"""Runs of a tuning sweep: their hyperparameters, and the selection of those near the best run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.laws import run_table

MIN_VALUES = 3  # sizes, token budgets, and values of a fitted hyperparameter
SAME_BUDGET = 0.02  # largest relative difference of tokens within a budget
HYPERPARAMETERS = ("lr", "batch", "tau")  # tau: timescale of the weight decay


class TunedRuns(NamedTuple):
    """Columns of the runs of a fit, arrays [n]. A cell is one size and one token budget."""

    n: np.ndarray
    d: np.ndarray
    log_loss: np.ndarray
    hyperparameters: dict[str, np.ndarray]  # logs of lr, batch and tau
    weight_decay: np.ndarray
    cell: np.ndarray  # integers from 0
    cell_and_seed: np.ndarray  # integers from 0
    group: np.ndarray  # runs of one cell, seed and batch size; integers from 0

    def select(self, is_included: np.ndarray) -> "TunedRuns":
        """Return the runs of a mask [n]."""
        return TunedRuns(
            self.n[is_included],
            self.d[is_included],
            self.log_loss[is_included],
            {name: values[is_included] for name, values in self.hyperparameters.items()},
            self.weight_decay[is_included],
            _number(self.cell[is_included]),
            _number(self.cell_and_seed[is_included]),
            _number(self.group[is_included]),
        )


def read_runs(
    rows: run_table.Rows, n: str, d: str, y: str, where: run_table.Where, mixed
) -> tuple[TunedRuns, run_table.RunTable, bool]:
    """Return the runs of rows, their table, and True for an independent weight decay.

    n, d, y: columns of parameters, tokens and loss. Raises ValueError for fewer than MIN_VALUES
    sizes or token budgets.
    """
    columns = [n, d, y, "optim.lr", "steps", "optim.weight_decay"]
    table = run_table.select_columns(
        list(rows),
        list(dict.fromkeys([*columns, "tokens"])),
        where=where,
        mixed=mixed,
        may_be_zero=("optim.weight_decay",),
    )
    is_decay_independent = _is_decay_independent(table.rows)
    runs = _tuned_runs(table, columns, is_decay_independent)
    _check_counts(runs)
    return runs, table, is_decay_independent


def _is_decay_independent(rows: Sequence[Mapping]) -> bool:
    """Return True if the weight decay of the runs is independent of the learning rate."""
    kinds = {str(row.get("optim.independent_weight_decay", False)) for row in rows}
    if len(kinds) > 1:
        raise ValueError(
            "optim.independent_weight_decay is True for some runs and False for others: select one"
            ' kind with where={"optim.independent_weight_decay": False}'
        )
    return kinds == {"True"}


def _tuned_runs(
    table: run_table.RunTable, columns: Sequence[str], is_decay_independent: bool
) -> TunedRuns:
    """Return the runs of a table. Tokens within SAME_BUDGET form one budget."""
    n, d, loss, lr, steps, decay = (table.columns[column] for column in columns)
    order = np.argsort(d)
    is_new = np.diff(np.log(d[order]), prepend=-np.inf) > np.log1p(SAME_BUDGET)
    budget = np.empty(len(d), int)
    budget[order] = np.cumsum(is_new) - 1
    log_budgets = np.bincount(budget, np.log(d)) / np.bincount(budget)
    batch = table.columns["tokens"] / steps
    with np.errstate(divide="ignore"):
        log_rate = np.zeros(len(lr)) if is_decay_independent else np.log(lr)
        log_tau = np.log(batch) - log_rate - np.log(decay) - log_budgets[budget]
    seeds = [str(row.get("seed")) for row in table.rows]
    cell = _number(np.stack([n, budget], 1))
    cell_and_seed = _number(np.stack([cell, _number(np.array(seeds))], 1))
    batch_number = np.round(np.log(batch) / np.log1p(SAME_BUDGET))
    return TunedRuns(
        n=n,
        d=np.exp(log_budgets[budget]),
        log_loss=np.log(loss),
        hyperparameters={"lr": np.log(lr), "batch": np.log(batch), "tau": log_tau},
        weight_decay=decay,
        cell=cell,
        cell_and_seed=cell_and_seed,
        group=_number(np.stack([cell_and_seed, batch_number], 1)),
    )


def varied_hyperparameters(runs: TunedRuns) -> list[str]:
    """Return the hyperparameters with three values in a cell. Raises ValueError without a rate."""
    with np.errstate(divide="ignore"):
        log_decay = np.log(runs.weight_decay)
    lr, batch = runs.hyperparameters["lr"], runs.hyperparameters["batch"]
    n_values = {
        name: max(
            len(np.unique(values[(runs.cell == cell) & np.isfinite(values)].round(2)))
            for cell in range(runs.cell.max() + 1)
        )
        for name, values in (("lr", lr), ("batch", batch), ("tau", log_decay))
    }
    if n_values["lr"] < MIN_VALUES:
        raise ValueError(
            f"a size and token budget has at most {n_values['lr']} learning rates (optim.lr): train"
            f" at least {MIN_VALUES} of them, as in configs/sweeps/tune.py"
        )
    return [name for name in HYPERPARAMETERS if n_values[name] >= MIN_VALUES]


def _check_counts(runs: TunedRuns) -> None:
    """Raise ValueError for fewer than MIN_VALUES sizes or token budgets."""
    for label, values in (("sizes", runs.n), ("token budgets", runs.d)):
        n_distinct = len(np.unique(values))
        if n_distinct < MIN_VALUES:
            raise ValueError(
                f"the runs have {n_distinct} {label}: a law of hyperparameters needs {MIN_VALUES},"
                " each with several learning rates, as in configs/sweeps/tune.py"
            )


def near_optimum(
    runs: TunedRuns, labels: Sequence[str], names: Sequence[str], max_increase: float
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Return a mask [n] of the runs near the best run of their group, and the others."""
    lowest = np.full(runs.group.max() + 1, np.inf)
    np.minimum.at(lowest, runs.group, runs.log_loss)
    increase = np.expm1(runs.log_loss - lowest[runs.group])
    has_decay = np.isfinite(runs.hyperparameters["tau"]) | ("tau" not in names)
    excluded = []
    for i in np.flatnonzero(~has_decay | (increase > max_increase)).tolist():
        reason = (
            f"loss {increase[i]:.1%} above the best run of this batch size, limit"
            f" {max_increase:.1%}"
        )
        excluded.append((labels[i], reason if has_decay[i] else "weight decay is 0"))
    return has_decay & (increase <= max_increase), excluded


def _number(labels: np.ndarray) -> np.ndarray:
    """Return the labels as integers from 0."""
    return np.unique(labels, return_inverse=True, axis=0)[1].ravel()
