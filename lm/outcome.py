"""What a sweep came to, as data and words: its runs, its law, what was predicted and what came.

sweep = outcome.load("runs/quickstart")
state, words = outcome.headline(sweep)
lines = outcome.table(sweep.rows, sweep.prediction)     # the table that ends a sweep, as text
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm import laws, marks, records, storage, style
from lm.marks import finite, short

Cell = tuple[str, float | str]  # what is shown, and what it sorts by: a number, or words


@dataclass
class Sweep:
    """All that is known of a sweep."""

    path: Path
    rows: list[dict]  # one a run that has started
    missing: list[str]  # names of runs that have not
    facts: dict  # sweep.json
    prediction: dict | None  # prediction.json, unless it says that there is none
    refused: str  # why there is none
    plan: list[dict]  # plan.json
    fit: Any  # the law of the runs that the prediction used, else of most tokens; or None
    refusal: str  # why there is no fit
    laws: dict[str, tuple[Any, str]]  # of the runs that ended: see `laws_of`

    @property
    def target(self) -> dict | None:
        """The row of the run that was predicted, once it has started."""
        return next((row for row in self.rows if marks.is_target(row, self.prediction)), None)

    @property
    def measured(self) -> float | None:
        """The target's result, once it is done."""
        row = self.target or {}
        value = row.get(self.prediction["y"]) if self.prediction else None
        return value if row.get("status") == "done" and finite(value) else None


def load(sweep_dir) -> Sweep:
    """Reads a sweep and fits its law; ValueError if the folder holds no runs and no sweep.json."""
    path = storage.at(sweep_dir)
    facts, plan, prediction = (
        records.read_json(path / name) if (path / name).exists() else {}
        for name in ("sweep.json", "plan.json", "prediction.json")
    )
    rows = [spent(row) for row in records.rows(path)]
    if not rows and not facts:
        raise ValueError(f"{path} holds no runs: name a sweep's folder, such as runs/quickstart")
    started = {row["name"] for row in rows}
    missing = [name for name in facts.get("runs", ()) if name not in started]
    columns = {key: prediction[key] for key in ("x", "y") if prediction}
    alike = [row["name"] for row in marks.fullest(rows)[0] if not row.get("predict")]
    used = prediction.get("runs") or alike
    chosen = [row for row in rows if row["name"] in used or row["status"] != "done"]
    fit, refusal = fit_law(chosen, **columns)
    said = prediction if "value" in prediction else None
    plan, refused = plan.get("runs", []), prediction.get("refused", "")
    every = laws_of(marks.ends(rows))
    return Sweep(path, rows, missing, facts, said, refused, plan, fit, refusal, every)


def spent(row: dict) -> dict:
    """A row with what its run has cost so far: before the end, facts say what it is to cost."""
    if row["status"] == "done":
        return row
    last = (records.metrics(row["dir"]) or [{}])[-1]
    return row | {key: last.get(key, 0) for key in ("tokens", "flops", "seconds")}


def own_flops(row: dict) -> float:
    """What a run itself has cost: a branch counts its trunk's FLOPs among its own."""
    shared = row.get("parent.flops", 0) if row.get("start.keep") == "state" else 0
    return max((row.get("flops") or 0) - (shared or 0), 0)


def laws_of(rows) -> dict[str, tuple[Any, str]]:
    """Every law that a sweep may carry -> (fit, "") or (None, why these runs do not)."""
    joint = attempt(laws.chinchilla, rows)
    if joint[0] and joint[0].max_off_line_factor is not None:
        joint = None, "the runs lie on one line of N and D: vary the tokens of a size"
    budgets = {f"{row['tokens']:.2g}" for row in marks.points(rows, style.SIZE, "tokens")}
    if joint[0] and len(budgets) < 3:
        joint = (
            None,
            f"{len(budgets)} token budgets leave E, B and beta open: three tell them apart",
        )
    return {
        "compute": fit_law(rows, x="flops"),
        "size and tokens": joint,
        "isoFLOP": attempt(laws.isoflop, rows),
    }


def fit_law(rows, x="params.non_embedding", y="eval.loss"):
    """(the law of one input, "") or (None, why there is none)."""
    return attempt(laws.power, rows, x=x, y=y)


def attempt(law: Callable, rows, **options) -> tuple[Any, str]:
    """(law(rows, **options), "") or (None, why there is none)."""
    try:
        return law(rows, **options), ""
    except ValueError as error:
        return None, str(error)


