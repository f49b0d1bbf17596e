"""Archive of a sweep: its small records in a separate folder that can be committed to git.

    n_bytes = archive.archive_sweep("runs/real_ladder", "notebooks/data/real_ladder")
    rows = records.load_runs("notebooks/data/real_ladder")      # the rows of the original sweep

The archive contains the config, facts, evaluations and events of every run of the sweep, thinned
log steps, the plan, the prediction and its log, and the decisions of a designed ladder. It also
contains the held-out losses per document, and small files of the points of task examples, which the
paired errors of two runs need. Other runs in the folder are not part of the sweep and are not
archived. The archive contains no weights, tokenizers or TensorBoard files. Numbers in .jsonl files
are rounded to seven digits. An evals.jsonl of more than MAX_PLAIN_BYTES is compressed, and
`filesystem.read_lines` reads it as evals.jsonl.gz. Records contain paths as the user wrote them,
and an archive must not reveal them. Therefore paths outside the repository (/..., ~/..., ../...,
gs://...) are shortened: jsonl:/home/me/text/books/*.gz becomes jsonl:books/*.gz.
"""

import gzip
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lm.runs import filesystem, json_files, records, short_names
from lm.runs.integrity import prediction_log, record_checksums, record_lines, sweep_files
from lm.runs.items import array_files

SWEEP_FILES = ("sweep.json", "plan.json", "prediction.json", "ladder.json")
RUN_FILES = ("config.json", "facts.json", "metrics.jsonl", "evals.jsonl", "events.jsonl")
# Arrays of the last evaluation: loss sums per document, and points of task examples.
ARRAY_FILES = ("heldout.npz", "tasks.npz")
MAX_TASK_BYTES = 50_000  # of a file of points, so that it is archived
MAX_PLAIN_BYTES = 10_000  # of an evals.jsonl that is not compressed
# May be in the archive folder and are not changed.
REPORT_FILES = ("report.html", "prediction_results.json", "figures")
# Facts that identify a machine or count the lines of the original are not archived.
LOCAL_FACTS = ("host", record_lines.N_LINES, record_lines.N_MISSING)
ARCHIVED_PREDICTIONS = "archived_predictions"  # entry of sweep.json: hashes by file
DAMAGED_LINE = "damaged_line"  # entry of an archived row in place of a damaged line
# Levels of detail: log steps per run, and True for the loss sums per document. The first level that
# fits is used. The last ones also have no line breaks in JSON files.
LEVELS = (
    (128, True),
    (64, True),
    (32, True),
    (16, True),
    (4, True),
    (16, False),
    (4, False),
    (0, False),
)
DIGITS = 7
# A path outside the repository: it begins with /, ~/, ../ or gs://. The part of a task follows #.
OUTSIDE = re.compile(r"""(?<![\w.*~/])(?:gs:/|~|\.\.(?:/\.\.)*)?(?:/[^\s/:;,?&#"'()]+)+/?""")
HOME_DIR = re.compile(r"^(?:~|/root|/(?:home|Users)/[^/]+)(?=/|$)")


def archive_sweep(sweep_dir, archive_dir, megabytes: float = 1.5) -> int:
    """Replace the content of archive_dir by the records of a sweep. Return their number of bytes.

    megabytes: limit of the size of all records. Raises ValueError if the sweep contains no runs, or
    if archive_dir contains other files than records. Also raises it if the records exceed the limit
    even with the smallest number of log steps.
    """
    path, archive_dir = filesystem.open_path(sweep_dir), filesystem.open_path(archive_dir)
    _check_target(path, archive_dir)
    contents = _read_records(path)
    files = _fitting_files(path, contents, megabytes)
    for stale in set(_archived_files(archive_dir)) - set(files):
        (archive_dir / stale).unlink()
    for name, text in files.items():
        filesystem.write_file(archive_dir / name, text)
    return _n_bytes(files)


def _fitting_files(path: Path, contents: dict, megabytes: float) -> dict[str, str | bytes]:
    """Return {file: content} with the most detail that fits into `megabytes`: see LEVELS."""
    paths = set().union(*(_outside_paths(value) for value in contents.values()))
    endings = _short_names(paths)
    portable = {name: _replace_paths(value, endings) for name, value in contents.items()}
    _add_prediction_hashes(portable)
    files: dict[str, str | bytes] = {}
    for n_steps, has_sums in LEVELS:
        texts = (
            (name, _file_text(name, value, n_steps, has_sums, _run_id(name, portable)))
            for name, value in portable.items()
            if has_sums or not name.endswith(ARRAY_FILES)
        )
        files = dict(_compress(name, text) for name, text in texts if text)
        if _n_bytes(files) <= megabytes * 1e6:
            return files
    raise ValueError(
        f"--megabytes={megabytes:g} is too small: the records of {path} need "
        f"{math.ceil(_n_bytes(files) / 1e4) / 100:.2f} MB with {LEVELS[-1][0]} log steps per run. "
        "Raise it or archive fewer runs."
    )


