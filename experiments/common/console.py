"""Console output of the commands: cost estimates and tables."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.cells import cell_len
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.common import cli
from lm.config import schema
from lm.runs import short_names, task_results


class CommandConsole(Console):
    """Console whose command ends with status 141 when the reader of its output ends."""

    def __init__(self, **options):
        super().__init__(**options)
        if self.is_dumb_terminal and "width" not in options:
            self.size = shutil.get_terminal_size()  # rich assumes 80 columns if TERM=dumb

    def on_broken_pipe(self) -> NoReturn:
        """End the command without a message, as a program that is stopped by SIGPIPE."""
        self.quiet = True
        # Python flushes stdout at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(cli.EXIT_BROKEN_PIPE)


console = CommandConsole()

# Task metric -> column title in the table of task results.
TASK_METRICS = {
    "acc_norm": "acc_norm",
    "accuracy_tokens": "accuracy per token",
    "accuracy_equal": "accuracy, equal tokens",
    "margin": "margin (nats)",
    "accuracy_bytes": "accuracy per byte",
    "p_right": "p(correct)",
    "bits_per_byte": "bits per byte",
    "token_accuracy": "token accuracy",
    "keystrokes_saved": "keystrokes saved",
}
# Metric of generated answers -> column title in a second table, where values have standard errors.
ANSWER_METRICS = {
    "said_exactly": "exact match",
    "normalized_match": "normalized match",
    "f1": "F1",
    "number_match": "number match",
    "edit_distance": "edit distance",
    "chrf": "chrF",
    "bleu": "BLEU",
}
MAX_TASK_NAME = 36
MAX_WIDTH = 1000  # of a table in a file or pipe, in characters
COLUMN_GAP = "  "
# Columns of the status in the order in which a narrow terminal drops them.
STATUS_DROP = (
    "host",
    "attempts",
    "MFU",
    "training time",
    "checkpoint",
    "tokens/s",
    "training loss",
)
FORECAST_TITLE = "Forecasts of the final held-out loss, nats per token"


def print_line(text: str) -> None:
    """Print a line of plain text, without markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_sentence(text: str) -> None:
    """Print plain text, wrapped at spaces on a terminal and in one line otherwise."""
    is_one_line = not console.is_terminal
    console.print(text, markup=False, highlight=False, soft_wrap=is_one_line)


def print_fragment(text: str, style: str = "") -> None:
    """Print a part of a line of plain text at once."""
    console.print(text, style=style or None, end="", markup=False, highlight=False, soft_wrap=True)


def table(lines: list[dict[str, str]], title: str = "", drop_first: Sequence[str] = ()) -> None:
    """Print dicts with equal keys as a table that fits the terminal: see `_grid`."""
    if lines:
        wide_console().print(_grid(lines, title, drop_first), highlight=False)


def wide_console() -> Console:
    """Return a console that is wide enough for tables, also for files and pipes."""
    if console.is_terminal:
        return console
    return CommandConsole(width=max(console.width, MAX_WIDTH), quiet=console.quiet)


def _grid(lines: list[dict[str, str]], title: str = "", drop_first: Sequence[str] = ()) -> Group:
    """Return a table with one row per dict that fits the terminal, without truncated numbers.

    On a narrow terminal, whole columns are dropped: those of drop_first in this order, then the
    last columns. A line below the table names them. Text of the first column is folded if it alone
    is too wide. Files and pipes get all columns. Empty columns are not shown.
    """
    lines = [{name: str(cell) for name, cell in line.items()} for line in lines]
    first, *others = lines[0]
    names = [first, *(name for name in others if any(line[name] for line in lines))]
    widths = {name: _column_width(name, [line[name] for line in lines]) for name in names}
    limit, dropped = wide_console().width, []
    titled = {name: max(width, cell_len(name)) for name, width in widths.items()}
    if sum(titled.values()) + len(COLUMN_GAP) * (len(titled) - 1) <= limit:
        widths = titled  # the titles need no second line
    order = [name for name in drop_first if name in names[1:]]
    order += [name for name in reversed(names[1:]) if name not in order]
    for name in order:
        if sum(widths.values()) + len(COLUMN_GAP) * (len(widths) - 1) <= limit:
            break
        del widths[name]
        dropped.append(name)
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name, width in widths.items():
        is_first = name == first
        grid.add_column(
            name,
            justify="left" if is_first else "right",
            width=min(width, limit),
            overflow="fold",
        )
    for line in lines:
        grid.add_row(*(escape(line[name]) for name in widths))
    shown = [name for name in names if name in dropped]
    note = [f"not shown at {limit} columns: {', '.join(shown)}"] if shown else []
    return Group(grid, *(Text(text, style="dim") for text in note))


def _column_width(name: str, cells: Sequence[str]) -> int:
    """Return the width of a column: its longest cell, or the longest word of its title."""
    return max(map(cell_len, [*cells, *name.split()]))


