"""The files of a sweep that an audit compares, and the result of a comparison."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lm.reports.audit import ability_prediction, target_prediction
from lm.runs import archive, filesystem, records
from lm.runs.integrity import prediction_log, record_checksums, sweep_files

VERIFIED, CONTRADICTION, UNVERIFIABLE = "verified", "contradiction", "not verifiable"
STATUSES = (VERIFIED, CONTRADICTION, UNVERIFIABLE)
ARCHIVED = "archived"  # entry of the sweep.json of an archive, whose .jsonl files are rounded
INPUT_ENTRIES = ("records", "values")  # of each run in the entry inputs


class Link(NamedTuple):
    """Result of the verification of one link of the chain."""

    status: str  # VERIFIED, CONTRADICTION or UNVERIFIABLE
    text: str  # the files that agree or differ


class Chain(NamedTuple):
    """Files of a sweep that the links compare."""

    folder: Path
    prediction: dict  # content of prediction.json
    entries: list[dict]  # of predictions.jsonl
    rows: dict[str, dict]  # by name, of all runs in the folder
    unreadable: dict[Path, str]
    members: set[str] | None  # names in sweep.json
    is_archive: bool
    archived_hashes: dict[str, str]  # of the predictions of an archive, by file

    @property
    def target(self) -> str:
        return str(self.prediction["target"])

    @property
    def target_dir(self) -> Path:
        return target_prediction.run_folder(self.folder, self.target)

    def has_short_paths(self, file: str, sha256: str) -> bool:
        """Return True if an archive has a prediction as it was archived, with shortened paths."""
        return self.is_archive and self.archived_hashes.get(file) == sha256

    def entries_of(self, kind: str) -> list[dict]:
        """Return the entries of a kind for the target."""
        return [e for e in self.entries if (e.get("kind"), e.get("target")) == (kind, self.target)]


def load_chain(sweep_dir: str | Path) -> Chain:
    """Load the files of a sweep. Raises ValueError that names a damaged file."""
    folder = filesystem.open_path(sweep_dir)
    prediction, request = sweep_files.read_prediction(folder), sweep_files.read_sweep(folder)
    prediction.pop(record_checksums.VERSION, None)
    loaded, names = records.load_folder(folder), request.get("runs")
    return Chain(
        folder,
        prediction,
        prediction_log.read_entries(folder),
        {row["name"]: row for row in (*loaded.rows, *loaded.others)},
        loaded.unreadable,
        None if names is None else set(map(str, names)),
        bool(request.get(ARCHIVED)),
        hashes if isinstance(hashes := request.get(archive.ARCHIVED_PREDICTIONS), dict) else {},
    )


def find_missing_entry(prediction: Mapping) -> str:
    """Return the name of an entry that the audit needs and that is missing or invalid, or ""."""
    inputs, candidates = prediction.get("inputs"), prediction.get("candidates")
    sizes = [prediction.get(name) for name in (target_prediction.X, records.TOKENS)]
    is_valid = {
        "inputs": isinstance(inputs, dict)
        and all(
            isinstance(run, dict) and all(isinstance(run.get(k), dict) for k in INPUT_ENTRIES)
            for run in inputs.values()
        ),
        "candidates": isinstance(candidates, dict)
        and set(candidates) == set(target_prediction.Candidates._fields)
        and all(_is_list_of_names(names) for names in candidates.values()),
        "members": _is_list_of_names(prediction.get("members")),
        target_prediction.UNFINISHED: _is_list_of_names(
            prediction.get(target_prediction.UNFINISHED, [])
        ),
        "code": isinstance(prediction.get("code"), dict),
        "joint": isinstance(prediction.get("joint", {}), dict),
        target_prediction.SOURCE_LOSSES: _is_dict_of_dicts(
            prediction.get(target_prediction.SOURCE_LOSSES, {})
        ),
        target_prediction.ABILITIES: _has_methods(prediction.get(target_prediction.ABILITIES, {})),
        "size": all(map(records.is_finite, sizes)),
    }
    return next((name for name, is_present in is_valid.items() if not is_present), "")


def _has_methods(abilities: object) -> bool:
    """Return True for predicted abilities, also without entries: see ability_prediction.py."""
    if not isinstance(abilities, dict):
        return False
    by_method = {method: abilities.get(method, {}) for method in ability_prediction.METHODS}
    return _is_dict_of_dicts(by_method) and all(
        _is_dict_of_dicts(entry.get("scores", {})) and isinstance(entry.get("above", {}), dict)
        for entry in by_method.values()
    )


def _is_dict_of_dicts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def compare(is_same: bool, subject: str, difference: str, agreement: str = "") -> Link:
    """Return a verified link, or a contradiction with a difference."""
    if is_same:
        return Link(VERIFIED, f"{subject} {agreement}".rstrip())
    return Link(CONTRADICTION, f"{subject}, and {difference}")


def is_close(first: object, second: object, tolerance: float) -> bool:
    if records.is_finite(first) and records.is_finite(second):
        return math.isclose(first, second, rel_tol=tolerance)
    return first == second
