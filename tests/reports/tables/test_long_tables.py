"""Tables of sweeps with many runs, and the CSV file beside the page."""

import csv

from lm.reports.tables import long_tables

ROWS = [{"name": f"a/{i}", "dir": f"/x/{i}", "eval.loss": i / 3, "tasks": {}} for i in range(201)]


def test_small_sweep_has_all_runs_and_no_file(tmp_path):
    rows = ROWS[: long_tables.MAX_RUNS]
    long_tables.write_runs(tmp_path, rows)
    assert list(long_tables.shown_rows(rows)) == rows and not long_tables.describe_omitted(rows)
    assert not list(tmp_path.iterdir())


def test_large_sweep_has_a_file_of_all_runs(tmp_path):
    rows = [*ROWS[:-1], ROWS[-1] | {"reason": 'a "b",\nc'}]
    long_tables.write_runs(tmp_path, rows)
    assert len(long_tables.shown_rows(rows)) == long_tables.N_SHOWN
    note = str(long_tables.describe_omitted(rows))
    assert "first 100 of 201 runs" in note and f'href="{long_tables.FILE}"' in note
    with open(tmp_path / long_tables.FILE, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    assert [float(line["eval.loss"]) for line in lines] == [row["eval.loss"] for row in rows]
    assert list(lines[0]) == ["name", "eval.loss", "reason"] and lines[-1]["reason"] == 'a "b",\nc'
