"""Write the records of a run to its directory, and load the runs below a folder as rows.

    runs/quickstart/100K/
        config.json       every field of the run, as lm/config.py declares it
        facts.json        format, status, counts, FLOPs, devices, versions, corpus
        metrics.jsonl     one line per log step: attempt, step, tokens, flops, loss, ...
        evals.jsonl       one line per evaluation: attempt, step, loss, bits_per_byte, ...
        events.jsonl      one line per other event: damaged, skipped, rewound, spike
        tokenizer.json    the tokenizer; no file for bytes
        checkpoints/      written by lm/checkpoint.py
        tensorboard/      the metrics for TensorBoard
    runs/quickstart/      beside its runs: sweep.json, plan.json, prediction.json, report.html

status is running, done, diverged, failed (an error), or lost: ended by a signal or with its
machine. Starting a lost run again continues it. JSON files are replaced atomically. JSONL files
only grow: after a restart the line of the last attempt counts, and an incomplete last line is
ignored. The folder may be in a bucket (lm/storage.py).

Of several processes of one run only the primary writes: see `Writer`.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from lm import config, guard, storage

# Format of a run directory, the field "format" of facts.json. Version 0.1 wrote none.
FORMAT = 2
# Fields that change where and how a run is computed and observed, but not what it learns.
FREE = (
    *("dir", "log_every", "checkpoint_every", "keep_every", "keep_best", "predict", "wandb"),
    *("resume", "stall_seconds", "data.cache", "data.copies", "optim.nonfinite"),
    *("mesh.data", "mesh.fsdp", "mesh.expert", "mesh.sequence", "mesh.tensor", "mesh.rules"),
    *("model.attention", "model.remat", "model.unroll", "model.loss_chunks"),
    *("optim.accumulate",),
    *("eval.every", "eval.n_sequences", "eval.n_completions"),
    *("eval.tasks", "eval.tasks_every", "eval.too_long"),
)
OVER = ("done", "diverged")  # values of status after which a run does not continue
GROWING = ("metrics.jsonl", "evals.jsonl", "events.jsonl", "checkpoints/proofs.jsonl")


@dataclasses.dataclass(frozen=True)
class Writer:
    """The writer of one run's records. Only the primary process writes; the others do nothing."""

    folder: Path
    is_primary: bool = True

    def write_facts(self, **facts) -> None:
        """Add facts to facts.json, or replace them."""
        if self.is_primary:
            write_facts(self.folder, **facts)

    def append(self, name: str, row: dict) -> None:
        """Append a line to a JSONL file of the run."""
        if self.is_primary:
            append(self.folder / name, row)

    def event(self, attempt: int, step: int, name: str, words: str) -> None:
        """Append an event to events.jsonl."""
        if self.is_primary:
            event(self.folder, attempt, step, name, words)

    def settle(self) -> None:
        """Order the lines of the JSONL files."""
        if self.is_primary:
            settle(self.folder)


def folder(run: config.Run) -> Path:
    """Return the directory of a run."""
    return storage.at(run.dir) / run.name


def read_config(path: str | Path) -> config.Run:
    """Load the run of a directory, which may have been moved since the run was started.

    Raises ValueError if it is not a run directory, or has the format of another version.
    """
    path = storage.at(path)
    file = path / "config.json"
    if not file.exists():
        raise ValueError(
            f"{path} is not a run directory: config.json is missing. Pass a directory below runs/"
        )
    check_format(path)
    run = config.from_dict(read_json(file))
    if not str(path).endswith(run.name):
        raise ValueError(f"{path} contains the run {run.name}: its path must end with that name")
    run.dir = str(path).removesuffix(run.name) or "."
    return run


def check_format(path: Path) -> None:
    """Raise ValueError if a run directory was written by version 0.1, or by a later format."""
    facts = read_facts(path)
    if facts and facts.get("format") != FORMAT:
        version = facts.get("code.version", "0.1")
        raise ValueError(
            f"{path} was written by version {version}, format={facts.get('format')}: this version"
            f" reads format={FORMAT}. Use that version, or start a run with a new name"
        )


def compare(run: config.Run) -> None:
    """Raise ValueError that names each field in which the run on disk differs, if there is one."""
    path = folder(run) / "config.json"
    if not path.exists():
        return
    check_format(path.parent)
    new, old = config.flatten(run), config.flatten(config.from_dict(read_json(path)))
    changed = [
        f"{knob}={old[knob]!r}, now {value!r}"
        for knob, value in new.items()
        if knob not in FREE and old[knob] != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} was started with {'; '.join(changed)}: choose a new name, or in a"
            " sweep continue with the stored config by --adopt"
        )


def start(run: config.Run, facts: dict) -> int:
    """Prepare the run directory for another attempt, and return its number, from 1."""
    compare(run)
    path = folder(run)
    path.mkdir(parents=True, exist_ok=True)
    settle(path)
    write_json(path / "config.json", config.to_dict(run))
    attempt = read_facts(path).get("attempts", 0) + 1
    write_facts(path, format=FORMAT, attempts=attempt, status="running", reason="", **facts)
    return attempt


