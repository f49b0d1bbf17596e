"""Damage: every file of a run, a sweep and prepared text is damaged, and then read.

A case damages one file in one way. All functions that read records read it, and one command that
reads a model or text: evaluate, sample, export or resume. Every tenth case runs a real command in a
new interpreter. A number that differs from the undisturbed one is a failure.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.attack import children, outcomes, readers, subjects

DATA_FILES = (".bin", ".json", ".u64", ".sqlite")
HASH = re.compile(r"[0-9a-f]{12,}")  # names of prepared text and of arrays
IGNORED = (".html", ".svg", ".png", ".py", ".pyc")  # suffixes of files that no reader needs
REAL_COMMANDS = {
    "report": [f"--dir={readers.SWEEP}"],
    "status": [f"--dir={readers.SWEEP}"],
    "plan": [f"--advise={readers.SWEEP}"],
}


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Damage one file and read it."""
    rng = random.Random(f"damage {seed}")
    kind, is_real = list(DAMAGES)[seed % len(DAMAGES)], seed % 10 == 0
    state = rng.choice(("finished", "finished", "stopped"))
    file = choose_file(rng, attacked.state(state))
    label, results = f"{kind} {file} of the {state} run, read by ", []
    is_record = file.startswith("runs") and (
        "checkpoints/" not in file or file.endswith("proofs.jsonl")
    )
    if is_record and (attacked.state("finished") / file).exists():
        results.append(read_damaged_records(rng, file, kind, attacked, is_real))
        is_real = False
    commands = _commands(file, state)
    if commands:
        command = rng.choice(commands)
        outcome = _read_by_command(rng, file, kind, attacked, command, is_real)
        results.append(outcome._replace(detail=f"{command}: {outcome.detail}"))
    outcome = outcomes.worst(results)
    is_real = any(result.is_real for result in results)
    return outcome._replace(detail=label + outcome.detail, is_real=is_real)


def choose_file(rng: random.Random, folder: Path) -> str:
    """Return a random file of the damaged run, its sweep or its text, or the compilation cache.

    The choice of the group of the file depends only on the seed, not on hashes and times in names.
    """
    groups: dict[str, list[str]] = {"compiled": ["compiled"]}
    for path in sorted(folder.rglob("*"), key=lambda path: (path.lstat().st_size, path)):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and _is_attacked(name):
            groups.setdefault(HASH.sub("*", name), []).append(name)
    names = sorted(groups)
    weights = [1 if re.search(r"checkpoints/\d", name) else 4 for name in names]
    return rng.choice(groups[rng.choices(names, weights)[0]])


def _is_attacked(name: str) -> bool:
    """Return True if a command reads a file of a working directory. Source text is not damaged."""
    path = Path(name)
    if name.startswith("data/"):
        return name.endswith(DATA_FILES)
    if path.suffix in IGNORED or "tensorboard" in name or path.name.startswith(("lock-", ".")):
        return False
    return path.parent == Path(readers.SWEEP) or name.startswith(f"{subjects.RUN}/")


def _commands(file: str, state: str) -> tuple[str, ...]:
    """Return the commands that read a file, besides those that read only records."""
    if state == "stopped":
        return ("resume",)
    if file.startswith("data"):
        return ("evaluate",)
    if file == "compiled" or file.startswith(f"{subjects.RUN}/checkpoints/"):
        return ("evaluate", "sample", "export")
    is_model_file = Path(file).name in ("config.json", "facts.json", "tokenizer.json")
    return ("evaluate", "sample", "export") if is_model_file else ()


def read_damaged_records(
    rng: random.Random, file: str, kind: str, attacked: subjects.Subjects, is_real: bool = False
) -> outcomes.Outcome:
    """Damage a file of the finished sweep, and read the sweep by all functions.

    is_real: also by a command in a new interpreter.
    """
    folder = attacked.copy("finished")
    change = damage(folder / file, kind, rng, _other_run(attacked, kind), file)
    if not change:
        shutil.rmtree(folder)
        return outcomes.Outcome("skipped", "no change of the file")
    run = subjects.RUN.removeprefix("runs/") if file.startswith(subjects.RUN) else ""
    names = subjects.path_names(file)
    real = _run_real_command(rng, folder, names) if is_real else None
    ended = children.call(folder, readers.read_records)
    shutil.rmtree(folder)
    if ended.status != 0:
        return outcomes.Outcome("failed", f"records: {ended.errors[-400:]}")
    results, expected_results = [], attacked.records
    notes = [_added_notes(expected_results[reader], ended.value[reader]) for reader in ended.value]
    for reader, result in ended.value.items():
        without = attacked.without(run)[reader] if run else None
        outcome = judge_records(expected_results[reader], without, result, run, names)
        is_lost = reader == "paired" and outcome.kind == "failed" and _is_part(result, attacked)
        if is_lost and outcomes.is_named("\n".join(notes), names):
            outcome = outcomes.Outcome("excluded", "no paired error")
        results.append(outcome._replace(detail=f"{reader}: {outcome.detail}"))
    outcome = outcomes.worst(results)
    if real and outcome.kind == "excluded" and not outcome.detail.startswith("paired"):
        if Path(file).name not in real.output and subjects.RUN not in real.output:
            detail = f"real {real.command} does not name the file: {real.output[-300:]} [{change}]"
            return outcomes.Outcome("failed", detail)
    outcome = outcomes.worst([outcome, real.outcome]) if real else outcome
    return outcome._replace(detail=f"{outcome.detail} [{change}]", is_real=is_real)


