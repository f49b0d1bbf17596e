"""Fingerprint of the sources of a report: the code of the package and the records of a sweep.

    before = sweep_fingerprint.fingerprint_sweep("runs/quickstart")

Records are not read, because their sizes and times suffice and a sweep has thousands of files.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from lm.config import run_files
from lm.runs import filesystem, provenance
from lm.runs.integrity import sweep_files

REPORT_FILES = ("report.html", "prediction_results.json")  # a report writes them


def fingerprint_sweep(sweep_dir: str | Path) -> str:
    """Return a hash of the code, and of the names, sizes and times of the files of a sweep.

    Files that a report writes do not count, nor do locks. Return "" for a bucket, where each file
    would cost a request.
    """
    top = filesystem.open_path(sweep_dir)
    if filesystem.is_remote(top):
        return ""
    states = {}
    for folder in {top, *sweep_files.find_run_dirs(top)}:
        for file in filesystem.list_dir(folder):
            if file.name in REPORT_FILES or file.name.startswith(run_files.LOCK_PREFIX):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process has removed the file
                if file.is_file():
                    status = file.stat()
                    name = file.relative_to(top).as_posix()
                    states[name] = status.st_size, status.st_mtime_ns
    sources = json.dumps([provenance.package_hash(), states], sort_keys=True)
    return hashlib.sha256(sources.encode()).hexdigest()[:16]