def _compress(name: str, content: str | bytes) -> tuple[str, str | bytes]:
    """Return the name and the content of a file of the archive: a long evals.jsonl is compressed.

    Its evaluations of many tasks repeat long names.
    """
    if isinstance(content, bytes) or not name.endswith("evals.jsonl"):
        return name, content
    raw = content.encode()
    if len(raw) <= MAX_PLAIN_BYTES:
        return name, content
    return name + filesystem.COMPRESSED, gzip.compress(raw, mtime=0)


def _run_id(name: str, contents: dict) -> str | None:
    """Return the run_id of the run that a file of the archive belongs to."""
    return contents.get(str(PurePosixPath(name).with_name("config.json")), {}).get("run_id")


def _check_target(path: Path, archive_dir: Path) -> None:
    """Raise ValueError if writing the archive could overwrite other files."""
    source, target = Path(path).absolute(), Path(archive_dir).absolute()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(
            f"--archive_to={archive_dir} must be outside the sweep directory {path} and must not"
            " contain it. Pass another folder."
        )
    run_files = (*RUN_FILES, *(name + filesystem.COMPRESSED for name in RUN_FILES), *ARRAY_FILES)
    known = (*SWEEP_FILES, prediction_log.FILE, *run_files)
    files = _archived_files(archive_dir)
    others = [name for name in files if Path(name).name not in known]
    if others:
        raise ValueError(
            f"--archive_to={archive_dir} contains {others[0]}, which is not a sweep record."
            " Pass a new or empty folder."
        )


def _archived_files(archive_dir: Path) -> list[str]:
    """Return the files below the folder except those of a report, as relative paths."""
    files = [file.relative_to(archive_dir) for file in archive_dir.glob("**/*") if file.is_file()]
    return sorted(file.as_posix() for file in files if file.parts[0] not in REPORT_FILES)


def _read_records(path: Path) -> dict[str, Any]:
    """Return {file relative to the sweep: content} of all records that are archived."""
    contents: dict[str, Any] = {
        name: json_files.read_record(path / name) for name in SWEEP_FILES if (path / name).exists()
    }
    for file in sweep_files.find_earlier_files(path):
        contents[file.name] = json_files.read_record(file)
    if "sweep.json" in contents:
        contents["sweep.json"]["archived"] = True  # its lines are not those of the original
    if entries := prediction_log.read_entries(path):
        contents[prediction_log.FILE] = entries
    run_dirs = [filesystem.open_path(row["dir"]) for row in records.load_runs(path)]
    if not run_dirs:
        raise ValueError(f"{path} contains no runs. Pass the directory of a sweep: runs/quickstart")
    for run_dir in sorted(run_dirs):
        folder = PurePosixPath(run_dir.relative_to(path))
        facts = records.read_facts(run_dir)
        values = (
            json_files.read_record(run_dir / "config.json"),
            {key: value for key, value in facts.items() if key not in LOCAL_FACTS},
            *(_archived_rows(run_dir / name, facts) for name in RUN_FILES[2:]),
        )
        for file, value in zip(RUN_FILES, values, strict=True):
            if value:
                contents[str(folder / file)] = value
        for name in ARRAY_FILES:
            if (run_dir / name).exists() and (arrays := _read_arrays(run_dir / name)):
                contents[str(folder / name)] = arrays
    return contents


def _add_prediction_hashes(contents: dict[str, Any]) -> None:
    """Store the hashes of the archived predictions in sweep.json, for an audit of the archive.

    A shortened path changes the hash of a prediction, so the log of the sweep has another hash.
    """
    if "sweep.json" in contents:
        contents["sweep.json"][ARCHIVED_PREDICTIONS] = {
            name: prediction_log.content_sha256(
                {key: v for key, v in content.items() if key != record_checksums.VERSION}
            )
            for name, content in contents.items()
            if name == "prediction.json" or name.startswith(sweep_files.EARLIER_PREFIX)
        }


def _archived_rows(file: Path, facts: Mapping) -> list[dict]:
    """Return the rows of a .jsonl file in its order, and a row without a step per damaged line.

    A row without a step is damaged for every reader. Therefore a run that is excluded because of a
    damaged line is excluded in its archive too. Rows that a later attempt replaced are left out.
    An unfinished last line is damage if the run has ended.
    """
    content = json_files.read_file(file)
    rows = dict(content.rows)
    if file.name != "events.jsonl":
        latest = {id(row) for row in json_files.latest_rows(rows.values())}
        rows = {number: row for number, row in rows.items() if id(row) in latest}
    has_ended = facts.get("status") in records.TERMINAL_STATUSES
    lost = content.corrupt_lines + [content.truncated_line] * (
        has_ended and content.truncated_line > 0
    )
    rows |= {number: {DAMAGED_LINE: number} for number in lost}
    return [rows[number] for number in sorted(rows)]


