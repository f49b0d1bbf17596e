"""Kills: a command is stopped by a signal at a random or chosen moment, and then repeated.

The moment is a write of the command (of the first to the last), with a delay of up to 50 ms. It may
be the start, the compilation, a save, an evaluation, the preparation of text, the report, or the
time between two runs. After the repetition, losses, evaluations, parameters and prepared text must
have the bits of undisturbed commands, and no file may be left behind.
"""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.attack import children, outcomes, readers, subjects
from lm.runs import filesystem

# A refused process names the run that another process trains.
NAMES = ("runs/attack/10K", "runs/attack/12K")
# Temporary file of a write: .NAME.HOST-PROCESS-RANDOM. A later write removes an old one.
TEMPORARY = re.compile(r"\..+-\d+-[0-9a-f]{8}")
TEMPORARY_AGE = 2 * filesystem.ABANDONED_SECONDS
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MAX_REPETITIONS = 4
# Sizes, steps, times and hashes in the names of files.
VARYING_PARTS = re.compile(
    rf"(?<=attack/)({'|'.join(subjects.SIZES)})(?=/)"
    r"|(?<=checkpoints/)\d+|(?<=tfevents).*|[0-9a-f]{12,}"
)


class Target(NamedTuple):
    """A command that is killed. sizes: the runs that it must leave with equal bits."""

    state: str
    command: str
    arguments: list[str]
    sizes: tuple[str, ...] = ()


READ_COMMANDS = ("evaluate", "export")  # their own results are compared too
TRAIN = Target("prepared", "train", [subjects.CONFIG], subjects.SIZES[:1])
TARGETS = (
    *[TRAIN] * 5,
    Target("inputs", "train", [subjects.CONFIG], subjects.SIZES[:1]),
    Target("stopped", "train", [subjects.CONFIG], subjects.SIZES[:1]),
    Target("inputs", "prepare", [subjects.CONFIG]),
    Target("prepared", "sweep", [subjects.PAIR], subjects.SIZES[:2]),
    Target("finished", "evaluate", readers.COMMANDS["evaluate"], subjects.SIZES[:1]),
    Target("finished", "report", [f"--dir={readers.SWEEP}"], subjects.SIZES[:1]),
    Target("finished", "export", readers.COMMANDS["export"], subjects.SIZES[:1]),
)


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Stop a command once or twice, repeat it, and compare all results."""
    rng = random.Random(f"kills {seed}")
    if seed % 20 == 19:
        return _kill_one_of_two(rng, attacked)
    target = TARGETS[seed % len(TARGETS)]
    effort = attacked.measure(target.state, target.command, target.arguments)
    folder = attacked.copy(target.state)
    is_killed = False
    for _ in range(1 + (rng.random() < 0.25)):
        _age_temporary_files(folder)
        moment = _random_moment(rng, effort)
        shutil.rmtree(folder / "exported", ignore_errors=True)
        ended = children.run_command(
            folder, target.command, target.arguments, children.Options(moment)
        )
        is_stopped = ended.status in (-moment.signal, 128 + moment.signal)
        is_killed |= is_stopped
        if not is_stopped and ended.status != 0:
            outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, [])
            return outcomes.Outcome("failed", f"after {moment}: {outcome.detail}")
        if is_stopped and "Traceback" in ended.errors:
            line = ended.errors.strip().splitlines()[-1]
            return outcomes.Outcome("failed", f"traceback after {moment}: {line}")
    outcome = repeat(folder, target, attacked)
    if outcome.kind != "failed":
        shutil.rmtree(folder)
    if outcome.kind == "same" and not is_killed:
        return outcomes.Outcome("skipped", "the command ended before the signal")
    return outcome._replace(detail=f"{target.command}, {moment}: {outcome.detail}")


def _random_moment(rng: random.Random, effort: subjects.Effort) -> children.Moment:
    """Return a moment: a write of the command with a short delay, or a random time."""
    number = rng.choice(SIGNALS)
    if rng.random() < 0.3 or effort.n_writes < 5:
        return children.Moment(number, 0, rng.uniform(0, 0.9 * effort.seconds))
    delay = rng.choice((0.0, rng.uniform(0, 0.05)))
    return children.Moment(number, rng.randint(1, effort.n_writes), delay)


def repeat(folder: Path, target: Target, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Repeat the command until it succeeds, and compare its results.

    Each repetition before the last one must be refused in one line.
    """
    _age_temporary_files(folder)
    for _ in range(MAX_REPETITIONS):
        # The command export writes only into an empty folder.
        shutil.rmtree(folder / "exported", ignore_errors=True)
        if target.command in READ_COMMANDS:
            ended = children.call(folder, readers.run_reader, target.command)
        else:
            ended = children.run_command(folder, target.command, target.arguments)
        outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, NAMES)
        if outcome.kind == "failed":
            return outcome._replace(detail=f"repetition: {outcome.detail}")
        if ended.status == 0:
            break
    if ended.status != 0:
        return outcomes.Outcome("failed", f"repetition is always refused: {outcome.detail}")
    if target.command in READ_COMMANDS:
        outcome = outcomes.judge_results(attacked.command_result(target.command), ended.value, "")
        if outcome.kind == "failed":
            return outcome._replace(detail=f"repetition: {outcome.detail}")
    if target.command == "report" and (problem := _report_problem(folder, attacked)):
        return outcomes.Outcome("failed", problem)
    return compare_folder(folder, target.sizes, attacked)


