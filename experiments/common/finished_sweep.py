"""A sweep whose runs are all finished and reported, so that its command ends in seconds."""

import os
from pathlib import Path

from absl import flags

from lm.config import schema
from lm.parallel import cluster
from lm.runs import filesystem, records
from lm.runs.integrity import sweep_files, sweep_fingerprint


def find_finished_folder(runs: list[schema.Run]) -> Path | None:
    """Return the folder of a sweep if its runs are finished and sweep.json names exactly them.

    Return None otherwise, and in one of several processes, because all must decide alike. The
    prepared text is not compared, because no step is trained. Raises ValueError for a changed
    config, see records.check_same_config.
    """
    values = flags.FLAGS
    if cluster.find_processes(os.environ, values.coordinator, values.processes, values.process):
        return None
    names = {run.name for run in runs}
    folders = {filesystem.open_path(run.dir) / run.name.split("/")[0] for run in runs}
    if len(folders) != 1 or len(names) < len(runs) or not all(map(records.is_finished, runs)):
        return None
    for run in runs:
        records.check_same_config(run)
    folder = folders.pop()
    return folder if sweep_files.read_member_names(folder) == names else None


def find_current_report(folder: Path) -> Path | None:
    """Return the report of a local sweep if this code wrote it from the same records, else None.

    Figures take most of the time of a report. experiments.report always draws them again.
    """
    from lm.reports import html

    page, fingerprint = folder / "report.html", sweep_fingerprint.fingerprint_sweep(folder)
    return page if fingerprint and html.has_fingerprint(page, fingerprint) else None
