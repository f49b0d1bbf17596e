"""Copies of metrics and evaluations for TensorBoard and Weights & Biases.

    trackers.check_trackers(run)                              # before any compute
    copies = trackers.Trackers(run, writer, first_step=0)
    copies.write_metrics({"step": 10, "loss": 2.5})           # train/loss
    copies.write_evaluation({"step": 10, "loss": 2.4})        # eval/loss
    copies.close("done")

Names are grouped as train/, eval/, tasks/, experts/, perf/ and time/. The x axis is the number of
steps or of tokens. Standard errors and counts remain in evals.jsonl. Copies are never read back.
"""

import importlib
import importlib.util
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from lm.config import run_files, schema
from lm.config.schedules import batch_size_schedule
from lm.runs import filesystem, records, short_names

FLUSH_SECONDS = 30.0  # time between two flushes of an event file
PROJECT = "lm-scaling"  # project in W&B, unless the environment variable WANDB_PROJECT names one
# Columns of metrics.jsonl that are x axes or constants, and those that measure speed.
AXES = ("step", "tokens", "flops", "seconds")
SPEED = ("tokens_per_second", "flops_per_second", "mfu", "input_wait")
GROUPS = ("train", "eval", "tasks", "experts", "perf", "time")


def check_trackers(run: schema.Run) -> None:
    """Check that W&B is installed and has a login, if the run uses it. Raises ValueError."""
    if not run.wandb:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "wandb=True needs the package wandb, which is not installed: run"
            " `uv sync --extra wandb`, or set wandb=False"
        )
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    wandb = importlib.import_module("wandb")  # an optional dependency
    try:
        wandb.login(verify=False)
    except wandb.errors.UsageError:
        raise ValueError(
            "wandb=True needs a login to W&B: run `wandb login`, set WANDB_MODE=offline, or set"
            " wandb=False"
        ) from None


def group_metrics(row: dict) -> dict[str, float]:
    """Return the numbers of a row of metrics.jsonl by grouped name, such as "train/loss"."""
    grouped = {}
    for name, value in row.items():
        if name in (*AXES, "attempt") or not isinstance(value, (int, float)):
            continue
        prefix, _, rest = name.partition(".")
        if prefix == "clock":
            grouped[f"time/{rest}"] = value
        elif prefix == "experts":
            grouped[f"experts/{rest}"] = value
        else:
            grouped[f"{'perf' if name in SPEED else 'train'}/{name}"] = value
    return grouped


def group_evaluation(row: dict) -> dict[str, float]:
    """Return the results of a row of evals.jsonl by grouped name.

    The loss of a source is eval/loss/SOURCE, with the short name of the source. The result of a
    task is tasks/TASK/METRIC.
    """
    sources = [name.removeprefix("loss.") for name in row if name.startswith("loss.")]
    short_sources = short_names.shorten_sources(sources)
    grouped = {}
    for name, value in row.items():
        if name.startswith("loss."):
            grouped[f"eval/loss/{short_sources[name.removeprefix('loss.')]}"] = value
        elif name.startswith("task."):
            task, _, metric = name.removeprefix("task.").rpartition(".")
            grouped[f"tasks/{short_names.shorten_task(task)}/{metric}"] = value
        elif name in ("loss", "bits_per_byte", "completion"):
            grouped[f"eval/{name}"] = value
    return grouped


