"""Which runs of a sweep are not worth their end: successive halving of learning rates.

    run.halve = 1             # at half of the steps; 2: at a quarter of them, too
    run.halve_by = "optim.lr"

Runs that differ in that knob alone are a group. At each rung all of it are evaluated, and the
better half goes on (Jamieson and Talwalkar 2016, arXiv:1502.07943, with rungs at twice the steps of
the last); the others end as "stopped", with the reason. Runs of other sizes, data or seeds are
never compared, and laws take none that was stopped. A rung waits for the whole group, so that the
verdict does not depend on who trained what when. It is kept in facts.json and never taken back.

What it risks: a large learning rate looks worse in the middle of its schedule than at its end. Of
eight, the best was fourth at a quarter and at half (experiments/LOG.md): prefer halve=1.
"""

import json
import math

from lm import checkpoint, config, guard, records

UNKNOWN = math.inf  # loss of those that never come to a rung


def rungs(run: config.Run) -> list[int]:
    """Steps at which the worse half is stopped: half of the steps, a quarter, ...; in order."""
    return [max(run.steps >> (run.halve - n), 1) for n in range(run.halve)]


def groups(runs: list[config.Run]) -> list[list[config.Run]]:
    """The runs that are compared with each other, those that are alone left out."""
    found: dict[str, list[config.Run]] = {}
    for run in runs:
        if run.halve:
            same = {k: v for k, v in config.flatten(run).items() if k not in ("name", run.halve_by)}
            found.setdefault(json.dumps(same), []).append(run)
    return [members for members in found.values() if len(members) > 1]


def check(runs: list[config.Run]) -> None:
    """ValueError where a run that may be stopped must come to its end."""
    parents = {run.start.run for run in runs}
    for members in groups(runs):
        for run in members:
            if run.name in parents:
                words = "other runs start from it: set its halve=0, or start from one that is done"
                raise ValueError(f"{run.name} may be stopped by halve={run.halve}, and {words}")


def until(runs: list[config.Run]) -> dict[str, int]:
    """Step to which each run of a group may train now; 0: it waits at a rung for the others."""
    found = {}
    for run in (run for members in groups(runs) for run in members):
        passed = records.read_facts(records.folder(run)).get("rungs_passed", 0)
        ends = [*rungs(run), run.steps]
        is_there = passed < run.halve and _loss(run, ends[passed]) is not None
        found[run.name] = 0 if is_there else ends[passed]
    return found


def settle(runs: list[config.Run], lost: set[str]) -> None:
    """Writes the verdicts that can be made now. lost: names of runs that no one will train on."""
    for members in groups(runs):
        for number, rung in enumerate(rungs(members[0])):
            found = {run.name: _loss(run, rung) for run in members}
            losses = {name: UNKNOWN if x is None else x for name, x in found.items()}
            if any(x is None and name not in lost for name, x in found.items()):
                break
            n = math.ceil(len(members) / 2)
            order = sorted(members, key=lambda run: losses[run.name])
            members = [run for run in members if _goes_on(run, number, order, n, losses)]


def awaited(runs: list[config.Run]) -> bool:
    """Whether a run waits at a rung for one that another process is training."""
    steps = until(runs)
    return any(
        not steps[run.name] and not records.is_finished(run) and any(map(_is_training, members))
        for members in groups(runs)
        for run in members
    )


def _goes_on(run: config.Run, number: int, order: list, n: int, losses: dict[str, float]) -> bool:
    """The verdict on a run at a rung, made now or before."""
    folder = records.folder(run)
    facts = records.read_facts(folder)
    if facts.get("status") == "stopped":
        return False
    if facts.get("rungs_passed", 0) > number:
        return True
    place = order.index(run)
    is_good = place < n
    if losses[run.name] == UNKNOWN:
        return is_good
    if is_good:
        records.write_facts(folder, rungs_passed=number + 1)
        return True
    rung, loss = rungs(run)[number], losses[run.name]
    words = f"loss {loss:.4f} at step {rung} of {run.steps}: place {place + 1} of {len(order)}"
    words = f"{words} by {run.halve_by}"
    records.write_facts(folder, status="stopped", reason=words, ends_at=rung)
    return False


def _loss(run: config.Run, rung: int) -> float | None:
    """Held-out loss at a rung; None: it has not come there, or has not left yet.

    A run that was past it before it was to be halved is the best there is: it is paid for.
    """
    if _is_training(run):
        return None
    for row in records.evals(records.folder(run)):
        if row["step"] == rung:
            return float(row["loss"])
    return -math.inf if checkpoint.newest(run) > rung else None


def _is_training(run: config.Run) -> bool:
    return guard.is_alive(records.folder(run))
