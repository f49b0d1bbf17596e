"""Rules for run names, and the names of files and folders that no run can have.

    runs/SWEEP/RUN/config.json        "config.json" and "checkpoints" cannot be the name of a run
    check_run_name("name", "a/b")     # raises schema.ConfigError for an invalid name

File systems of macOS ignore the case of a name, so the rules ignore it too.
"""

import os
import re

from lm.config import schema, value_checks

NAME_PATTERN = re.compile(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*")
MAX_NAME = 200  # characters of a folder name; file systems allow 255 with temporary suffixes
# Folders in a run directory.
CHECKPOINTS, DAMAGED, PINS, TENSORBOARD = "checkpoints", "damaged", "pins", "tensorboard"
# Folders in the directory of a sweep.
FIGURES, SLURM, WORKERS = "figures", "slurm", "workers"
FOLDERS = (CHECKPOINTS, DAMAGED, PINS, TENSORBOARD, FIGURES, SLURM, WORKERS, "quarantine")
# Every file of a run or a sweep has one of these suffixes, or is a lock of lm/runs/lock.py.
FILE_SUFFIXES = (".json", ".jsonl", ".parts", ".txt", ".html", ".npz", ".model", ".log")
LOCK_PREFIX = "lock-"


def is_reserved(name: str) -> bool:
    """Return True if a file or folder of a run or a sweep may have this name."""
    folded = name.casefold()
    return folded in FOLDERS or folded.endswith(FILE_SUFFIXES) or folded.startswith(LOCK_PREFIX)


def check_run_name(field: str, name: str, may_be_reserved: bool = False) -> None:
    """Check the characters of a run name, and each folder between two slashes.

    field: name of the config field. may_be_reserved: an older version started the run. Raises
    ConfigError.
    """
    parts = name.split("/")
    if not NAME_PATTERN.fullmatch(name) or any(part.startswith(".") for part in parts):
        problem = "must consist of letters, digits and _ . + - with / between folders"
        value_checks.reject(field, name, f"{problem}, and no folder may begin with a dot")
    for part in parts:
        if is_reserved(part) and not may_be_reserved:
            problem = f"contains {part}, which is reserved for the files of a sweep or of a run"
            value_checks.reject(field, name, f"{problem}: choose another name")
        if len(part) > MAX_NAME:
            problem = f"contains a name of {len(part)} characters: use at most {MAX_NAME}"
            value_checks.reject(field, name, problem)


def check_distinct_names(names: list[str]) -> None:
    """Check that no two names differ only in case, because macOS stores them in one folder.

    Raises ConfigError.
    """
    by_folded_name: dict[str, str] = {}
    for name in names:
        previous = by_folded_name.setdefault(name.casefold(), name)
        if previous != name:
            problem = f"differs from {previous} only in case: choose another name"
            value_checks.reject("name", name, problem)


def check_run_folder(run: schema.Run) -> None:
    """Check the path of the run folder, and that no token files are stored in this folder.

    Raises ConfigError.
    """
    value_checks.check_path("name", f"{run.dir}/{run.name}", shown=run.name)
    folder = os.path.realpath(os.path.join(run.dir, run.name))
    for field, cache in (
        ("data.cache_dir", run.data.cache_dir),
        ("data.local_cache_dir", run.data.local_cache_dir),
    ):
        if "://" not in run.dir and "://" not in cache and os.path.realpath(cache) == folder:
            problem = f"is the folder {field}={cache} of the token files: choose another name"
            value_checks.reject("name", run.name, problem)