def status_view(runs: list[dict], progress: dict) -> Group:
    """Return a table of the status of every run, a progress bar and totals.

    runs, progress: see status.run_statuses and status.sweep_progress. A second table has the
    entries "forecast" of runs, see experiments/status.py. A line below the table describes each run
    that has stopped.
    """
    lines = [
        {
            "run": run["name"],
            "status": run["state"],
            "step": f"{run['step']:,} of {run['steps']:,}" if run["steps"] else "",
            "training loss": _format_optional(run["loss"], "{:.3f}"),
            "held-out loss": _format_optional(run["heldout_loss"], "{:.3f}"),
            "tokens/s": _format_optional(run["tokens_per_second"], "{:,.0f}"),
            "MFU": _format_optional(run["mfu"], "{:.0%}"),
            "training time": format_duration(run["seconds"]),
            "time left": (
                "" if run["seconds_left"] is None else format_duration(run["seconds_left"])
            ),
            "checkpoint": _format_optional(run["checkpoint"], "{:,}"),
            "host": run["where"],
            "attempts": run["attempts"],
        }
        for run in runs
    ]
    reasons = [Text(line) for line in filter(None, map(describe_stop, runs))]
    totals = [
        f"runs done: {progress['done']} of {progress['runs']}",
        f"FLOPs done: {progress['share']:.0%}",
        f"device-hours used: {progress['device_hours_used']:.2f}",
    ]
    if progress["device_hours_left"] is not None:
        totals.append(f"device-hours left: {progress['device_hours_left']:.2f}")
    bar = ProgressBar(total=1.0, completed=progress["share"], width=60)
    forecasts = [_forecast_line(run) for run in runs if run.get("forecast")]
    tables = [_grid(lines, drop_first=STATUS_DROP)] if lines else []
    tables += [_grid(forecasts, FORECAST_TITLE)] if forecasts else []
    bars = [Padding(bar, 0)] if console.is_terminal else []  # Padding ends the line of the bar
    return Group(*tables, *reasons, *bars, *totals)


def describe_stop(run: dict) -> str:
    """Return a line about a run that has stopped and the step at which it resumes, else ""."""
    text = f"{run['name']}: {run['state']}"
    if run["state"] in ("interrupted", "crashed", "failed"):
        text += f", resumes at step {run['checkpoint'] or 0:,}"
    reason = f": {run['reason'].splitlines()[0]}" if run["reason"] else ""
    return text + reason if reason or text.count(",") else ""


def _forecast_line(run: dict) -> dict[str, str]:
    """Return the line of a run in the table of forecasts."""
    forecast = run["forecast"]
    return {
        "run": run["name"],
        "step": f"{forecast['step']:,} of {run['steps']:,}",
        "forecast": f"{forecast['value']:.3f}",
        "95% interval": f"{forecast['lo']:.3f} to {forecast['hi']:.3f}",
        "model": forecast["model"].replace("baseline", "simple"),
        "simple forecast": f"{forecast['baseline']:.3f}",
        "curve": "unexpected" if forecast["is_flagged"] else "expected",
    }


def _format_optional(value, template: str) -> str:
    return "" if value is None else template.format(value)


def print_plan(costs: list[dict], finished: set[str]) -> None:
    """Print the shape, parameter counts and cost of each run, and the cost of the pending runs.

    costs: rows of cost.estimate_cost. finished: names of runs.
    """
    lines = [
        {
            "run": cost["name"],
            "width": cost["d_model"],
            "depth": cost["n_layers"],
            "heads": cost["n_heads"],
            "parameters": f"{cost['params_total']:,}",
            "without embeddings": f"{cost['params_non_embedding']:,}",
            "tokens": f"{cost['tokens']:,}",
            "FLOPs": f"{cost['flops']:.2e}",
            "expected time": ("done" if cost["name"] in finished else _expected_duration([cost])),
        }
        for cost in costs
    ]
    table(lines)
    pending = [cost for cost in costs if cost["name"] not in finished]
    if pending:
        print_line(f"pending runs: {len(pending)} of {len(costs)}")
        print_line(f"training FLOPs: {sum(cost['flops'] for cost in pending):.2e}")
        print_line(f"expected training time: {_expected_duration(pending)}")
    shared = sum(cost.get("flops_shared", 0.0) for cost in costs)
    if shared:
        separate = shared + sum(cost["flops"] for cost in costs)
        print_line(
            f"FLOPs shared by cooldown branches: {shared:.2e},"
            f" {shared / separate:.0%} less than separate runs"
        )


def _expected_duration(costs: list[dict]) -> str:
    """Return the expected time of runs, "unknown" if that of a run is None."""
    seconds = [cost["seconds"] for cost in costs]
    return "unknown" if None in seconds else format_duration(sum(seconds))


def evaluation(row: dict) -> None:
    """Print the metrics of an evaluation that have a standard error."""
    lines = []
    sources = [name.partition(".")[2] for name in row if name.startswith("loss.")]
    names = short_names.shorten_sources(sources)
    for name, value in row.items():
        metric, dot, source = name.partition(".")
        error = row.get(f"{metric}_se{dot}{source}")
        if error is not None and metric != "task":
            line = {
                "metric": f"{metric}{dot}{names.get(source, source)}",
                "value": f"{value:.4f}",
                # The error of a single document is stored as 0. Completion may have an error of 0.
                "standard error": f"{error:.4f}" if error or metric == "completion" else "unknown",
            }
            lines.append(line)
    table(lines)


