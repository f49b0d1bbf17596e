"""Progress of training runs and of the preparation of text, and the live status of a sweep."""

import time

from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.common import console
from lm.config import schema
from lm.config.schedules import batch_size_schedule
from lm.runs import status

SECONDS_PER_LINE = 10  # interval of progress lines without a terminal
BAR_WIDTH = 24  # characters
_line_times: dict[str, float] = {}  # kind of progress -> time of its last line without a terminal


def preparing(source: str, documents: int, n_bytes: int, share: float) -> None:
    """Show the progress of a source: one line of a terminal, or a line every few seconds.

    n_bytes: of the text. share: fraction of the parts of the source, 0 to 1. This function is a
    progress callback of corpus.prepare_corpus.
    """
    view, amount = console.console, f"{documents:,} documents, {n_bytes / 1e6:,.1f} MB"
    if view.is_terminal:
        n_full = round(BAR_WIDTH * share)
        bar = "━" * n_full + "╌" * (BAR_WIDTH - n_full)
        line = f"{bar} {share:4.0%}  {amount}  {source}"[: view.width - 1]
        view.print(line.ljust(view.width - 1), markup=False, highlight=False, end="\r")
    elif _is_due("preparation"):
        console.print_line(f"preparing {source}: {share:.0%}, {amount}")


def _is_due(kind: str) -> bool:
    """Return True if the last line of this kind is old enough for the next one."""
    now = time.monotonic()
    if now - _line_times.setdefault(kind, now) < SECONDS_PER_LINE:
        return False
    _line_times[kind] = now
    return True


class ProgressBars:
    """Context manager that shows a progress bar per run, or lines without a terminal."""

    def __init__(self):
        self.has_terminal = console.console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console.console,
            disable=not self.has_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.last_line_time = 0.0

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def started(self, run: schema.Run) -> None:
        """Add the bar of a run; without a terminal, print that the run begins."""
        if not self.has_terminal:
            console.print_line(f"{run.name}: begins")
        self.bars[run.name] = self.progress.add_task(run.name, total=run.steps, state="compiling")

    def stepped(self, run: schema.Run, row: dict) -> None:
        """Show a row of metrics.jsonl in the bar of its run."""
        schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
        tokens_left = schedule.count_tokens(run.steps) - schedule.count_tokens(row["step"])
        state = (
            f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            f"  {row['mfu']:.0%} MFU"
            f"  {console.format_duration(tokens_left / row['tokens_per_second'])} left"
        )
        self.progress.update(self.bars[run.name], completed=row["step"], state=state)
        is_due = time.monotonic() - self.last_line_time > SECONDS_PER_LINE
        if not self.has_terminal and (is_due or row["step"] == run.steps):
            self.last_line_time = time.monotonic()
            console.print_line(f"{run.name}  step {row['step']} of {run.steps}  {state}")

    def evaluated(self, run: schema.Run, row: dict) -> None:
        """Print the held-out loss of a row of evals.jsonl."""
        if "loss" in row:
            self.note(
                f"{run.name}  step {row['step']} of {run.steps}  held-out loss"
                f" {row['loss']:.3f} ± {row['loss_se']:.3f}"
            )

    def ended(self, run: schema.Run, reason: str) -> None:
        """Print the end of a run. reason: the reason of an early end, "" for a run that is done."""
        if reason:
            self.progress.update(self.bars[run.name], state=reason)
        if reason or not self.has_terminal:
            self.note(f"{run.name}: {reason or 'done'}")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveStatus:
    """Context manager that shows the status of the runs of a folder.

    A terminal shows a table that changes. A file or pipe gets a line whenever it differs, at most
    every SECONDS_PER_LINE.
    """

    def __init__(self, folder):
        self.folder = folder
        self.live = Live(console=console.console)
        self.last_line, self.last_line_time = "", -SECONDS_PER_LINE

    def __enter__(self):
        if console.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_):
        self.live.stop()

    def update(self) -> None:
        """Show the current status."""
        is_due = time.monotonic() - self.last_line_time >= SECONDS_PER_LINE
        if not (self.live.is_started or is_due):
            return
        runs = status.run_statuses(self.folder)
        progress = status.sweep_progress(runs)
        if self.live.is_started:
            return self.live.update(console.status_view(runs, progress))
        line = progress_line(runs, progress)
        self.last_line_time = time.monotonic()
        if line != self.last_line:
            console.print_line(line)
        self.last_line = line


def progress_line(runs: list[dict], progress: dict) -> str:
    """Return the progress of a sweep as one line: runs done, FLOPs done, and the running runs."""
    parts = [f"runs done: {progress['done']} of {progress['runs']}"]
    parts.append(f"FLOPs done: {progress['share']:.0%}")
    for run in runs:
        if run["status"] in ("running", "stuck"):
            steps = f"step {run['step']:,} of {run['steps']:,}"
            loss = "" if run["loss"] is None else f", training loss {run['loss']:.3f}"
            parts.append(f"{run['name']}: {run['state']}, {steps}{loss}")
    return "; ".join(parts)
