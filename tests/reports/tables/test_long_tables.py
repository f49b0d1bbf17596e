"""Tables of sweeps with many runs, and the CSV file beside the page."""

import csv
import json

from lm.reports.tables import long_tables

ROWS = [{"name": f"a/{i}", "dir": f"/x/{i}", "eval.loss": i / 3} for i in range(201)]


def test_small_sweep_has_all_runs_and_no_file(tmp_path):
    rows = ROWS[: long_tables.MAX_RUNS]
    long_tables.write_runs(tmp_path, rows)
    assert list(long_tables.shown_rows(rows)) == rows and not long_tables.describe_omitted(rows)
    assert not list(tmp_path.iterdir())


def test_large_sweep_has_a_file_of_all_runs(tmp_path):
    """The page has the largest models, which are the last rows, and the file has all columns."""
    sources = {"jsonl:a": 0.5, "docs": 0.5}
    rows = [*ROWS[:-1], ROWS[-1] | {"reason": 'a "b",\nc', "data.sources": sources}]
    long_tables.write_runs(tmp_path, rows)
    assert list(long_tables.shown_rows(rows)) == rows[-long_tables.N_SHOWN :]
    note = str(long_tables.describe_omitted(rows))
    assert "100 largest of 201 runs" in note and f'href="{long_tables.FILE}"' in note
    with open(tmp_path / long_tables.FILE, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    assert [float(line["eval.loss"]) for line in lines] == [row["eval.loss"] for row in rows]
    assert list(lines[0]) == ["name", "eval.loss", "reason", "data.sources"]
    assert lines[-1]["reason"] == 'a "b",\nc' and not lines[0]["data.sources"]
    assert json.loads(lines[-1]["data.sources"]) == sources
