"""What the commands print: plans, progress and tables."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

import lm.standing
from lm import config

console = Console()


def say(text: str) -> None:
    """A line as it is: nothing in it is taken for markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def piece(text: str, style: str = "") -> None:
    """A part of a line as it is, at once."""
    console.print(text, style=style or None, end="", markup=False, highlight=False, soft_wrap=True)


def table(lines: list[dict[str, str]], title: str = "") -> None:
    """Dicts of equal keys as a table, the keys its head; on a narrow screen no row is broken."""
    if lines:
        wide().print(_grid(lines, title), highlight=False)


def wide() -> Console:
    """A terminal as it is; a file or a pipe with room for a table."""
    if console.is_terminal:
        return console
    return Console(width=max(console.width, 160), quiet=console.quiet)


def _grid(lines: list[dict[str, str]], title: str = "") -> Table:
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(lines[0]):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        shown.add_row(*(escape(str(cell)) for cell in line.values()))
    return shown


def standing(runs: list[dict], total: dict) -> Group:
    """A line a run and one of the whole, of lm.standing's dicts."""
    lines = [
        {
            "run": run["name"],
            "status": run["status"],
            "step": f"{run['step']:,} of {run['steps']:,}" if run["steps"] else "",
            "loss": _maybe(run["loss"], "{:.3f}"),
            "tokens/s": _maybe(run["tokens_per_second"], "{:,.0f}"),
            "of peak": _maybe(run["peak_share"], "{:.0%}"),
            "trained": seconds(run["seconds"]),
            "left": "" if run["seconds_left"] is None else seconds(run["seconds_left"]),
            "saved at": _maybe(run["checkpoint"], "{:,}"),
            "where": run["where"],
            "attempts": run["attempts"],
            "reason": run["reason"],
        }
        for run in runs
    ]
    left = total["device_hours_left"]
    stopped = f", {total['stopped']} stopped early" if total["stopped"] else ""
    words = (
        f"{total['done']} of {total['runs']} runs done{stopped}, {total['share']:.0%} of the FLOPs;"
        f" device-hours: {total['device_hours_used']:.2f} used"
        + ("" if left is None else f", {left:.2f} left")
    )
    return Group(_grid(lines), ProgressBar(total=1.0, completed=total["share"], width=60), words)


def _maybe(value, form: str) -> str:
    return "" if value is None else form.format(value)


def plan(costs: list[dict], finished: set[str]) -> None:
    """A line a run: shape, exact counts, cost; and the sum of what is left."""
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
    left = [cost for cost in costs if cost["name"] not in finished]
    if left:
        say(
            f"{len(left)} of {len(costs)} runs left: {sum(c['flops'] for c in left):.2e} FLOPs,"
            f" about {seconds(sum(c['seconds'] for c in left))} of training"
        )
    if shared := sum(cost.get("flops_shared", 0.0) for cost in costs):
        whole = shared + sum(cost["flops"] for cost in costs)
        say(f"branches share {shared:.2e} FLOPs: {shared / whole:.0%} less than runs of their own")


def evaluation(row: dict) -> None:
    """A row of evals.jsonl, each number with its standard error."""
    lines = [
        {"": name, "value": f"{row[name]:.4f}", "standard error": f"{row[se]:.4f}"}
        for name in row
        if (se := name.replace("loss.", "loss_se.") if "loss." in name else f"{name}_se") in row
    ]
    table(lines)


def tasks(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the metrics of each task, with its chance accuracy: see exam.sit."""
    heads = ("accuracy_bytes", "p_right", "bits_per_byte", "token_accuracy", "keystrokes_saved",
             "edit_distance", "chrf")  # fmt: skip
    lines = []
    for name, metrics in results.items():
        if "accuracy" not in metrics:
            continue  # no example fits into a row
        mine = {metric: numbers["value"] for metric, numbers in metrics.items()}
        shown = name if len(name) < 30 else f"...{name[-27:]}"
        error = metrics["accuracy"]["se"]
        line = {"task": shown, "n": str(mine["n"]), "chance": f"{mine['chance']:.3g}"}
        line["accuracy"] = f"{mine['accuracy']:.3f} ± {error:.3f}"
        for head in heads:
            words = head.replace("accuracy_bytes", "by byte").replace("_", " ")
            line[words] = f"{mine[head]:.3f}" if head in mine else ""
        line["cut, out"] = f"{mine['n_cut']}, {mine['n_left_out']}"
        lines.append(line)
    table([{k: v for k, v in one.items() if any(o[k] for o in lines)} for one in lines])


def preparing(source: str, documents: int, n_bytes: int, share: float) -> None:
    """Progress of the text that is being prepared, on one line; share of its parts done, 0 to 1."""
    if console.is_terminal:
        full = round(24 * share)
        bar = "━" * full + "╌" * (24 - full)
        what = f"{documents:,} documents, {n_bytes / 1e6:,.1f} MB"
        line = f"{bar} {share:4.0%}  {what}  {source}"[: console.width - 1]
        console.print(line.ljust(console.width - 1), markup=False, highlight=False, end="\r")


def epochs(times: dict[str, float]) -> None:
    """How often the text of each source is seen."""
    say("text seen at most: " + ", ".join(f"{s} {n:.2g} times" for s, n in times.items()))


def seconds(value: float) -> str:
    """0:42, 3:05 or 2:03:05."""
    minutes, second = divmod(round(value), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Bars:
    """A context manager: a progress bar a run; where there is no terminal, a line at times."""

    def __init__(self):
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
        )
        self.bars: dict[str, TaskID] = {}
        self.spoke = 0.0

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def started(self, run: config.Run) -> None:
        """Opens the bar of a run."""
        self.bars[run.name] = self.progress.add_task(run.name, total=run.steps, what="compiling")

    def stepped(self, run: config.Run, row: dict) -> None:
        """Moves the bar to a row of metrics."""
        left = (run.steps - row["step"]) * run.data.batch_size * run.data.seq_len
        what = (
            f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            f"  {row['peak_share']:.0%} of peak  {seconds(left / row['tokens_per_second'])} left"
        )
        self.progress.update(self.bars[run.name], completed=row["step"], what=what)
        if not self.live and (time.monotonic() - self.spoke > 10 or row["step"] == run.steps):
            self.spoke = time.monotonic()
            say(f"{run.name}  step {row['step']} of {run.steps}  {what}")

    def ended(self, run: config.Run, reason: str) -> None:
        """Closes the bar of a run; says why, if it did not reach its end."""
        if reason:
            self.progress.update(self.bars[run.name], what=reason)
            self.note(f"{run.name}: {reason}")

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Standing:
    """A context manager: where the runs of a folder stand, again and again, on a terminal."""

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
        """Shows it anew."""
        if self.live.is_started:
            runs = lm.standing.runs(self.folder)
            self.live.update(standing(runs, lm.standing.total(runs)))