class _Real(NamedTuple):
    """A real command that has read a damaged sweep."""

    command: str
    outcome: outcomes.Outcome
    output: str


def _run_real_command(rng: random.Random, folder: Path, names: list[str]) -> _Real:
    """Run report, status or plan --advise in a new interpreter."""
    command = rng.choice(list(REAL_COMMANDS))
    options = children.Options(with_real_start=True)
    ended = children.run_command(folder, command, REAL_COMMANDS[command], options)
    outcome = outcomes.judge_command(
        ended.status, ended.output, ended.errors, names, may_name_field=False
    )
    if ended.status == 0 and not ended.output.strip():
        outcome = outcomes.Outcome("failed", "no output")
    detail = f"real {command}: {outcome.detail}"
    return _Real(command, outcome._replace(detail=detail), ended.output + ended.errors)


def _is_part(result: dict, attacked: subjects.Subjects) -> bool:
    """Return True if the paired errors of a damaged run are missing and the others are right."""
    expected = attacked.records["paired"]["value"]["runs"]
    runs = result.get("value", {}).get("runs")
    return isinstance(runs, dict) and all(expected.get(name) == runs[name] for name in runs)


def judge_records(
    expected: dict[str, Any], without: dict[str, Any] | None, result: dict, run: str, names: list
) -> outcomes.Outcome:
    """Classify the records of a sweep with one damaged file.

    without: the records without the damaged run `run`. The run may be excluded with a reason: then
    the laws must be those without it, and the rows of the other runs must not change.
    """
    if "error" in result:
        kind, message = result["error"]
        if "error" in expected and message == expected["error"][1]:
            return outcomes.Outcome("same")
        if without and message == without.get("error", ["", ""])[1]:
            return outcomes.Outcome("excluded", message)
        if kind != "refused":
            return outcomes.Outcome("failed", f"traceback {kind}: {message[:300]}")
        return outcomes.judge_message(message, names, may_name_field=False)
    if "error" in expected:
        return outcomes.Outcome("failed", f"no error, expected {expected['error'][1][:200]}")
    notes = _added_notes(expected, result)
    plain, actual = (_without_notes(value["value"]) for value in (expected, result))
    difference = outcomes.first_difference(plain, actual)
    if not difference:
        return outcomes.Outcome("repaired", notes[:300]) if notes else outcomes.Outcome("same")
    if run and without and "value" in without:
        reason = notes or str(actual.get("runs", {}).get(run, {}).get("reason", ""))
        remaining = _without_notes(without["value"])
        difference_without = _difference_without(remaining, actual, run)
        has_result = _has_result(actual, run)
        if reason and not difference_without and not has_result:
            is_named = any(name in reason for name in names) or run in reason
            text = reason if is_named else f"the reason does not name the file: {reason}"
            return outcomes.Outcome("excluded" if is_named else "failed", text[:300])
    if notes:  # a file of the sweep, or rows of a curve, may be missing with a reason
        return outcomes.judge_results(plain, actual, notes, names)
    return outcomes.Outcome("failed", f"{difference} ({notes[:200] or 'no message'})")


def _difference_without(remaining: dict, actual: dict, run: str) -> str:
    """Return the first difference from the records without a run, except the row of the run."""
    parts = []
    for values in (remaining, actual):
        part = {key: values[key] for key in values if key not in ("runs", "losses", "notes")}
        for key in ("runs", "losses"):
            part[key] = {name: v for name, v in values.get(key, {}).items() if name != run}
        parts.append(part)
    return outcomes.first_difference(*parts)


def _has_result(actual: dict, run: str) -> bool:
    """Return True if a run has a held-out loss and the status done."""
    row = actual.get("runs", {}).get(run, {})
    value = row.get("eval.loss", row.get("heldout_loss"))
    return isinstance(value, float) and row.get("status") == "done"


