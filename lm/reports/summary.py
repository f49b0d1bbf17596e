"""Summary of a sweep: runs, fitted laws, prediction, headline and table columns.

    sweep = summary.load_summary("runs/quickstart")
    state, text = summary.headline(sweep)
    lines = summary.summary_table(sweep.rows, sweep.prediction)     # final table, as text

A sweep is a directory of runs with the files sweep.json, plan.json and prediction.json. Each of the
three files may be missing.
"""

import datetime
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm.laws import comparability, estimation
from lm.laws.forms import isoflop, power_laws
from lm.reports.audit import prediction_audit, prediction_times, verdict_rounding
from lm.reports.plots import elements, style
from lm.runs import filesystem, records, run_selection, status, task_results
from lm.runs.integrity import run_notes, sweep_files, sweep_fingerprint

MIN_SIZES = 3  # of a law of size, which has three parameters


@dataclass
class SweepSummary:
    """Records and fits of a sweep."""

    path: Path
    rows: list[dict]  # one per run of the sweep that has started
    missing: list[str]  # names of the runs that have not started
    facts: dict  # sweep.json
    prediction: dict | None  # prediction.json, None if it contains no prediction
    refused: str  # reason for a missing prediction, "" if unknown
    plan: list[dict]  # plan.json: planned cost of each run
    fit: Any  # law of the runs of the prediction, else of the largest token budget, or None
    refusal: str  # reason for a missing fit
    laws: dict[str, tuple[Any, str]]  # result of fit_all_laws
    others: list[dict]  # runs in the folder that are not part of the sweep
    notes: list[str]  # sentences about other runs, unreadable runs and damaged lines
    fingerprint: str  # of records and code, from before the records were loaded

    @functools.cached_property
    def finished(self) -> list[dict]:
        """Finished runs with a size and a held-out loss, sorted by size."""
        return run_selection.finished_with(self.rows, records.N_PARAMS, records.LOSS)

    @functools.cached_property
    def without_trunks(self) -> list[dict]:
        """All runs except trunk runs."""
        return run_selection.without_trunks(self.rows)

    @functools.cached_property
    def metrics(self) -> dict[str, list[dict]]:
        """{name of run: its log steps}."""
        return {row["name"]: records.load_metrics(row["dir"]) for row in self.rows}

    @functools.cached_property
    def invalid_results(self) -> dict[str, str]:
        """Return {result: reason} of the results that are marked as invalid in any run."""
        marks = (row.get("invalid_results", {}) for row in self.rows)
        return {result: reason for mark in marks for result, reason in mark.items()}

    @functools.cached_property
    def audit_links(self) -> list[Any]:
        """Links of the audit of the prediction, without repeated fits."""
        return prediction_audit.audit_prediction(self.path, should_refit=False)

    @functools.cached_property
    def loss_column(self) -> str:
        """Column of the loss in figures and laws: in bits per byte if tokenizers differ."""
        return comparability.loss_column(self.rows)

    @property
    def target(self) -> dict | None:
        """Row of the predicted run, None before it starts."""
        return next((row for row in self.rows if elements.is_target(row, self.prediction)), None)

    @property
    def measured(self) -> float | None:
        """Result of the predicted run, None before it is done."""
        row = self.target or {}
        value = row.get(self.prediction["y"]) if self.prediction else None
        return value if row.get("status") == "done" and records.is_finite(value) else None


def load_summary(sweep_dir) -> SweepSummary:
    """Load a sweep and fit its laws.

    Raises ValueError if the directory contains neither runs nor sweep.json.
    """
    path = filesystem.open_path(sweep_dir)
    fingerprint = sweep_fingerprint.fingerprint_sweep(path)
    facts, prediction = sweep_files.read_sweep(path), sweep_files.read_prediction(path)
    plan, _ = _load_plan(path)
    loaded = records.load_folder(path)
    rows = [with_current_cost(row) for row in loaded.rows]
    if not rows and not facts:
        raise ValueError(f"{path} contains no runs. Pass the directory of a sweep: runs/quickstart")
    started = {row["name"] for row in rows}
    unreadable = {folder.relative_to(path).as_posix() for folder in loaded.unreadable}
    fit, refusal = _prediction_law(rows, prediction)
    return SweepSummary(
        path=path,
        rows=rows,
        missing=[
            name
            for name in facts.get("runs", ())
            if name not in started and name.partition("/")[2] not in unreadable
        ],
        facts=facts,
        prediction=_valid_prediction(prediction, rows),
        refused=prediction.get("refused", ""),
        plan=plan,
        fit=fit,
        refusal=refusal,
        laws=fit_all_laws(run_selection.without_trunks(rows)),
        others=loaded.others,
        notes=_notes(path, loaded, prediction),
        fingerprint=fingerprint,
    )


