"""Real sweeps, divided into cheap runs to fit and more expensive runs to predict."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TASKS = ("mmlu_bpb", "hellaswag_bpb", "arc_challenge_bpb", "openbookqa_bpb")


class Setting(NamedTuple):
    """Real runs: a law, the fitted rows, and the held-out rows, more expensive than these."""

    sweep: str
    split: str
    fit_law: Callable[[list[dict]], Any]
    fitted: list[dict]
    held_out: list[dict]


def read_settings(data: Path, n_resamples: int) -> Iterator[Setting]:
    """Yield the splits of real sweeps into fitted and more expensive held-out runs.

    data: folder with published/ and real_ladder/. n_resamples: resamples of each fit.
    """
    import lm
    from lm.laws.forms import power_laws

    def joint_law(y: str) -> Callable[[list[dict]], Any]:
        return lambda rows: power_laws.chinchilla(
            rows, "params", "tokens", y, bootstrap=n_resamples
        )

    def law_of(x: str) -> Callable[[list[dict]], Any]:
        return lambda rows: power_laws.power(rows, x=x, y="loss", bootstrap=n_resamples)

    runs = [row for row in _read_rows(data / "published/chinchilla-epoch.csv") if row["in_fit"]]
    for column, limits in (("flops", (3e19, 1e20, 3e20, 1e21)), ("params", (4.5e8, 1e9, 2.5e9))):
        for limit in limits:
            split = f"{column} < {limit:g}"
            yield _split("Chinchilla", split, joint_law("loss"), runs, column, limit)
    budgets = sorted({row["isoflop_budget"] for row in runs if row["isoflop_budget"] != ""})
    best = [
        min((r for r in runs if r["isoflop_budget"] == budget), key=lambda row: row["loss"])
        for budget in budgets
    ]
    best = [
        {"name": f"{b:g}", "flops": b, "loss": r["loss"]}
        for b, r in zip(budgets, best, strict=True)
    ]
    for n_fitted in (5, 6, 7):
        split = f"best of {n_fitted} budgets"
        yield Setting("Chinchilla", split, law_of("flops"), best[:n_fitted], best[n_fitted:])
    rows = _read_rows(data / "published/olmo-ladder.csv")
    ladder = [row for row in rows if row["split"] == "train" and row["is_final"]]
    targets = [row for row in rows if row["split"] == "target" and row["is_final"]]
    for y in ("c4_loss", *TASKS):
        law = joint_law(y)
        yield _split(f"OLMo {y}", "params < 1e9", law, [*ladder, *targets], "params", 1e9)
        yield Setting(f"OLMo {y}", "16 models", law, ladder, targets)
    branches = [row for row in lm.load_runs(data / "real_ladder") if row["status"] == "done"]
    for tokens in ("1.25M", "2.5M"):
        columns = {"params": "params.non_embedding", "loss": "eval.loss"}
        branch_rows = [
            {"name": row["name"]} | {k: float(row[c]) for k, c in columns.items()}
            for row in branches
            if row["name"].endswith(f"-{tokens}")
        ]
        for limit in (3e5, 8e5, 2e6):
            split = f"params < {limit:g}"
            yield _split(f"ladder {tokens}", split, law_of("params"), branch_rows, "params", limit)


def _split(
    sweep: str,
    split: str,
    fit_law: Callable[[list[dict]], Any],
    rows: list[dict],
    column: str,
    limit: float,
) -> Setting:
    """Return the setting that fits the rows below the limit of a column."""
    fitted = [row for row in rows if row[column] < limit]
    held_out = [row for row in rows if row[column] >= limit]
    return Setting(sweep, split, fit_law, fitted, held_out)


def _read_rows(path: Path) -> list[dict]:
    """Read a CSV file. Cells that are numbers become floats."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return [{key: _parse_cell(value) for key, value in row.items()} for row in rows]


def _parse_cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
