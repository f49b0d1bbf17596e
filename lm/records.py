"""The run directory: how a run is written down, and how all runs of a folder are read as rows.

    runs/quickstart/100K/
        config.json       every knob of the run, as lm/config.py declares it
        facts.json        what the run is: status, counts, FLOPs, devices, versions, corpus
        metrics.jsonl     a line each log step: attempt, step, tokens, flops, loss, ...
        evals.jsonl       a line each evaluation: attempt, step, loss, bits_per_byte, ...
        events.jsonl      a line for what else happened: damaged, skipped, rewound, spike
        tokenizer.json    what its token ids mean; none for bytes
        checkpoints/      written by lm/checkpoint.py
        tensorboard/      the metrics again, for TensorBoard
    runs/quickstart/      beside its runs: sweep.json, plan.json, prediction.json, report.html

status is running, done, diverged or failed (an error),
or lost: ended from outside, by a signal or with its machine; starting it again continues it. JSON
files are replaced whole, .jsonl files only grow: after a resume the line of the last attempt
counts; a torn last line is dropped. All of it may lie in a bucket: lm/storage.py.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from lm import config, fields, guard, storage

# Config fields that affect how a run computes or is stored, not its result.
FREE = fields.fields_with("execution", config.Run)
OVER = ("done", "diverged")  # of status: nothing is left to do
GROWING = ("metrics.jsonl", "evals.jsonl", "events.jsonl", "checkpoints/proofs.jsonl")


writes = True  # False in all but the first of several processes: they read, and write nothing


def folder(run: config.Run) -> Path:
    """Where the run lives."""
    return storage.at(run.dir) / run.name


def read_config(path: str | Path) -> config.Run:
    """The run that lives in a folder, wherever the folder is now; ValueError if none does."""
    path = storage.at(path)
    file = path / "config.json"
    if not file.exists():
        raise ValueError(f"{path} is no run: it has no config.json")
    run = config.from_dict(read_json(file))
    if not str(path).endswith(run.name):
        raise ValueError(f"{path} holds the run {run.name}: keep the last folders of its path so")
    run.dir = str(path).removesuffix(run.name) or "."
    return run


def compare(run: config.Run) -> None:
    """ValueError naming each knob in which the run on disk, if any, differs; writes nothing."""
    path = folder(run) / "config.json"
    if not path.exists():
        return
    new, old = config.flatten(run), config.flatten(config.from_dict(read_json(path)))
    changed = [
        f"{knob}={old[knob]!r}, now {value!r}"
        for knob, value in new.items()
        if knob not in FREE and old[knob] != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} was started with {'; '.join(changed)}: pick a new name,"
            " or in a sweep go on as it was with --adopt"
        )


def start(run: config.Run, facts: dict) -> int:
    """Opens the run's folder for another attempt and returns its number, from 1."""
    compare(run)
    path = folder(run)
    path.mkdir(parents=True, exist_ok=True)
    settle(path)
    write_json(path / "config.json", config.to_dict(run))
    attempt = read_facts(path).get("attempts", 0) + 1
    write_facts(path, attempts=attempt, status="running", reason="", **facts)
    return attempt


def knobs(run: config.Run) -> dict:
    """The knobs by which one run's weights differ from another's: all but FREE and the name."""
    return {k: v for k, v in config.flatten(run).items() if k not in FREE and k != "name"}


def sync(path: Path) -> None:
    """Waits until all lines written so far would outlive a power cut."""
    for name in GROWING if writes else ():
        storage.sync(path / name)


def settle(path: Path) -> None:
    """Puts the files that grow in order: before an attempt, and once the run has ended."""
    for name in GROWING if writes else ():
        storage.settle(path / name)


def read_facts(path: Path) -> dict:
    """facts.json as a flat dict; empty before the first start."""
    file = storage.at(path) / "facts.json"
    return read_json(file) if file.exists() else {}


