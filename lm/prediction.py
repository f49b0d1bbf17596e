"""What the law of a sweep's other runs says of the one with predict=True, before that starts.

predict(runs, launch.folder(runs))     # prediction.json: value, lo, hi, level, fit; or refused
"""

import datetime
from collections.abc import Callable
from pathlib import Path

from lm import config, laws, mastery, records, sizes

X, Y = "params.non_embedding", "eval.loss"  # of the law that predicts
SAME_TOKENS = 0.02  # budgets no further apart than this are the same


def family(runs: list[config.Run]) -> set[str]:
    """Names of the predicted run, of those it starts from, and of all that start from these.

    The law that predicts may see none of them: a branch shares most of its training with its trunk
    and with the trunk's other branches. Empty where nothing is predicted.
    """
    by_name = {run.name: run for run in runs}
    line = [run for run in runs if run.predict]
    while line and line[-1].start.run in by_name and by_name[line[-1].start.run] not in line:
        line.append(by_name[line[-1].start.run])
    found = {run.name for run in line}
    while more := {run.name for run in runs if run.start.run in found} - found:
        found |= more
    return found


def predict(runs: list[config.Run], folder: Path) -> None:
    """Writes prediction.json into a sweep's folder: what the law says of the run to predict.

    The law is that of its `peers`. Where the sweep has several token budgets, "joint" is what
    L(N, D) of all but its family says of it. Once a run of the family has begun, a prediction is
    left as it is.
    """
    target, late = next(run for run in runs if run.predict), family(runs)
    if any(records.read_facts(records.folder(run)) for run in runs if run.name in late):
        return
    every = {row["name"]: row for row in records.rows(folder)}
    equal, rest = ([every[name] for name in names if name in every] for names in peers(runs))
    size = sizes.counts(target.model)["non_embedding"]
    said = {"target": target.name, "x": X, "y": Y, X: size, "runs": [row["name"] for row in equal]}
    said |= _guess(lambda: laws.power(equal, x=X, y=Y), size)
    if len(rest) > len(equal):
        joint = _guess(lambda: laws.chinchilla(rest, n=X, y=Y), size, sizes.tokens(target))
        said["joint"] = joint | {"runs": [row["name"] for row in rest]}
    if target.eval.tasks:
        said["tasks"] = mastery.foretell(equal, size)
    records.write_json(
        folder / "prediction.json",
        said | {"written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")},
    )


def peers(runs: list[config.Run]) -> tuple[list[str], list[str]]:
    """Names of the runs that can speak for the predicted one: of its tokens, and of any.

    Neither its family nor trunks, whose learning rate never falls, can. Where none has its tokens,
    those of its tokens a parameter are the first: then size and tokens grow along one line.
    """
    target, late = next(run for run in runs if run.predict), family(runs)
    trunks = {run.start.run for run in runs if run.start.keep == "state"}
    found = [run for run in runs if run.name not in late | trunks]
    equal = _alike(found, target, sizes.tokens) or _alike(found, target, _tokens_a_parameter)
    return equal, sorted(run.name for run in found)


def _alike(runs: list[config.Run], target: config.Run, measure: Callable) -> list[str]:
    wanted = measure(target)
    return sorted(r.name for r in runs if abs(measure(r) - wanted) <= SAME_TOKENS * wanted)


def _tokens_a_parameter(run: config.Run) -> float:
    return sizes.tokens(run) / sizes.counts(run.model)["total"]


def _guess(fit_law: Callable, *at: float) -> dict:
    """What a law says at a size: value, lo, hi, level, fit; or why it says nothing: refused."""
    try:
        fit = fit_law()
        guess = fit.predict(*at)
    except ValueError as refusal:
        return {"refused": str(refusal)}
    said = {"value": float(guess.value), "lo": float(guess.lo), "hi": float(guess.hi)}
    return said | {"level": guess.level, "fit": fit.to_dict()}
