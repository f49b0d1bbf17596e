"""Races: two or three processes on one run, one sweep or one prepared text, and a reader beside."""

import random
import shutil
import time
from pathlib import Path

from experiments.benchmarks.attack import children, outcomes, readers, subjects
from experiments.benchmarks.attack.areas import kills

REPORT = [f"--dir={readers.SWEEP}"]


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Run one race, repeat its command alone, and compare the results."""
    rng = random.Random(f"races {seed}")
    races = (_train_one_run, _run_one_sweep, _prepare_one_text, _read_beside, _resume_one_run)
    race = races[seed % len(races)]
    outcome = race(rng, attacked)
    return outcome._replace(detail=f"{race.__name__.strip('_')}: {outcome.detail}")


def _train_one_run(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    target = kills.TRAIN._replace(state=rng.choice(("inputs", "prepared")))
    return _start_together(rng, attacked, target)


def _resume_one_run(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    return _start_together(rng, attacked, kills.TRAIN._replace(state="stopped"))


def _run_one_sweep(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    target = kills.Target("prepared", "sweep", [subjects.PAIR], subjects.SIZES[:2])
    return _start_together(rng, attacked, target)


def _prepare_one_text(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    return _start_together(rng, attacked, kills.Target("inputs", "prepare", [subjects.CONFIG]))


def _start_together(
    rng: random.Random, attacked: subjects.Subjects, target: kills.Target
) -> outcomes.Outcome:
    """Start a command two or three times at once. At least one of them must succeed."""
    folder = attacked.copy(target.state)
    started = []
    for _ in range(rng.choice((2, 3))):
        started.append(children.start_command(folder, target.command, target.arguments))
        time.sleep(rng.choice((0.0, rng.uniform(0, 0.5))))
    ended = [child.wait() for child in started]
    results = [
        outcomes.judge_command(end.status, end.output, end.errors, kills.NAMES)
        for end in ended
        if end.status != 0
    ]
    outcome = outcomes.worst(results) if results else outcomes.Outcome("same")
    if outcome.kind == "failed":
        return outcome
    if len(results) == len(ended):
        return outcomes.Outcome("failed", f"every process was refused: {outcome.detail}")
    return _repeat_and_compare(folder, target, attacked, outcome)


def _repeat_and_compare(
    folder: Path, target: kills.Target, attacked: subjects.Subjects, outcome: outcomes.Outcome
) -> outcomes.Outcome:
    """Return the outcome of the race, or the failure of the repeated command."""
    repeated = kills.repeat(folder, target, attacked)
    if repeated.kind != "failed":
        shutil.rmtree(folder)
    return outcomes.worst([outcome, repeated])


def _read_beside(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Run report, status and evaluate while a sweep trains."""
    target = kills.Target("prepared", "sweep", [subjects.PAIR], subjects.SIZES[:2])
    folder = attacked.copy(target.state)
    sweep = children.start_command(folder, target.command, target.arguments)
    results = []
    commands = {"status": REPORT, "report": REPORT, "evaluate": readers.COMMANDS["evaluate"]}
    for _ in range(5):
        time.sleep(rng.uniform(0, 2))
        command = rng.choice(list(commands))
        ended = children.run_command(folder, command, commands[command])
        outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, kills.NAMES)
        results.append(outcome._replace(detail=f"{command}: {outcome.detail}"))
    ended = sweep.wait()
    if ended.status != 0:
        detail = f"the sweep ends with {ended.status}: {ended.errors[-300:]}"
        return outcomes.Outcome("failed", detail)
    return _repeat_and_compare(folder, target, attacked, outcomes.worst(results))