def tasks(results_by_task: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the metrics of each task, its best baseline, and the metrics of generated answers.

    results_by_task: {task: {metric: {"value", "se"}}}, see task_eval.evaluate_tasks. For a stored
    evaluation, it is the value of task_results.task_results. Minimal pairs have a line per
    phenomenon; their paradigms are counted only.
    """
    means = {name.partition("#")[0] for name, r in results_by_task.items() if "n_paradigms" in r}
    shown = {
        name: results
        for name, results in results_by_task.items()
        if "n_paradigms" in results or name.partition("#")[0] not in means
    }
    lines, answer_lines = [], []
    for name, results in shown.items():
        short_name = _short_task_name(name)
        line = {
            "task": short_name,
            "n": _task_cell(results, "n", "{:.0f}"),
            "chance": _task_cell(results, "chance", "{:.3g}"),
            "best baseline": _baseline_cell(results, "accuracy"),
            "accuracy": _task_cell(results, "accuracy", "{:.3f} ± {:.3f}"),
        }
        for metric, title in TASK_METRICS.items():
            line[title] = _task_cell(results, metric, "{:.3f}")
        line["truncated"] = _task_cell(results, "n_truncated", "{:.0f}")
        line["skipped"] = _task_cell(results, "n_skipped", "{:.0f}")
        lines.append(line)
        if "edit_distance" in results:
            cells = {
                title: _task_cell(results, metric, "{:.3f} ± {:.3f}")
                for metric, title in ANSWER_METRICS.items()
            }
            for metric in ("chrf", "bleu"):
                title = f"{ANSWER_METRICS[metric]} of the baseline"
                cells[title] = _baseline_cell(results, metric)
            answer_lines.append({"generated answers of task": short_name} | cells)
    for rows in (lines, answer_lines):
        filled = [title for title in rows[0] if any(row[title] for row in rows)] if rows else []
        table([{title: row[title] for title in filled} for row in rows])
    if n_paradigms := len(results_by_task) - len(shown):
        print_line(f"not shown: {n_paradigms} paradigms of minimal pairs")


def _short_task_name(name: str) -> str:
    """Return a short name of a task, truncated to MAX_TASK_NAME characters."""
    name = short_names.shorten_task(name)
    return name if len(name) <= MAX_TASK_NAME else f"{name[: MAX_TASK_NAME - 3]}..."


def _baseline_cell(results: dict[str, dict[str, float]], metric: str) -> str:
    """Return the name and the score of the best baseline as text, "" without any."""
    name, score = task_results.select_baseline(results, metric)
    return "" if name == task_results.CHANCE else f"{name} {score:.3g}"


def _task_cell(results: dict[str, dict[str, float]], metric: str, template: str) -> str:
    """Return the value of a metric and its standard error as text, "" if it is missing."""
    result = results.get(metric)
    return template.format(result["value"], result.get("se", 0.0)) if result else ""


def write_json_lines(path: str, rows: list[dict]) -> None:
    """Write one JSON object per line, and print the name of the file."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    Path(path).write_text("".join(lines), encoding="utf-8")
    print_line(f"generated answers: {len(rows)}, written to {path}")


def print_text(runs: list[schema.Run]) -> None:
    """Print the documents of each prepared source, and the conversations that do not fit a row.

    Notes on the preparation follow, such as few held-out documents. Runs with the same text are
    printed once.
    """
    from lm.data import corpus, dataset
    from lm.data.tokenization import run_tokenizer

    lines = []
    for run in runs:
        text = dataset.open_dataset(run_tokenizer.training_data(run), run.seed)
        for source, manifest in text.manifests.items():
            n_train, n_heldout = manifest.documents["train"], manifest.documents["heldout"]
            lines.append(f"{source}: {n_train:,} training documents, {n_heldout:,} held out")
        for source, counts in dataset.packing_stats(text).items():
            if counts["n_cut"] or counts["n_left_out"]:
                lines.append(
                    f"{source}: of {counts['n_documents']:,} documents, {counts['n_cut']:,} are"
                    f" truncated and {counts['n_left_out']:,} dropped, because they are longer than"
                    f" data.seq_len={run.data.seq_len}"
                )
        lines += corpus.corpus_notes(text.manifests)
    for line in dict.fromkeys(lines):
        print_line(line)


def print_epochs(max_epochs: dict[str, float]) -> None:
    """Print the largest number of epochs over each source."""
    names = short_names.shorten_sources(list(max_epochs))
    for source, n_epochs in max_epochs.items():
        print_line(f"epochs over {names[source]}: at most {n_epochs:.2g}")


def format_duration(seconds: float) -> str:
    """Format a duration as m:ss or h:mm:ss: 0:42, 3:05 or 2:03:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