def _without_notes(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    varying = ("seconds_left", "where")
    return {
        key: _without_notes(item)
        for key, item in value.items()
        if key != "notes" and key not in varying
    }


def _added_notes(expected: dict, result: dict) -> str:
    """Return the lines that an undisturbed reader does not print."""
    lines = [*result["notes"].splitlines(), *_listed_notes(result)]
    known = {*expected["notes"].splitlines(), *_listed_notes(expected)}
    return "\n".join(line for line in lines if line and line not in known)


def _listed_notes(result: dict) -> list[str]:
    value = result.get("value")
    return [str(note) for note in value.get("notes", [])] if isinstance(value, dict) else []


def _read_by_command(
    rng: random.Random,
    file: str,
    kind: str,
    attacked: subjects.Subjects,
    command: str,
    is_real: bool,
) -> outcomes.Outcome:
    """Damage a file, and read it by a command that needs the model or the text.

    is_real: in a new interpreter.
    """
    is_resume = command == "resume"
    expected = {"10K": attacked.runs["10K"]} if is_resume else attacked.command_result(command)
    folder = attacked.copy("stopped" if is_resume else "finished")
    change = "every program"
    if file == "compiled":
        shutil.copytree(attacked.root / "compiled", folder / "compiled")
        for path in sorted((folder / "compiled").glob("*-cache")):
            damage(path, kind, rng, _other_run(attacked, kind), file)
    else:
        change = damage(folder / file, kind, rng, _other_run(attacked, kind), file)
    if not change:
        shutil.rmtree(folder)
        return outcomes.Outcome("skipped", "no change of the file")
    options = children.Options(with_real_start=is_real)
    if is_real:
        name = "train" if is_resume else command
        ended = children.run_command(folder, name, readers.COMMANDS[command], options)
    else:
        ended = children.call(folder, readers.run_reader, command)
    names = subjects.path_names(file)
    outcome = outcomes.judge_command(
        ended.status, ended.output, ended.errors, names, may_name_field=False
    )
    if outcome.kind in ("same", "repaired"):
        value = _real_results(folder, command) if is_real else ended.value
        outcome = outcomes.judge_results(expected, value, _notable(ended.errors), names)
    if outcome.kind != "failed":
        shutil.rmtree(folder)
    return outcome._replace(detail=f"{outcome.detail} [{change}]", is_real=is_real)


def _real_results(folder: Path, command: str) -> Any:
    """Return the results of a command that another process has run. Repeat it if it wrote none."""
    if command == "resume":
        return children.call(folder, readers.read_results, [readers.RUN]).value
    if command == "export":
        return readers.file_hashes(folder / "exported")
    return children.call(folder, readers.run_reader, command).value


def _notable(errors: str) -> str:
    return "\n".join(line for line in errors.splitlines() if line.strip())


def damage(path: Path, kind: str, rng: random.Random, other: Path, name: str) -> str:
    """Damage a file in one way. Return a description, "" if the damage does not change the file."""
    before = path.read_bytes()
    if kind != "exchanged":
        change = DAMAGES[kind](path, rng)
        return change if not path.exists() or path.read_bytes() != before else ""
    source = _other_file(other, name)
    if source is None or source.read_bytes() == before:
        return ""
    data = source.read_bytes()
    if path.suffix == ".bin":
        data = (data * 2)[: len(before)]  # A token file of another size is prepared again.
    path.write_bytes(data)
    return f"{len(data)} bytes of another run"


def _other_run(attacked: subjects.Subjects, kind: str) -> Path:
    """Return the working directory of other text, which is trained only for an exchange."""
    return attacked.state("other") if kind == "exchanged" else attacked.root


def _other_file(other: Path, name: str) -> Path | None:
    """Return the file of the other working directory with the same place, up to its hash."""
    if (other / name).is_file():
        return other / name
    pattern = HASH.sub("*", name)
    return next(iter(sorted(path for path in other.glob(pattern) if path.is_file())), None)


def _flip_bit(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return "no byte"
    i = rng.randrange(len(data))
    data[i] ^= 1 << rng.randrange(8)
    return _write_changed(path, data, i)


def _change_digit(path: Path, rng: random.Random) -> str:
    """Replace a digit by another one; in token files, change every 50th id; else flip a bit."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".bin":
        data[::100] = bytes(byte ^ 1 for byte in data[::100])
        path.write_bytes(data)
        return "every 50th id"
    digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if path.suffix not in (".json", ".jsonl") or not digits:
        return _flip_bit(path, rng)
    i = rng.choice(digits)
    data[i] = rng.choice([digit for digit in range(49, 58) if digit != data[i]])
    return _write_changed(path, data, i)


def _write_changed(path: Path, data: bytearray, i: int) -> str:
    """Write the changed bytes, and return the text around the changed byte before and after."""
    before, after = path.read_bytes()[max(0, i - 12) : i + 9], bytes(data[max(0, i - 12) : i + 9])
    path.write_bytes(data)
    return f"byte {i}, {before!r} to {after!r}"


def _truncate(path: Path, rng: random.Random) -> str:
    size = rng.randrange(max(1, path.stat().st_size))
    os.truncate(path, size)
    return f"to {size} bytes"


def _empty(path: Path, rng: random.Random) -> str:
    os.truncate(path, 0)
    return "to 0 bytes"


def _delete(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "the file"


DAMAGES: dict[str, Callable[[Path, random.Random], str]] = {
    "flipped": _flip_bit,
    "truncated": _truncate,
    "digit": _change_digit,
    "emptied": _empty,
    "deleted": _delete,
    "exchanged": lambda path, rng: "",
}
