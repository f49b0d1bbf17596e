"""Runs of a sweep: which are done, half done or missing, and doing what is left.

Nothing drives a sweep but its folder: calling `here` again, after any end, goes on where that was.
"""

import datetime
import functools
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lm import (
    checkpoint,
    checks,
    config,
    data,
    guard,
    hosts,
    lineage,
    mesh,
    mirrors,
    packs,
    prediction,
    records,
    storage,
    tasks,
    train,
)


def check(runs: list[config.Run], report: Callable | None = None) -> None:
    """ValueError for the first thing that would stop a run of the sweep; prepares its text.

    report: see corpus.prepare.
    """
    if not runs:
        raise ValueError("the sweep has no runs: get_sweep must yield at least one")
    folder(runs)
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two runs are named {', '.join(twice)}: every run needs a name of its own"
        )
    if sum(run.predict for run in runs) > 1:
        raise ValueError("predict=True in more than one run: a sweep predicts one")
    by_name = {run.name: run for run in runs}
    for run in ordered(runs):
        checks.check(run)
        mirrors.check(run)
        records.compare(run)
        mesh.check(run, mesh.make(run.mesh))
        if run.start.run:
            lineage.check(run, by_name.get(run.start.run) or lineage.parent(run))
    for listed in {run.eval.tasks for run in runs}:
        tasks.load_all(listed)
    for run in runs:
        data.load(run.data, run.seed, report).check(run.steps)


def adopt(runs: list[config.Run]) -> list[config.Run]:
    """The runs, those that have begun as they were when they began: an edited sweep goes on."""
    begun = {
        run.name: records.folder(run) for run in runs if records.read_facts(records.folder(run))
    }
    return [records.read_config(begun[run.name]) if run.name in begun else run for run in runs]


def epochs(runs: list[config.Run]) -> dict[str, float]:
    """Source -> how often the run that sees it most sees it."""
    most: dict[str, float] = {}
    for run in runs:
        for source, times in data.load(run.data, run.seed).epochs(run.steps).items():
            most[source] = max(times, most.get(source, 0.0))
    return most


def folder(runs: list[config.Run]) -> Path:
    """The folder that all runs of a sweep share: DIR/SWEEP of names SWEEP/RUN."""
    places = {str(storage.at(run.dir) / run.name.split("/")[0]) for run in runs if "/" in run.name}
    if len(places) != 1 or any("/" not in run.name for run in runs):
        names = ", ".join(sorted({run.name for run in runs})[:3])
        raise ValueError(f"names of a sweep's runs must be SWEEP/RUN with one SWEEP, not {names}")
    return storage.at(places.pop())


def write_down(sweep: str, runs: list[config.Run], costs: list[dict]) -> None:
    """sweep.json and plan.json: what was asked for, and what it should have cost.

    Pins the checkpoints that runs of the sweep are to start from.
    """
    if not hosts.is_first():
        return
    place, when = folder(runs), _now()
    command = f"uv run python -m experiments.sweep --sweep={sweep}"
    names = [run.name for run in runs]
    asked = {"sweep": sweep, "runs": names, "command": command, "created": when}
    records.write_json(place / "sweep.json", asked)
    records.write_json(place / "plan.json", {"runs": costs})
    by_name = {run.name: run for run in runs}
    for run in runs:
        if run.start.run:
            parent = by_name.get(run.start.run) or lineage.parent(run)
            checkpoint.pin(parent, lineage.first_step(run, parent), run.name)


def left(runs: list[config.Run]) -> list[config.Run]:
    """The runs that are not finished, in the order to run them."""
    placed = ordered(runs)
    finished = hosts.first(lambda: [records.is_finished(run) for run in placed])
    return [run for run, is_done in zip(placed, finished, strict=True) if not is_done]


def ordered(runs: list[config.Run]) -> list[config.Run]:
    """Each run after the one it starts from; what is predicted, with its family, at the end.

    ValueError for runs that start from each other in a circle.
    """
    by_name = {run.name: run for run in runs}
    placed: dict[str, config.Run] = {}

    def place(run: config.Run, children: tuple[str, ...] = ()) -> None:
        if run.name in children:
            circle = " <- ".join((*children[children.index(run.name) :], run.name))
            raise ValueError(f"start.run={run.start.run!r} makes a circle: {circle}")
        if run.start.run in by_name:
            place(by_name[run.start.run], (*children, run.name))
        placed.setdefault(run.name, run)

    late = prediction.family(runs)
    for run in sorted(runs, key=lambda run: run.name in late):
        place(run)
    return list(placed.values())