def load_notes(sweep_dir) -> list[str]:
    """Return sentences about the runs, lines and files of a sweep that are left out or damaged."""
    path = filesystem.open_path(sweep_dir)
    return _notes(path, records.load_folder(path), sweep_files.read_prediction(path))


def _notes(path: Path, loaded: records.FolderRuns, prediction: Mapping) -> list[str]:
    """Return the sentences of `load_notes`. prediction: content of prediction.json."""
    problems = _load_plan(path)[1] + _missing_prediction(loaded, prediction)
    return run_notes.folder_notes(loaded) + problems


def _load_plan(path: Path) -> tuple[list[dict], list[str]]:
    """Return the planned costs, and a sentence if plan.json or sweep.json is missing or damaged."""
    try:
        return sweep_files.read_plan(path), sweep_files.describe_missing_files(path)
    except ValueError as error:
        return [], [f"{error}. The planned cost is not shown"]


def _missing_prediction(loaded: records.FolderRuns, prediction: Mapping) -> list[str]:
    """Return a sentence if the predicted run has started and prediction.json is missing."""
    targets = [row["name"] for row in loaded.rows if row.get("is_prediction_target")]
    if prediction or not targets:
        return []
    return [f"prediction.json is missing, and {targets[0]} has started: its prediction is unknown"]


def _valid_prediction(prediction: dict, rows: list[dict]) -> dict | None:
    """Return a stored prediction without tasks that are marked as invalid, None without a value."""
    if not records.is_finite(prediction.get("value")):
        return None
    invalid = {result for row in rows for result in row.get("invalid_results", {})}
    tasks = prediction.get("tasks", {})
    valid_tasks = {task: tasks[task] for task in tasks if f"task.{task}" not in invalid}
    return prediction | {"tasks": valid_tasks} if len(valid_tasks) < len(tasks) else prediction


def _prediction_law(rows, prediction: Mapping) -> tuple[Any, str]:
    """Fit the law of the runs that the prediction used, or of the largest token budget.

    Return (fit, "") or (None, reason).
    """
    columns = {key: prediction[key] for key in ("x", "y")} if prediction else {}
    columns = columns or {"y": comparability.loss_column(rows)}
    selected = run_selection.largest_token_budget(rows).rows
    names = prediction.get("runs") or [
        row["name"] for row in selected if not row.get("is_prediction_target")
    ]
    # The fit excludes unfinished runs and lists them with a reason.
    runs = [row for row in rows if row["name"] in names or row["status"] != "done"]
    finished = run_selection.finished_with(runs, records.N_PARAMS, columns["y"])
    n_sizes = len({row[records.N_PARAMS] for row in finished})
    if n_sizes < MIN_SIZES:
        return None, (
            f"a law of size needs finished runs of at least {MIN_SIZES} sizes besides the predicted"
            f" run, and {MIN_SIZES + 1} for an interval. Finished sizes: {n_sizes}"
        )
    return fit_law(runs, **columns)


def with_current_cost(row: dict) -> dict:
    """Return a row in which tokens, FLOPs and seconds are those of the last log step.

    Before the end of a run, facts.json contains the planned cost. The row of a finished run is
    returned unchanged.
    """
    if row["status"] == "done":
        return row
    last = (records.load_metrics(row["dir"]) or [{}])[-1]
    costs = {key: last.get(key, 0) for key in (records.TOKENS, records.FLOPS, "seconds")}
    return row | costs