def headline(sweep: Sweep) -> tuple[str, str]:
    """("held", "missed" or "open", one or two sentences): what was predicted, and what came."""
    said, measured = sweep.prediction, sweep.measured
    if not said:
        done = sum(row["status"] == "done" for row in sweep.rows)
        why = sweep.refused or sweep.refusal
        words = f"{done} of {len(sweep.rows) + len(sweep.missing)} runs are done; nothing was "
        return "open", f"{words}predicted{': ' * bool(why)}{why}."
    value, lo, hi = marks.predicted(said)
    words = (
        f"From {len(said['runs'])} other runs, the law predicted {style.number(value)} "
        f"[{style.number(lo)}, {style.number(hi)}] for {said['target']} before it started. "
    )
    if measured is None:
        status = sweep.target["status"] if sweep.target else "not started"
        return "open", words + f"It is not measured yet: {status}."
    error = marks.error(sweep.target or {}, said["y"])
    words += f"It came out at {style.number(measured)} ± {error:.2g}, "
    words += f"{off(measured, value)} the prediction: "
    if not (finite(lo) and finite(hi)):
        return "open", words + "there was no interval to judge it by."
    state, verdict = ("held", "✓ inside") if lo <= measured <= hi else ("missed", "✗ outside")
    return state, words + f"{verdict} its own {said['level']:.0%} interval."


def off(measured: float, value: float) -> str:
    """How far from a prediction: 0.49% below."""
    return f"{100 * abs(measured / value - 1):.2f}% {'above' if measured > value else 'below'}"


def table(rows, prediction=None) -> list[dict[str, str]]:
    """The table that ends a sweep: a dict a run, the same columns in each, all text."""
    found = []
    for row in rows:
        line = {head: COLUMNS[head](row)[0] for head in SHORT}
        if prediction and "value" in prediction:
            value, lo, hi = marks.predicted(prediction)
            words = f"{style.number(value)} [{style.number(lo)}, {style.number(hi)}]"
            line["predicted loss"] = words if marks.is_target(row, prediction) else ""
        found.append(line)
    return found


def full_table(rows) -> list[dict[str, Cell]]:
    """Every run with all its columns and sources; a column that no run fills is left out."""
    named = marks.source_names(marks.source_columns(rows))
    sources = {f"loss on {name}": column for column, name in named.items()}
    columns = COLUMNS | {head: measured(column) for head, column in sources.items()}
    filled = {h: cell for h, cell in columns.items() if any(cell(row)[0] for row in rows)}
    return [{head: cell(row) for head, cell in filled.items()} for row in rows]


def duration(seconds: float) -> str:
    """95 -> 1 min 35 s: the two largest units that count."""
    for size, unit, part, smaller in UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // part:.0f} {smaller}"
    return f"{seconds:.3g} s"


def number(key: str, words: Callable[[Any], str]) -> Callable[[dict], Cell]:
    """A column of plain numbers, written by `words`."""

    def cell(row) -> Cell:
        return (words(row[key]), row[key]) if finite(row.get(key)) else ("", "")

    return cell


def measured(key: str, scale=1, digits=4) -> Callable[[dict], Cell]:
    """A column of results, each with its standard error."""

    def cell(row) -> Cell:
        if not finite(row.get(key)):
            return "", ""
        words, se = f"{scale * row[key]:#.{digits}g}", scale * marks.error(row, key)
        places = len(words.partition(".")[2])
        return (f"{words} ± {se:.{places}f}" if se else words), row[key]

    return cell


UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
# Columns of a run: what stands in the head -> row to cell.
COLUMNS = {
    "run": lambda row: (short(row), row.get("params.non_embedding", 0)),
    "status": lambda row: (row["status"], row["status"]),
    "parameters": number("params.total", "{:,}".format),
    "without embeddings": number("params.non_embedding", "{:,}".format),
    "tokens": number("tokens", style.count),
    "loss": measured("eval.loss"),
    "bits per byte": measured("eval.bits_per_byte"),
    "words completed (%)": measured("eval.completion", 100, 3),
    "FLOPs": number("flops", style.power_of_ten),
    "time": number("seconds", duration),
    "width": number("model.d_model", str),
    "depth": number("model.n_layers", str),
    "learning rate": number("optim.lr", "{:.3g}".format),
    "batch": number("data.batch_size", str),
}
SHORT = ("run", "status", "parameters", "without embeddings", "tokens", "loss", "bits per byte",
         "words completed (%)")  # fmt: skip
# What a plan says of a run, as prediction and as cost.
COSTS = {
    "tokens": number("tokens", style.count),
    "FLOPs": number("flops", style.power_of_ten),
    "time": number("seconds", duration),
}