def knobs(run: config.Run) -> dict:
    """Return the fields that determine the weights of a run: all but FREE and the name."""
    return {k: v for k, v in config.flatten(run).items() if k not in FREE and k != "name"}


def sync(path: Path) -> None:
    """Flush the JSONL files to disk, so that they survive a power failure."""
    for name in GROWING:
        storage.sync(path / name)


def settle(path: Path) -> None:
    """Order the lines of the JSONL files, before an attempt and after the run has ended."""
    for name in GROWING:
        storage.settle(path / name)


def read_facts(path: Path) -> dict:
    """Load facts.json, a flat dict; empty before the first start."""
    file = storage.at(path) / "facts.json"
    return read_json(file) if file.exists() else {}


def write_facts(path: Path, **facts) -> None:
    """Add facts to facts.json, or replace them."""
    write_json(storage.at(path) / "facts.json", read_facts(path) | facts)


def append(path: Path, row: dict) -> None:
    """Append a line to a JSONL file."""
    storage.append(path, _dumps(row))


def event(path: Path, attempt: int, step: int, name: str, words: str) -> None:
    """Append an event to events.jsonl: damaged, nonfinite, skipped, rewound, spike, ..."""
    row = {"attempt": attempt, "step": step, "event": name, "words": words}
    append(path / "events.jsonl", row)


def events(path: str | Path) -> list[dict]:
    """Load the events of a run in order."""
    return list(_parsed(storage.at(path) / "events.jsonl"))


def metrics(path: str | Path) -> list[dict]:
    """Load the metrics of a run by step, from the last attempt that logged each step."""
    return lines(storage.at(path) / "metrics.jsonl")


def evals(path: str | Path) -> list[dict]:
    """Load the evaluations of a run by step, from the last attempt that made each."""
    return lines(storage.at(path) / "evals.jsonl")


def attempts(path: str | Path, before: int) -> list[dict]:
    """Load the last metrics row of each attempt before the given one."""
    last = {row["attempt"]: row for row in _parsed(storage.at(path) / "metrics.jsonl")}
    return [row for number, row in sorted(last.items()) if number < before]


def extend_evals(path: str | Path, step: int, results: dict) -> None:
    """Add results to the evaluation of a step, by a line that replaces the older one."""
    old = {row["step"]: row for row in evals(path)}.get(step, {"attempt": 0, "step": step})
    append(Path(path) / "evals.jsonl", old | results)


def rows(path: str | Path) -> list[dict]:
    """Load every run below `path` as a flat dict, smallest model first.

    Keys: "name", "dir", every field ("optim.lr"), every fact ("params.total", "tokens", "flops",
    "status", "seconds", ...) and the last evaluation ("eval.loss", "eval.loss_se", ...), or the
    best evaluation of a run with eval.patience.
    """
    runs = []
    for file in storage.find(storage.at(path), "config.json"):
        facts, evaluations = read_facts(file.parent), evals(file.parent)
        fields = config.flatten(config.from_dict(read_json(file)))
        final = [row for row in evaluations if row["step"] == facts.get("ends_at")]
        last_rows = (final or evaluations)[-1:]
        last = {f"eval.{k}": v for row in last_rows for k, v in row.items()}
        status = facts.get("status", "lost")
        if status == "running" and not guard.is_alive(file.parent):
            status = "lost"  # the process was killed before it could write its status
        runs.append(fields | facts | last | {"status": status, "dir": str(file.parent)})
    return sorted(runs, key=lambda row: (row.get("params.non_embedding", 0), row["name"]))


def is_finished(run: config.Run) -> bool:
    """Return True if the run is done or has diverged."""
    return read_facts(folder(run)).get("status") in OVER


def read_json(path: Path) -> dict:
    """Load a JSON file. Raises ValueError that names the file if it is not JSON."""
    try:
        return json.loads(storage.at(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_json(path: Path, value: dict) -> None:
    """Replace a JSON file atomically: a reader sees the old file or the new file."""
    storage.write(storage.at(path), _dumps(value, indent=1) + "\n")


def _dumps(value, indent=None) -> str:
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value):
    """Replace NaN and infinities, which JSON does not have, by their names."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lines(path: Path) -> list[dict]:
    """Load the rows of a JSONL file by step, the last row of the last attempt for each step."""
    by_step: dict[int, dict] = {}
    for row in _parsed(path):
        old = by_step.get(row["step"], row)
        if row.get("attempt", 0) >= old.get("attempt", 0):
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _parsed(path: Path) -> Iterator[dict]:
    """Yield the rows of a JSONL file that have a step.

    Other lines are ignored: an incomplete line after a crash is written again by the next attempt.
    """
    for line in storage.lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row
