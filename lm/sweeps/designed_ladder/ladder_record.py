"""Record of a designed ladder: ladder.json in the folder of its sweep.

    decisions = ladder_record.read_decisions("runs/tiny")
    decisions[0].run, decisions[0].reason

The record has the decisions in order, with their reasons and numbers, and the reason of the last
stop. An interrupted ladder continues from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.runs import filesystem, json_files, records
from lm.runs.integrity import record_checksums

FILE = "ladder.json"


@dataclasses.dataclass(frozen=True)
class LadderDecision:
    """Decision to train a run. Errors are relative; None is unknown.

    is_earlier: the run was finished before the ladder, and its time does not count.
    """

    run: str  # name SWEEP/RUN
    cell: str
    seed: int
    reason: str
    is_earlier: bool = False
    error: float | None = None  # of the target, before the run
    error_after: float | None = None  # expected
    seconds: float | None = None  # estimated
    time: str = ""


def read_decisions(folder: str | Path) -> list[LadderDecision]:
    """Return the decisions in the folder of a sweep, [] without a record.

    Raises ValueError for a damaged record.
    """
    file = filesystem.open_path(folder) / FILE
    content = json_files.read_record(file) if file.exists() else {}
    names = {field.name for field in dataclasses.fields(LadderDecision)}
    try:
        return [
            LadderDecision(**{k: v for k, v in entry.items() if k in names})
            for entry in content.get("decisions", [])
        ]
    except (TypeError, AttributeError):
        remedy = record_checksums.describe_remedy(file)
        raise ValueError(f"{file} has no list of decisions: {remedy}") from None


def read_result(folder: str | Path) -> dict[str, Any]:
    """Return the state at the last stop: reason, error, value, spent_seconds and is_reached."""
    return json_files.read_record(filesystem.open_path(folder) / FILE).get("result", {})


def write_decisions(
    folder: str | Path,
    decisions: Sequence[LadderDecision],
    goal: Mapping[str, Any],
    result: Mapping[str, Any] | None = None,
) -> None:
    """Write the decisions, the goal and the state at the last stop, if the ladder has stopped."""
    folder = filesystem.open_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "goal": dict(goal),
        "decisions": [dataclasses.asdict(decision) for decision in decisions],
        "written": records.current_time(),
    }
    json_files.write_record(folder / FILE, content | ({"result": dict(result)} if result else {}))
