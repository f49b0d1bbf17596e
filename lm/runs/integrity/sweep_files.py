"""Find the runs of a folder, and read sweep.json, plan.json and the predictions.

    sweep_files.read_plan("runs/quickstart")       # planned cost of each run
    sweep_files.read_prediction("runs/quickstart")

Functions that read raise ValueError that names a damaged file.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lm.config import schema
from lm.runs import filesystem, json_files
from lm.runs.integrity import record_checksums

EARLIER_PREFIX = "prediction-"  # of the files of the predictions of earlier targets
PLAN_COLUMNS = ("name", "flops", "seconds")  # of each run in plan.json


def read_sweep(sweep_dir: str | Path) -> dict:
    """Return the content of sweep.json, {} if there is neither this file nor plan.json.

    If sweep.json was deleted, the runs are those of plan.json.
    """
    file, content = _read(sweep_dir, "sweep.json")
    if not content:
        names = [cost["name"] for cost in _valid_costs(*_read(sweep_dir, "plan.json"))]
        return {"runs": names} if names else {}
    if not isinstance(content.get("runs", []), list):
        raise ValueError(f"{file}: runs={content['runs']!r} must be a list. {_remedy(file)}")
    return content


def read_member_names(sweep_dir: str | Path) -> set[str] | None:
    """Return the names of the runs in sweep.json, None if there is no such file or entry."""
    names = read_sweep(sweep_dir).get("runs")
    return None if names is None else {str(name) for name in names}


def folder_arguments(sweep_dir: str | Path, request: Mapping) -> list[str]:
    """Return --dir=FOLDER if a command must name the folder of the runs of a sweep, else [].

    The default folder needs no argument. An archive is no folder of runs that can continue.
    request: content of sweep.json.
    """
    folder = filesystem.open_path(sweep_dir)
    if request.get("archived"):
        return []
    if not filesystem.is_remote(folder):
        is_named = folder.name not in ("", "..")
        folder = folder if is_named else Path(os.path.abspath(folder))
        if os.path.abspath(folder.parent) == os.path.abspath(schema.Run().dir):
            return []
    return [f"--dir={folder.parent}"]


def read_plan(sweep_dir: str | Path) -> list[dict]:
    """Return the planned cost of each run in plan.json, [] without the file."""
    file, content = _read(sweep_dir, "plan.json")
    costs = _valid_costs(file, content)
    _check_members(file, [str(cost["name"]) for cost in costs], sweep_dir)
    return costs


def _valid_costs(file: Path, content: dict) -> list[dict]:
    """Return the rows of plan.json. Raises ValueError if a row lacks a column."""
    costs = content.get("runs", [])
    is_list = isinstance(costs, list) and all(isinstance(cost, dict) for cost in costs)
    if not is_list or any(name not in cost for cost in costs for name in PLAN_COLUMNS):
        raise ValueError(f"{file}: a run has no {' or '.join(PLAN_COLUMNS)}. {_remedy(file)}")
    return costs


def read_prediction(sweep_dir: str | Path) -> dict:
    """Return the content of prediction.json, {} without the file."""
    file, content = _read(sweep_dir, "prediction.json")
    if not content:
        return {}
    missing = [name for name in ("target", "x", "y", "runs") if name not in content]
    if missing:
        raise ValueError(f"{file} has no entry {missing[0]}. {_remedy(file)}")
    _check_members(file, [str(content["target"])], sweep_dir)
    return content


def earlier_file(sweep_dir: str | Path, target: str) -> Path:
    """Return the file of the prediction of an earlier target: prediction-RUN.json."""
    name = target.partition("/")[2].replace("/", "-")
    return filesystem.open_path(sweep_dir) / f"{EARLIER_PREFIX}{name}.json"


def find_earlier_files(sweep_dir: str | Path) -> list[Path]:
    """Return the files of the predictions of earlier targets, sorted by name."""
    return sorted(filesystem.open_path(sweep_dir).glob(f"{EARLIER_PREFIX}*.json"))


def read_earlier_predictions(sweep_dir: str | Path) -> list[dict]:
    """Return the predictions of earlier targets, in the order in which they were written."""
    predictions = [json_files.read_record(file) for file in find_earlier_files(sweep_dir)]
    valid = [content for content in predictions if {"target", "y"} <= content.keys()]
    return sorted(valid, key=lambda content: str(content.get("written")))


def describe_missing_files(sweep_dir: str | Path) -> list[str]:
    """Return a sentence if only one of sweep.json and plan.json exists. A sweep writes both."""
    folder = filesystem.open_path(sweep_dir)
    has_sweep, has_plan = (folder / "sweep.json").exists(), (folder / "plan.json").exists()
    if has_sweep and not has_plan:
        return [f"{folder / 'plan.json'} is missing: the planned costs are unknown"]
    if has_plan and not has_sweep:
        return [f"{folder / 'sweep.json'} is missing: the runs of the sweep are those of plan.json"]
    return []


def find_run_dirs(top: Path) -> list[Path]:
    """Return the run directories below a folder, also those whose config.json is missing."""
    folders = {file.parent for file in filesystem.find_files(top, "config.json")}
    with_facts = {file.parent for file in filesystem.find_files(top, "facts.json")}
    # A run that failed before its first attempt has facts, and neither a config nor metrics.
    started = {f for f in with_facts - folders if filesystem.read_lines(f / "metrics.jsonl")}
    return sorted(folders | started)


def is_in_sweep(folder: Path, name: str, top: Path, members: dict[Path, set[str] | None]) -> bool:
    """Return False if the nearest sweep.json between the run and `top` does not name the run.

    The folder of the run must also agree with its name, so that a copy of a run does not count.
    members: names of the runs of each folder that was examined, which this function extends.
    """
    sweep_dir = folder.parent
    while len(sweep_dir.parts) >= len(top.parts):
        if sweep_dir not in members:
            members[sweep_dir] = read_member_names(sweep_dir)
        names = members[sweep_dir]
        if names is not None:
            return name in names and name.endswith(f"/{folder.relative_to(sweep_dir).as_posix()}")
        if sweep_dir == sweep_dir.parent:
            break
        sweep_dir = sweep_dir.parent
    return True


def _read(sweep_dir: str | Path, name: str) -> tuple[Path, dict]:
    """Return the path of a file, and its content or {}."""
    file = filesystem.open_path(sweep_dir) / name
    return file, json_files.read_record(file) if file.exists() else {}


def _check_members(file: Path, names: Iterable[str], sweep_dir: str | Path) -> None:
    """Raise ValueError if a file describes runs of another sweep."""
    members = read_member_names(sweep_dir)
    sweeps = {name.partition("/")[0] for name in members or ()}
    others = [name for name in names if name.partition("/")[0] not in sweeps]
    if sweeps and others:
        raise ValueError(
            f"{file} describes {others[0]}, a run of another sweep than sweep.json. {_remedy(file)}"
        )


def _remedy(file: Path) -> str:
    return f"To repair it, {record_checksums.describe_remedy(file)}"
