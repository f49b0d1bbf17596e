"""Tables of sweeps with many runs: the page has the largest, and a CSV file has all of them.

shown = long_tables.shown_rows(sweep.rows)
note = long_tables.describe_omitted(sweep.rows)      # a sentence with a link to the file
long_tables.write_runs(sweep.path, sweep.rows)
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lm.config import run_files
from lm.reports import html
from lm.runs import filesystem

MAX_RUNS = 200  # runs of a sweep whose tables are complete
N_SHOWN = 100  # runs in the tables of a larger sweep
FILE = f"{run_files.FIGURES}/runs.csv"  # relative to the folder of the sweep


def shown_rows(rows: Sequence[dict]) -> Sequence[dict]:
    """Return the runs that the tables of a page show.

    rows: as records.load_runs sorts them, smallest model first. A large sweep has its largest.
    """
    return rows if len(rows) <= MAX_RUNS else rows[-N_SHOWN:]


def describe_omitted(rows: Sequence[dict]) -> Markup:
    """Return a sentence about the runs that a table does not show, empty if it shows all."""
    if len(rows) <= MAX_RUNS:
        return Markup()
    text = Markup("This table has the {} largest of {:,} runs. All runs and columns: {}.")
    return html.paragraph(text.format(N_SHOWN, len(rows), html.link(FILE, "runs.csv")), "muted")


def write_runs(folder: Path, rows: Sequence[dict]) -> None:
    """Write the columns of records.load_runs of all runs to the CSV file of a large sweep.

    Lists and dictionaries, such as data.sources, are written as JSON.
    """
    if len(rows) <= MAX_RUNS:
        return
    columns = dict.fromkeys(key for row in rows for key in row if key != "dir")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    filesystem.write_file(folder / FILE, text.getvalue())


def _cell(value: Any) -> Any:
    """Return a value of a CSV file, a list or a dictionary as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