class Trackers:
    """Event files of TensorBoard and, with run.wandb, a run in W&B.

    writer: writer of the records; only that of the primary process has trackers. Its run_id is
    the identifier in W&B, so that a restarted run continues its curves there, and a deleted and
    repeated run gets new ones. first_step: number of steps before this session; later events of
    older sessions are void in TensorBoard. warning: one line if W&B cannot be reached, else "".
    """

    def __init__(self, run: schema.Run, writer: records.Writer, first_step: int):
        self._schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
        self._event_files, self.warning, self._wandb_run = [], "", None
        if not writer.is_primary:
            return
        folder = records.run_dir(run) / run_files.TENSORBOARD
        first_token = self._schedule.count_tokens(first_step)
        by_steps = _EventFile(folder, first_step)
        self._event_files = [by_steps, _EventFile(folder / "by_tokens", first_token)]
        by_steps.write_config(schema.flatten(run))
        if run.wandb:
            self._wandb_run, self.warning = _open_wandb(run, writer.run_id)

    def write_metrics(self, row: dict) -> None:
        """Copy a row of metrics.jsonl. Raises OSError on a full disk."""
        self._write(group_metrics(row), row)

    def write_evaluation(self, row: dict) -> None:
        """Copy a row of evals.jsonl. Raises OSError on a full disk."""
        self._write(group_evaluation(row), row)

    def close(self, status: str) -> None:
        """Close the files and W&B, where "done" is a finished run and other states are failed."""
        for file in self._event_files:
            file.close()
        if self._wandb_run:
            self._wandb_run.summary["status"] = status
            self._wandb_run.finish(exit_code=int(status != "done"))

    def _write(self, grouped: dict[str, float], row: dict) -> None:
        """Write numbers at the step of a row and at its number of tokens."""
        axes = {"tokens": self._schedule.count_tokens(row["step"])}
        axes |= {name: row[name] for name in AXES if name in row}
        for file, axis in zip(self._event_files, ("step", "tokens"), strict=False):
            file.write(axes[axis], grouped)
        if self._wandb_run:
            # W&B refuses a step below an earlier one, as after a rewind, so the step is a column.
            self._wandb_run.log(grouped | axes)


class _EventFile:
    """Event file of TensorBoard.

    SummaryWriter of tensorboardX is not used: its thread ends on a full disk, and later its full
    queue blocks the training forever. An event file grows, so its copy in a bucket is written by
    close().
    """

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter  # slow import

        # Protocol buffers define their names at import, so a type checker does not know them.
        self._event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summary_pb2 = importlib.import_module("tensorboardX.proto.summary_pb2")
        self._folder = folder
        is_remote = filesystem.is_remote(folder)
        self._local_folder = Path(tempfile.mkdtemp()) if is_remote else folder
        self._local_folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(self._local_folder / "events"), f".{time.time_ns()}")
        session_log = self._event_pb2.SessionLog
        self._write_event(first_step, session_log=session_log(status=session_log.START))
        self._flushed = time.monotonic()
        self._last_summaries = []

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write numbers at a step. Raises OSError on a full disk."""
        value = self._summary_pb2.Summary.Value
        values = [value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._write_event(step, summary=self._summary_pb2.Summary(value=values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def write_config(self, values: dict) -> None:
        """Write the fields of a run as text and as hyperparameters. values: flat field names."""
        summaries = importlib.import_module("tensorboardX.summary")
        hyperparameters = {
            name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for name, value in values.items()
        }
        lines = [f"    {name} = {value}" for name, value in hyperparameters.items()]
        metrics = {"eval/loss": 0.0, "train/loss": 0.0}
        *first, last = summaries.hparams(hyperparameters, metrics)
        for summary in (summaries.text("config", "\n".join(lines)), *first):
            self._write_event(0, summary=summary)
        self._last_summaries = [last]

    def close(self) -> None:
        """Close the file, and copy it to a remote folder."""
        for summary in self._last_summaries:
            self._write_event(0, summary=summary)
        self._file.close()
        if self._local_folder != self._folder:
            for path in self._local_folder.iterdir():
                filesystem.write_file(self._folder / path.name, path.read_bytes())
            shutil.rmtree(self._local_folder)

    def _write_event(self, step: int, **content) -> None:
        event = self._event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._file.write_event(event)


def _open_wandb(run: schema.Run, run_id: str) -> tuple:
    """Return the run in W&B and a warning. Without a connection, W&B writes to a local folder.

    All runs are in one project, and the runs of a sweep are one group.
    """
    wandb = importlib.import_module("wandb")  # an optional dependency
    sweep, _, _ = run.name.rpartition("/")
    settings = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "group": os.environ.get("WANDB_RUN_GROUP", sweep or run.name),
        "name": run.name,
        "id": run_id,
        "resume": "allow",
        "config": schema.flatten(run),
    }
    warning = ""
    try:
        wandb_run = wandb.init(**settings)
    except wandb.errors.Error as error:
        wandb.teardown()  # releases the identifier of the run
        wandb_run = wandb.init(**settings, mode="offline")
        message = " ".join(str(error).split())
        warning = f"W&B writes to the folder wandb, to upload with `wandb sync`: {message[:200]}"
    wandb_run.define_metric("step")
    wandb_run.define_metric("tokens")
    for group in GROUPS:
        wandb_run.define_metric(f"{group}/*", step_metric="step")
    return wandb_run, warning
