"""Archive of a sweep: its small records in a separate folder that can be committed to git.

    archive.archive_sweep("runs/quickstart", "notebooks/data/quickstart")     # number of bytes
    rows = records.load_runs("notebooks/data/quickstart")                  # as for the original
    folder

The archive contains the config, facts, evaluations and events of every run, thinned log steps, the
plan and the prediction. It contains no weights, tokenizers or TensorBoard files. Numbers of lines
are rounded to seven digits. Records contain paths as the user wrote them, so paths that lead out of
the repository (/..., ~/..., ../..., gs://...) are shortened:
jsonl:/home/me/text/books/*.gz becomes jsonl:books/*.gz.
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from lm.runs import filesystem, records

OF_SWEEP = ("sweep.json", "plan.json", "prediction.json")
OF_RUN = ("config.json", "facts.json", "metrics.jsonl", "evals.jsonl", "events.jsonl")
DRAWN = ("report.html", "figures")  # files of a report, which may be in the archive folder
LEFT_OUT = ("host",)  # facts that identify a machine
LINES = (128, 64, 32, 16)  # log steps per run: the largest number that fits is used
DIGITS = 7
OUTSIDE = re.compile(r"""(?<![\w.*~/])(?:gs:/|~|\.\.(?:/\.\.)*)?(?:/[^\s/:;,?&"'()]+)+/?""")
HOMES = re.compile(r"^(?:~|/root|/(?:home|Users)/[^/]+)(?=/|$)")


def archive_sweep(sweep_dir, to, megabytes: float = 1.5) -> int:
    """Replace the folder `to` by the records of a sweep. Return their number of bytes.

    Raises ValueError if the sweep holds no runs, if `to` contains other files than records, or if
    the records exceed `megabytes` even with the smallest number of LINES.
    """
    path, to = filesystem.open_path(sweep_dir), filesystem.open_path(to)
    _check_target(path, to)
    contents = _read(path)
    files = _fitting_files(path, contents, megabytes)
    for stale in set(_archived_files(to)) - set(files):
        (to / stale).unlink()
    for name, text in files.items():
        filesystem.write_file(to / name, text)
    return _n_bytes(files)


def _fitting_files(path: Path, contents: dict, megabytes: float) -> dict[str, str]:
    """Return {file: text} with the largest number of log steps that fits into `megabytes`."""
    paths = set().union(*(_outside(value) for value in contents.values()))
    short_names = _shortened(paths)
    portable = {name: _renamed(value, short_names) for name, value in contents.items()}
    files: dict[str, str] = {}
    for max_lines in LINES:
        files = {name: _text(name, value, max_lines) for name, value in portable.items()}
        if _n_bytes(files) <= megabytes * 1e6:
            return files
    raise ValueError(
        f"--megabytes={megabytes:g} is too small: the records of {path} take "
        f"{_n_bytes(files) / 1e6:.1f} MB with {LINES[-1]} log steps per run. "
        "Raise it or archive fewer runs."
    )


def _check_target(path: Path, to: Path) -> None:
    source, target = Path(path).absolute(), Path(to).absolute()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(
            f"--keep={to} must lie outside of the sweep directory {path} and must not contain it."
            " Pass another folder."
        )
    others = [name for name in _archived_files(to) if Path(name).name not in OF_SWEEP + OF_RUN]
    if others:
        raise ValueError(
            f"--keep={to} contains {others[0]}, which is not a sweep record."
            " Pass a new or empty folder."
        )


def _archived_files(to: Path) -> list[str]:
    """Return the files below the folder except those of a report, as relative paths."""
    files = [file.relative_to(to) for file in to.glob("**/*") if file.is_file()]
    return sorted(file.as_posix() for file in files if file.parts[0] not in DRAWN)


def _read(path: Path) -> dict[str, Any]:
    """Return {file relative to the sweep: content}."""
    contents: dict[str, Any] = {
        name: records.read_json(path / name) for name in OF_SWEEP if (path / name).exists()
    }
    runs = [file.parent for file in filesystem.find_files(path, "config.json")]
    if not runs:
        raise ValueError(f"{path} holds no runs. Pass the directory of a sweep: runs/quickstart")
    for run in runs:
        folder = PurePosixPath(run.relative_to(path))
        facts = {k: v for k, v in records.read_facts(run).items() if k not in LEFT_OUT}
        lines = (records.load_metrics(run), records.load_evals(run), records.load_events(run))
        values = (records.read_json(run / "config.json"), facts, *lines)
        for file, value in zip(OF_RUN, values, strict=True):
            if value:
                contents[str(folder / file)] = value
    return contents


def _text(name: str, value, max_lines: int) -> str:
    """Return the text of a file. Thin out metrics.jsonl to max_lines lines."""
    if isinstance(value, dict):
        return json.dumps(value, indent=1) + "\n"
    if name.endswith("metrics.jsonl") and len(value) > max_lines:
        value = [value[round(i * (len(value) - 1) / (max_lines - 1))] for i in range(max_lines)]
    return "".join(json.dumps(_rounded(line), separators=(",", ":")) + "\n" for line in value)


def _rounded(line: dict) -> dict:
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for key, value in line.items()
    }


def _n_bytes(files: dict[str, str]) -> int:
    return sum(len(text.encode()) for text in files.values())


def _outside(value) -> set[str]:
    """Return all paths in plain data that lead out of the repository."""
    if isinstance(value, dict):
        return set().union(*(_outside(part) for pair in value.items() for part in pair))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_outside, value))
    return set(OUTSIDE.findall(value)) if isinstance(value, str) else set()


def _shortened(paths: set[str]) -> dict[str, str]:
    """Return {path: its last name}, with the folder before a pattern.

    Different paths with the same last name are numbered.
    """
    short_names, taken = {}, {}
    for path in sorted(paths):
        names = _names(path)
        first, *rest = names[-2:] if "*" in names[-1] else names[-1:]
        same_name = taken.setdefault((first, *rest), [])
        if names not in same_name:
            same_name.append(names)
        number = same_name.index(names) + 1
        short_names[path] = "/".join([f"{first}-{number}" if number > 1 else first, *rest])
    return short_names


def _names(path: str) -> list[str]:
    """Return the folders and the file of a path, with "home" for a home directory."""
    inside = HOMES.sub("home", path).removeprefix("gs:/").rstrip("/")
    return [name for name in inside.split("/") if name not in ("", "..")] or ["folder"]


def _renamed(value, names: dict[str, str]):
    """Replace every path in plain data, also in keys."""
    if isinstance(value, dict):
        new = {_renamed(key, names): _renamed(part, names) for key, part in value.items()}
        if len(new) < len(value):
            keys = ", ".join(value)
            raise ValueError(f"two of {keys} have the same name without their folders. Rename one.")
        return new
    if isinstance(value, (list, tuple)):
        return [_renamed(part, names) for part in value]
    return OUTSIDE.sub(lambda match: names[match[0]], value) if isinstance(value, str) else value
