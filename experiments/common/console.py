"""Console output of the commands: plans, progress and tables."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from lm.config import schema
from lm.runs import status

console = Console()

# Task metric -> column head in the table of an evaluation.
TASK_METRICS = {
    "accuracy_bytes": "by byte",
    "p_right": "p right",
    "bits_per_byte": "bits per byte",
    "token_accuracy": "token accuracy",
    "keystrokes_saved": "keystrokes saved",
    "edit_distance": "edit distance",
    "chrf": "chrf",
}
MAX_TASK_NAME = 29
SECONDS_PER_LINE = 10  # interval of progress lines without a terminal


def print_line(text: str) -> None:
    """Print a line of plain text, without markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_fragment(text: str, style: str = "") -> None:
    """Print a part of a line of plain text at once."""
    console.print(text, style=style or None, end="", markup=False, highlight=False, soft_wrap=True)


def table(lines: list[dict[str, str]], title: str = "") -> None:
    """Print dicts with equal keys as a table. Rows are not wrapped on a narrow screen."""
    if lines:
        wide().print(_grid(lines, title), highlight=False)


def wide() -> Console:
    """Return a console that is wide enough for tables, also for files and pipes."""
    if console.is_terminal:
        return console
    return Console(width=max(console.width, 160), quiet=console.quiet)


def _grid(lines: list[dict[str, str]], title: str = "") -> Table:
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(lines[0]):
        grid.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in lines:
        grid.add_row(*(escape(str(cell)) for cell in line.values()))
    return grid


def status_view(runs: list[dict], total: dict) -> Group:
    """Return a table of the status of every run and a summary. Arguments: see lm/runs/status.py."""
    lines = [
        {
            "run": run["name"],
            "status": run["status"],
            "step": f"{run['step']:,} of {run['steps']:,}" if run["steps"] else "",
            "loss": _optional(run["loss"], "{:.3f}"),
            "tokens/s": _optional(run["tokens_per_second"], "{:,.0f}"),
            "of peak": _optional(run["peak_share"], "{:.0%}"),
            "trained": seconds(run["seconds"]),
            "left": "" if run["seconds_left"] is None else seconds(run["seconds_left"]),
            "saved at": _optional(run["checkpoint"], "{:,}"),
            "where": run["where"],
            "attempts": run["attempts"],
            "reason": run["reason"],
        }
        for run in runs
    ]
    summary = f"{total['done']} of {total['runs']} runs done, {total['share']:.0%} of the"
    summary += f" FLOPs; device-hours: {total['device_hours_used']:.2f} used"
    if total["device_hours_left"] is not None:
        summary += f", {total['device_hours_left']:.2f} left"
    bar = ProgressBar(total=1.0, completed=total["share"], width=60)
    return Group(_grid(lines), bar, summary)


def _optional(value, template: str) -> str:
    return "" if value is None else template.format(value)


def plan(costs: list[dict], finished: set[str]) -> None:
    """Print the shape, parameter counts and cost of each run, and the cost of the pending runs."""
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
            "expected": "done" if cost["name"] in finished else seconds(cost["seconds"]),
        }
        for cost in costs
    ]
    table(lines)
    pending = [cost for cost in costs if cost["name"] not in finished]
    if pending:
        flops = sum(cost["flops"] for cost in pending)
        duration = seconds(sum(cost["seconds"] for cost in pending))
        print_line(
            f"{len(pending)} of {len(costs)} runs left: {flops:.2e} FLOPs,"
            f" {duration} of training expected"
        )
    shared = sum(cost.get("flops_shared", 0.0) for cost in costs)
    if shared:
        separate = shared + sum(cost["flops"] for cost in costs)
        print_line(
            f"branches share {shared:.2e} FLOPs: {shared / separate:.0%} less than separate runs"
        )