def here(
    runs: list[config.Run],
    started: Callable[[config.Run], None] = lambda run: None,
    stepped: Callable[[config.Run, dict], None] = lambda run, row: None,
    ended: Callable[[config.Run, str], None] = lambda run, reason: None,
    retries: int = 0,
    since: float | None = None,
    pack: int = 1,
) -> None:
    """Does what is ready, one run after another in this process, until nothing is.

    pack: as many runs at most are trained in one program, where they can be: see lm/packs.py.

    Any number of processes may do this at once: a run is trained by the one that has its lock. A
    run that diverges or fails is marked so and the others go on; one that failed is tried `retries`
    more times, failures before `since` (seconds of time.time(); default: now) not counted. A
    signal, a full disk or one that is read-only stops the sweep: the same call goes on with it.
    """
    since = time.time() if since is None else since
    taken: set[str] = set()  # between our look and our lock
    alone: set[str] = set()  # out of a pack that broke
    by_name, late = {run.name: run for run in runs}, prediction.family(runs)

    def choose() -> list[str]:
        """The runs to do now. The prediction is written before the first of its family."""
        free = (run for run in ready(runs, retries, since) if run.name not in taken)
        found = packs.choose(free, pack, alone)
        if any(run.name in late for run in found):
            prediction.predict(runs, folder(runs))
        return [run.name for run in found]

    while names := hosts.first(choose):
        now = [by_name[name] for name in names]
        for run in now:
            started(run)
        try:
            if len(now) == 1:
                train.train(now[0], functools.partial(stepped, now[0]))
            else:
                packs.together(now, stepped)
            reasons = {run.name: _reason(run) for run in now}
        except OSError:
            raise
        except train.Diverged as error:
            reasons = {names[0]: str(error)}
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if len(now) > 1:  # alone, the one at fault says so of itself
                alone |= set(names)
                words = f"goes on alone after {words}"
            elif isinstance(error, guard.Taken):
                taken.add(names[0])
                words = str(error)
            else:
                _mark_failed(now[0], words)
            reasons = dict.fromkeys(names, words)
        for run in now:
            ended(run, reasons[run.name])


def _reason(run: config.Run) -> str:
    """Why a run ended before its last step, or should be doubted; "" for most."""
    return records.read_facts(records.folder(run)).get("reason", "")


def _mark_failed(run: config.Run, reason: str) -> None:
    where = records.folder(run)
    if hosts.is_first():
        storage.write(where / "error.txt", traceback.format_exc())
    failed_at = [*records.read_facts(where).get("failed_at", []), time.time()]
    writer = records.Writer(where, hosts.is_first())
    writer.write_facts(status="failed", reason=reason, failed_at=failed_at)


def ready(runs: list[config.Run], retries: int, since: float) -> Iterator[config.Run]:
    """The runs that are left and can start now, in the order to run them.

    Not ready are those that another process trains, that are lost to this call, that start from a
    run that is not done, and the predicted one and its family as long as another may still start.
    """
    by_name, late = {run.name: run for run in runs}, prediction.family(runs)
    hopeless: set[str] = set()
    is_waiting = False
    for run in ordered(runs):
        facts = records.read_facts(records.folder(run))
        if _is_lost(run, facts, hopeless, retries, since):
            hopeless.add(run.name)
        elif not records.is_finished(run):
            parent = by_name.get(run.start.run)
            is_blocked = (
                guard.is_alive(records.folder(run))
                or (parent is not None and not records.is_finished(parent))
                or (run.name in late and is_waiting)
            )
            is_waiting = is_waiting or run.name not in late
            if not is_blocked:
                yield run


def _is_lost(run: config.Run, facts: dict, hopeless: set[str], retries: int, since: float) -> bool:
    """Whether a run failed too often, diverged, or starts from such a run."""
    n_failed = sum(when >= since for when in facts.get("failed_at", []))
    is_out = facts.get("status") == "diverged"
    return n_failed > retries or run.start.run in hopeless or is_out


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