def fit_all_laws(rows) -> dict[str, tuple[Any, str]]:
    """Fit every law that a sweep may determine. Return {name: (fit, "") or (None, reason)}.

    The names are "compute", "size and tokens" and "isoFLOP".
    """
    y = comparability.loss_column(rows)
    joint_refusal = run_selection.refuse_joint_law(rows)
    # A law that is refused needs no intervals, which require most of the time.
    fit_joint = functools.partial(estimation.try_fit, power_laws.chinchilla, rows, y=y)
    joint, refusal = fit_joint(bootstrap=0)
    if joint and joint.max_off_line_factor is not None:
        joint_refusal = "all runs have the same relation of N and D: vary tokens per size"
    if joint:
        joint, refusal = (None, joint_refusal) if joint_refusal else fit_joint()
    return {
        "compute": fit_compute_law(rows),
        "size and tokens": (joint, refusal),
        "isoFLOP": estimation.try_fit(isoflop.isoflop, rows, y=y),
    }


def fit_compute_law(rows) -> tuple[Any, str]:
    """Fit the loss against compute. Return (fit, "") or (None, reason).

    If the sizes have several token budgets, the law is fitted to the runs of least loss for their
    compute. With equal tokens in all runs, compute is proportional to size and the law is refused.
    """
    y = comparability.loss_column(rows)
    finished = run_selection.finished_with(rows, records.FLOPS, y)
    tokens = [row[records.TOKENS] for row in finished if records.is_finite(row.get(records.TOKENS))]
    if len(tokens) > 1 and min(tokens) >= run_selection.MIN_BUDGET_RATIO * max(tokens):
        count = style.format_si(max(tokens))
        reason = f"all runs have {count} tokens, so compute depends on the size alone"
        return None, f"{reason}: see the law of size"
    if not run_selection.largest_token_budget(finished).is_complete:
        rows = run_selection.compute_frontier(rows, y)
    return fit_law(rows, x=records.FLOPS, y=y)


def fit_law(rows, x=records.N_PARAMS, y=records.LOSS) -> tuple[Any, str]:
    """Fit a power law of one input. Return (fit, "") or (None, reason)."""
    return estimation.try_fit(power_laws.power, rows, x=x, y=y)


def headline(sweep: SweepSummary) -> tuple[str, str]:
    """Return the state of the prediction ("held", "missed" or "open") and its explanation."""
    prediction, measured = sweep.prediction, sweep.measured
    if not prediction:
        n_done = sum(row["status"] == "done" for row in sweep.rows)
        reason = sweep.refused or sweep.refusal
        n_runs = len(sweep.rows) + len(sweep.missing)
        text = f"Runs done: {n_done} of {n_runs}. No prediction was stored"
        return "open", f"{text}: {reason}." if reason else f"{text}."
    value, lo, hi = elements.predicted_interval(prediction)
    has_interval = records.is_finite(lo) and records.is_finite(hi)
    digits = verdict_rounding.count_digits(measured, lo, hi) if measured and has_interval else 4
    predicted = style.format_prediction(value, lo, hi)
    if digits > verdict_rounding.MIN_DIGITS:
        predicted = f"{value:#.{digits}g} [{lo:#.{digits}g}, {hi:#.{digits}g}]"
    text = f"The law of {len(prediction['runs'])} other runs predicted {predicted} for"
    text += f" {prediction['target']}. {prediction_times.describe_order(prediction, sweep.rows)}"
    if measured is None:
        status = sweep.target["status"] if sweep.target else "not started"
        return "open", f"{text} The run has no result yet: {status}."
    error = task_results.standard_error(sweep.target or {}, prediction["y"])
    text += f" The result is {format_measurement(Measurement(measured, error), digits)},"
    text += f" {relative_error(measured, value)} the prediction"
    if not has_interval:
        return "open", f"{text}. The prediction has no interval to compare the result with."
    is_inside = lo <= measured <= hi
    verdict = "✓ inside" if is_inside else "✗ outside"
    text += f": {verdict} its own {prediction['level']:.0%} interval."
    return "held" if is_inside else "missed", text


def status_name(row: Mapping) -> str:
    """Return the status of a run, in which lost is interrupted or crashed."""
    return status.lost_state(dict(row)) if row["status"] == "lost" else row["status"]