def _age_temporary_files(folder: Path) -> None:
    """Age the temporary files of killed writes, because a later write removes only old ones."""
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):
            written = path.stat().st_mtime - TEMPORARY_AGE
            os.utime(path, (written, written))


def _report_problem(folder: Path, attacked: subjects.Subjects) -> str:
    """Return the first difference of the page and the records from undisturbed ones, or ""."""
    page = (folder / readers.SWEEP / "report.html").read_text()
    if not page.rstrip().endswith("</html>"):
        return "report.html is not complete"
    ended = children.call(folder, readers.read_records)
    return outcomes.first_difference(attacked.records, ended.value)


def compare_folder(
    folder: Path, sizes: tuple[str, ...], attacked: subjects.Subjects, notes: str = ""
) -> outcomes.Outcome:
    """Compare the runs and the prepared text of a working directory with undisturbed ones."""
    if leftover := find_leftover(folder, attacked):
        return outcomes.Outcome("failed", f"leftover: {leftover}")
    if sizes:
        names = [f"{readers.SWEEP}/{size}" for size in sizes]
        ended = children.call(folder, readers.read_results, names)
        if ended.status != 0:
            line = ended.errors.strip().splitlines()[-1]
            return outcomes.Outcome("failed", f"the results cannot be read: {line}")
        outcome = outcomes.judge_results(
            subjects.selected(attacked.runs, list(sizes)), ended.value, notes
        )
        if outcome.kind != "same":
            return outcome
    hashes: dict[str, Any] = readers.file_hashes(folder / "data")
    return outcomes.judge_results(attacked.corpus, hashes, "")


def find_leftover(folder: Path, attacked: subjects.Subjects) -> str:
    """Return a file or an empty folder that no undisturbed command leaves behind, or ""."""
    expected = _general_names(attacked.state("finished"))
    return next((name for key, name in _general_names(folder).items() if key not in expected), "")


def _general_names(folder: Path) -> dict[str, str]:
    """Return {general name: name} of the files and empty folders of the runs and the text.

    In a general name, the size of a run, hashes, times and steps are replaced by *.
    """
    names = {}
    for top in ("runs", "data"):
        for path in (folder / top).rglob("*"):
            # A lock remains if its process was killed after the end of the run. It has no effect.
            if path.name.startswith("lock-"):
                continue
            if path.is_file() or not any(path.iterdir()):
                name = path.relative_to(folder).as_posix()
                names[VARYING_PARTS.sub("*", name)] = name
    return names


def _kill_one_of_two(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Start two processes on one run, kill one of them, and repeat the command."""
    folder = attacked.copy("prepared")
    effort = attacked.measure(TRAIN.state, TRAIN.command, TRAIN.arguments)
    moment = _random_moment(rng, effort)
    first = children.start_command(folder, "train", TRAIN.arguments, children.Options(moment))
    time.sleep(rng.uniform(0, 0.3))
    second = children.start_command(folder, "train", TRAIN.arguments)
    for child in (second, first):
        ended = child.wait()
        if ended.status in (0, -moment.signal, 128 + moment.signal):
            continue
        outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, NAMES)
        if outcome.kind == "failed":
            return outcomes.Outcome("failed", f"two processes, {moment}: {outcome.detail}")
    outcome = repeat(folder, TRAIN, attacked)
    return outcome._replace(detail=f"two processes, {moment}: {outcome.detail}")