def write_facts(path: Path, **facts) -> None:
    """Adds to facts.json, replacing facts of the same name."""
    write_json(storage.at(path) / "facts.json", read_facts(path) | facts)


def append(path: Path, row: dict) -> None:
    """Adds a line to a .jsonl file."""
    if writes:
        storage.append(path, _dumps(row))


def event(path: Path, attempt: int, step: int, name: str, words: str) -> None:
    """Adds a line to events.jsonl: damaged, nonfinite, skipped, rewound, spike."""
    row = {"attempt": attempt, "step": step, "event": name, "words": words}
    append(path / "events.jsonl", row)


def events(path: str | Path) -> list[dict]:
    """What happened to a run besides its steps, in order."""
    return list(_parsed(storage.at(path) / "events.jsonl"))


def metrics(path: str | Path) -> list[dict]:
    """The log steps of a run in order, the last attempt's line for each."""
    return lines(storage.at(path) / "metrics.jsonl")


def evals(path: str | Path) -> list[dict]:
    """The evaluations of a run in order, the last attempt's line for each."""
    return lines(storage.at(path) / "evals.jsonl")


def attempts(path: str | Path, before: int) -> list[dict]:
    """The last log step that each attempt came to, of those before this one."""
    last = {row["attempt"]: row for row in _parsed(storage.at(path) / "metrics.jsonl")}
    return [row for number, row in sorted(last.items()) if number < before]


def extend_evals(path: str | Path, step: int, found: dict) -> None:
    """Adds what was found later to the evaluation of a step, by a line in its place."""
    old = {row["step"]: row for row in evals(path)}.get(step, {"attempt": 0, "step": step})
    append(Path(path) / "evals.jsonl", old | found)


def rows(path: str | Path) -> list[dict]:
    """One flat dict for every run below `path`, smallest model first.

    Keys: "name", "dir", every knob ("optim.lr"), every fact ("params.total", "tokens", "flops",
    "status", "seconds", ...) and the last evaluation ("eval.loss", "eval.loss_se", ...), which of a
    run with eval.patience is its best.
    """
    found = []
    for file in storage.find(storage.at(path), "config.json"):
        facts, evaluations = read_facts(file.parent), evals(file.parent)
        knobs = config.flatten(config.from_dict(read_json(file)))
        ended = [row for row in evaluations if row["step"] == facts.get("ends_at")]
        kept = (ended or evaluations)[-1:]
        last = {f"eval.{k}": v for row in kept for k, v in row.items()}
        status = facts.get("status", "lost")
        if status == "running" and not guard.is_alive(file.parent):
            status = "lost"  # killed before it could say so
        found.append(knobs | facts | last | {"status": status, "dir": str(file.parent)})
    return sorted(found, key=lambda row: (row.get("params.non_embedding", 0), row["name"]))


def is_finished(run: config.Run) -> bool:
    """Whether nothing is left to do: the run is done, diverged, or was stopped."""
    return read_facts(folder(run)).get("status") in OVER


def read_json(path: Path) -> dict:
    """ValueError naming the file where it is not JSON."""
    try:
        return json.loads(storage.at(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error


def write_json(path: Path, value: dict) -> None:
    """Replaces the file whole: a reader, or a crash, sees the old one or the new one."""
    if writes:
        storage.write(storage.at(path), _dumps(value, indent=1) + "\n")


def _dumps(value, indent=None) -> str:
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value):
    """JSON has no NaN or infinity: they become their names."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lines(path: Path) -> list[dict]:
    """The rows of a .jsonl file in order of their steps, for each the last of the last attempt."""
    by_step: dict[int, dict] = {}
    for row in _parsed(path):
        old = by_step.get(row["step"], row)
        if row.get("attempt", 0) >= old.get("attempt", 0):
            by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def _parsed(path: Path) -> Iterator[dict]:
    """What is no object with a step is passed over: torn by a crash, the next attempt writes it
    again; or no line of ours."""
    for line in storage.lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row