def format_time(text: str) -> str:
    """Format an ISO time in UTC: 2026-11-29 02:17 UTC. Return other text unchanged."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return str(text)
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else text


def relative_error(measured: float, value: float) -> str:
    """Format the deviation of a measured value from a predicted value: 0.49% below."""
    return f"{100 * abs(measured / value - 1):.2f}% {'above' if measured > value else 'below'}"


class Measurement(NamedTuple):
    """A result with its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Column:
    """Table column of runs: a function that reads the value of a row, and its format."""

    title: str
    value: Callable[[Mapping], Any]  # None if the row has no value
    format: Callable[[Any], str] = str
    sort_key: Callable[[Mapping], Any] | None = None  # None to sort by value

    def text(self, row: Mapping) -> str:
        """Return the formatted value of a row, "" if it has none."""
        value = self.value(row)
        return "" if value is None else self.format(value)


def plain_column(title: str, key: str, format: Callable[[Any], str]) -> Column:
    """Return a column of numbers without standard errors, stored as `key`."""
    return Column(title, lambda row: row[key] if records.is_finite(row.get(key)) else None, format)


def measured_column(title: str, key: str, scale=1, digits=4) -> Column:
    """Return a column of results with their standard errors, both multiplied by `scale`."""

    def read(row: Mapping) -> Measurement | None:
        """Return the scaled result of a row, None if it has none."""
        if not records.is_finite(row.get(key)):
            return None
        return Measurement(scale * row[key], scale * task_results.standard_error(row, key))

    return Column(title, read, lambda result: format_measurement(result, digits))


def format_measurement(result: Measurement, digits=4) -> str:
    """Format a result with its standard error, if that is not 0: 2.345 ± 0.006."""
    text = f"{result.value:#.{digits}g}"
    n_decimals = len(text.partition(".")[2])
    return f"{text} ± {result.standard_error:.{n_decimals}f}" if result.standard_error else text


def summary_table(rows, prediction=None) -> list[dict[str, str]]:
    """Return the final table of a sweep: {column: text} per run, all with the same columns.

    prediction: content of prediction.json, or None. It adds the column "predicted loss".
    """
    lines = []
    for row in rows:
        line = {column.title: column.text(row) for column in RUN_COLUMNS[:N_FINAL_COLUMNS]}
        if prediction and records.is_finite(prediction.get("value")):
            text = style.format_prediction(*elements.predicted_interval(prediction))
            line["predicted loss"] = text if elements.is_target(row, prediction) else ""
        lines.append(line)
    return lines


def run_columns(rows) -> list[Column]:
    """Return the columns that have a value in at least one row.

    They are RUN_COLUMNS and a column for the loss on each source.
    """
    sources = elements.source_names(elements.source_columns(rows))
    losses = [measured_column(f"loss on {name}", column) for column, name in sources.items()]
    columns = [*RUN_COLUMNS, *losses]
    return [column for column in columns if any(column.text(row) for row in rows)]


def format_duration(seconds: float) -> str:
    """Format a duration with its two largest units: 95 -> 1 min 35 s."""
    for size, unit, small_size, small_unit in UNITS:
        if seconds >= size:
            n_small = seconds % size // small_size
            return f"{seconds // size:.0f} {unit} {n_small:.0f} {small_unit}"
    return f"{seconds:.3g} s"


# (seconds per unit, unit, seconds per smaller unit, smaller unit).
UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
RUN_COLUMNS = (
    Column("run", elements.short_run_name, sort_key=lambda row: row.get(records.N_PARAMS, 0)),
    Column("status", status_name),
    plain_column("parameters", "params.total", "{:,}".format),
    plain_column("without embeddings", records.N_PARAMS, "{:,}".format),
    plain_column("tokens", records.TOKENS, style.format_si),
    measured_column("loss", records.LOSS),
    measured_column("bits per byte", "eval.bits_per_byte"),
    measured_column("words completed (%)", "eval.completion", 100, 3),
    plain_column("FLOPs", records.FLOPS, style.power_of_ten),
    plain_column("time", "seconds", format_duration),
    plain_column("width", "model.d_model", str),
    plain_column("depth", "model.n_layers", str),
    plain_column("learning rate", "optim.lr", "{:.3g}".format),
    plain_column("batch", "data.batch_size", str),
    plain_column("devices", "devices", str),
)
N_FINAL_COLUMNS = 8  # the final table of a sweep has the first of RUN_COLUMNS
COST_COLUMNS = (
    plain_column("tokens", records.TOKENS, style.format_si),
    plain_column("FLOPs", records.FLOPS, style.power_of_ten),
    plain_column("time", "seconds", format_duration),
)