def evaluation(row: dict) -> None:
    """Print the results of an evaluation that have a standard error."""
    lines = []
    for name, value in row.items():
        measure, dot, source = name.partition(".")
        error = row.get(f"{measure}_se{dot}{source}")
        if error is not None and measure != "task":
            line = {"": name, "value": f"{value:.4f}", "standard error": f"{error:.4f}"}
            lines.append(line)
    table(lines)


def tasks(task_results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the metrics of each task, with the chance accuracy: see task_eval.evaluate_tasks."""
    lines = []
    for name, results in task_results.items():
        if "accuracy" not in results:
            continue
        values = {metric: result["value"] for metric, result in results.items()}
        is_long = len(name) > MAX_TASK_NAME
        line = {
            "task": f"...{name[-27:]}" if is_long else name,
            "n": f"{values['n']:.0f}",
            "chance": f"{values['chance']:.3g}",
            "accuracy": f"{values['accuracy']:.3f} ± {results['accuracy']['se']:.3f}",
        }
        for metric, head in TASK_METRICS.items():
            line[head] = f"{values[metric]:.3f}" if metric in values else ""
        line["truncated, left out"] = f"{values['n_cut']:.0f}, {values['n_left_out']:.0f}"
        lines.append(line)
    filled = [head for head in lines[0] if any(line[head] for line in lines)] if lines else []
    table([{head: line[head] for head in filled} for line in lines])


def preparing(source: str, documents: int, n_bytes: int, share: float) -> None:
    """Show the progress of preparing a source on one line. share: fraction of its parts, 0 to 1."""
    if console.is_terminal:
        n_full = round(24 * share)
        bar = "━" * n_full + "╌" * (24 - n_full)
        amount = f"{documents:,} documents, {n_bytes / 1e6:,.1f} MB"
        line = f"{bar} {share:4.0%}  {amount}  {source}"[: console.width - 1]
        console.print(line.ljust(console.width - 1), markup=False, highlight=False, end="\r")


def epochs(times: dict[str, float]) -> None:
    """Print the largest number of epochs over each source."""
    print_line("epochs at most: " + ", ".join(f"{source} {n:.2g}" for source, n in times.items()))


def seconds(value: float) -> str:
    """Format a duration: 0:42, 3:05 or 2:03:05."""
    minutes, second = divmod(round(value), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class ProgressBars:
    """Context manager that shows a progress bar per run, or lines without a terminal."""

    def __init__(self):
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
        )
        self.bars: dict[str, TaskID] = {}
        self.last_line_time = 0.0

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def started(self, run: schema.Run) -> None:
        """Add the bar of a run."""
        self.bars[run.name] = self.progress.add_task(run.name, total=run.steps, state="compiling")

    def stepped(self, run: schema.Run, row: dict) -> None:
        """Update the bar of a run to a row of metrics."""
        tokens_left = (run.steps - row["step"]) * run.data.batch_size * run.data.seq_len
        state = (
            f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            f"  {row['peak_share']:.0%} of peak"
            f"  {seconds(tokens_left / row['tokens_per_second'])} left"
        )
        self.progress.update(self.bars[run.name], completed=row["step"], state=state)
        is_due = time.monotonic() - self.last_line_time > SECONDS_PER_LINE
        if not self.live and (is_due or row["step"] == run.steps):
            self.last_line_time = time.monotonic()
            print_line(f"{run.name}  step {row['step']} of {run.steps}  {state}")

    def ended(self, run: schema.Run, reason: str) -> None:
        """Show the reason if a run ended early."""
        if reason:
            self.progress.update(self.bars[run.name], state=reason)
            self.note(f"{run.name}: {reason}")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveStatus:
    """Context manager that shows the status of the runs of a folder on a terminal."""

    def __init__(self, folder):
        self.folder = folder
        self.live = Live(console=console)

    def __enter__(self):
        if console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_):
        self.live.stop()

    def beat(self) -> None:
        """Update the status."""
        if self.live.is_started:
            runs = status.run_statuses(self.folder)
            self.live.update(status_view(runs, status.sweep_progress(runs)))