def _read_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of a file, and texts as lists, whose paths are shortened.

    Return {} for a damaged file, and for a large file of points.
    """
    if path.name != ARRAY_FILES[0] and path.stat().st_size > MAX_TASK_BYTES:
        return {}
    try:
        arrays = array_files.read_arrays(path)
    except Exception as error:  # zipfile, zlib and NumPy raise many types for a damaged file
        kind = type(error).__name__
        warnings.warn(f"{path} is damaged and not archived ({kind}): delete it", stacklevel=2)
        return {}
    return {k: v.tolist() if v.dtype.kind == "U" else v for k, v in arrays.items()}


def _file_text(
    name: str, value, n_steps: int, is_indented: bool, run_id: str | None
) -> str | bytes:
    """Return the content of a file. Select n_steps evenly spaced lines of metrics.jsonl.

    is_indented: write each entry of a JSON file to its own line. run_id: identifier of the run of
    the file. None is a run without checksums.
    """
    if name.endswith(ARRAY_FILES):
        return array_files.encode_arrays(value)
    if isinstance(value, dict):
        has_checksum = record_checksums.VERSION in value
        content = record_checksums.add_checksum(value) if has_checksum else value
        compact = None if is_indented else (",", ":")
        return json.dumps(content, indent=1 if is_indented else None, separators=compact) + "\n"
    if name.endswith("metrics.jsonl") and len(value) > n_steps:
        value = [value[round(i * (len(value) - 1) / (n_steps - 1))] for i in range(n_steps)]
    lines = [json.dumps(_rounded(line), separators=(",", ":")) for line in value]
    if run_id is not None:
        lines = [record_checksums.add_line_checksum(line, run_id) for line in lines]
    return "".join(f"{line}\n" for line in lines)


def _rounded(line: dict) -> dict:
    """Round the floats of a line to DIGITS significant digits."""
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for key, value in line.items()
    }


def _n_bytes(files: dict[str, str | bytes]) -> int:
    """Return the size of all files."""
    return sum(len(v.encode() if isinstance(v, str) else v) for v in files.values())


def _outside_paths(value) -> set[str]:
    """Return all paths in plain data that are outside the repository."""
    if isinstance(value, dict):
        return set().union(*(_outside_paths(item) for pair in value.items() for item in pair))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_outside_paths, value))
    return set(OUTSIDE.findall(value)) if isinstance(value, str) else set()


def _short_names(paths: set[str]) -> dict[str, str]:
    """Return {path: its last component}, or the last two components if the last is a pattern.

    Different paths have one more component if this distinguishes them, such as ag_news/train.jsonl
    and sst2/train.jsonl. They have no further folders, which may be names of users, and are
    numbered if their names are still equal.
    """
    parts = {path: _components(path) for path in sorted(paths)}
    n_parts = {path: 2 if "*" in parts[path][-1] else 1 for path in parts}
    ends = {path: parts[path][-n - 1 :] for path, n in n_parts.items()}
    names = short_names.unique_endings(ends, n_parts)
    same_names: dict[str, list[list[str]]] = {}
    for path, name in names.items():
        same_name = same_names.setdefault(name, [])
        if parts[path] not in same_name:
            same_name.append(parts[path])
        number = same_name.index(parts[path]) + 1
        first, *others = name.split("/")
        names[path] = "/".join([f"{first}-{number}" if number > 1 else first, *others])
    return names


def _components(path: str) -> list[str]:
    """Return the folders and the file of a path, with "home" for a home directory."""
    path = HOME_DIR.sub("home", path).removeprefix("gs:/").rstrip("/")
    names = [name for name in path.split("/") if name not in ("", "..")]
    user = os.path.basename(os.path.expanduser("~"))
    return ["home" if name == user else name for name in names] or ["folder"]


def _replace_paths(value, names: dict[str, str]):
    """Replace every outside path in plain data, also in keys."""
    if isinstance(value, dict):
        new = {
            _replace_paths(key, names): _replace_paths(item, names) for key, item in value.items()
        }
        if len(new) < len(value):
            keys = ", ".join(value)
            raise ValueError(f"two of {keys} have the same name without their folders. Rename one.")
        return new
    if isinstance(value, (list, tuple)):
        return [_replace_paths(item, names) for item in value]
    return OUTSIDE.sub(lambda match: names[match[0]], value) if isinstance(value, str) else value
