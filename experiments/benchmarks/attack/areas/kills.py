"""Kills: a command is stopped by a signal at a random or chosen moment, and then repeated.

The moment is a write of the command (of the first to the last), with a delay of up to 50 ms. It may
be the start, the compilation, a save, an evaluation, the preparation of text, the report, or the
time between two runs. After the repetition, losses, evaluations, parameters and prepared text must
have the bits of undisturbed commands.
"""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.attack import children, outcomes, readers, subjects

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MAX_REPETITIONS = 4


class Target(NamedTuple):
    """A command that is killed. sizes: the runs that it must leave with equal bits."""

    state: str
    command: str
    arguments: list[str]
    sizes: tuple[str, ...] = ()


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
    """Repeat the command until it succeeds, and compare its results."""
    for _ in range(MAX_REPETITIONS):
        # The command export writes only into an empty folder.
        shutil.rmtree(folder / "exported", ignore_errors=True)
        ended = children.run_command(folder, target.command, target.arguments)
        if ended.status == 0:
            break
    if ended.status != 0:
        detail = f"repetition ends with {ended.status}: {(ended.errors or ended.output)[-400:]}"
        return outcomes.Outcome("failed", detail)
    return compare_folder(folder, target.sizes, attacked)


def compare_folder(
    folder: Path, sizes: tuple[str, ...], attacked: subjects.Subjects, notes: str = ""
) -> outcomes.Outcome:
    """Compare the runs and the prepared text of a working directory with undisturbed ones."""
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
    return compare_text(folder, attacked)


def compare_text(folder: Path, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Compare the prepared text of a working directory. Hidden files are leftovers."""
    hashes: dict[str, Any] = readers.file_hashes(folder / "data")
    leftovers = [name for name in hashes if name not in attacked.corpus]
    leftovers += [f"{path.name}/" for path in (folder / "data").glob(".*") if path.is_dir()]
    if leftovers:
        return outcomes.Outcome("failed", f"leftover in data/: {leftovers[0]}")
    return outcomes.judge_results(attacked.corpus, hashes, "")


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
        outcome = outcomes.judge_command(
            ended.status, ended.output, ended.errors, ["10K", "process"]
        )
        if outcome.kind == "failed":
            return outcomes.Outcome("failed", f"two processes, {moment}: {outcome.detail}")
    outcome = repeat(folder, TRAIN, attacked)
    return outcome._replace(detail=f"two processes, {moment}: {outcome.detail}")
