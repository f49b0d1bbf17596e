"""A finished sweep that is called again."""

import os
import pathlib
import shutil

from fixtures import made_up_sweep

from experiments.common import finished_sweep
from lm.reports import figures, report, summary
from lm.runs import provenance

MISSING = ("120K", "300K", "700K", "1.6M")  # two runs have no law, whose fit takes most of the time


def test_report_is_reused_until_a_source_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "all_figures", lambda sweep: {})
    folder = made_up_sweep.sweep(tmp_path, missing=MISSING, predict=False)
    page, record = folder / "report.html", folder / "30K" / "evals.jsonl"

    def is_current() -> bool:
        return finished_sweep.find_current_report(folder) == page

    assert not is_current()
    report.write_report(folder)
    assert is_current()
    (folder / "report.html").rename(tmp_path / "report.html")
    report.write_report(folder, refresh=30)
    assert not is_current()  # its figures are not in files
    (tmp_path / "report.html").rename(page)
    (folder / "30K" / "lock-1-a").write_text("")
    assert is_current()
    status = record.stat()
    os.utime(record, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))  # restored from a copy
    assert not is_current()
    os.utime(record, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_current()
    for removed in (folder / "30K", folder / "60K" / "metrics.jsonl"):
        shutil.move(removed, tmp_path / "removed")
        assert not is_current()
        shutil.move(tmp_path / "removed", removed)
        assert is_current()
    monkeypatch.setattr(provenance, "package_hash", lambda: "0.2.0 00000000")
    assert not is_current()


def test_record_that_changes_during_a_report_makes_it_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "all_figures", lambda sweep: {})
    folder = made_up_sweep.sweep(tmp_path, missing=MISSING, predict=False)
    sweep = summary.load_summary(folder)
    os.utime(folder / "60K" / "facts.json", (10**9, 10**9))
    report.write_summary(sweep)
    assert finished_sweep.find_current_report(folder) is None


def test_file_that_vanishes_during_the_check_is_ignored(tmp_path, monkeypatch):
    folder = made_up_sweep.sweep(tmp_path, missing=MISSING, predict=False)
    (folder / "report.html").write_text("")
    (folder / "30K" / "vanishing.json").write_text("{}")
    is_file = pathlib.Path.is_file

    def remove_first(path: pathlib.Path, **options) -> bool:
        exists = is_file(path, **options)
        if path.name == "vanishing.json":
            path.unlink(missing_ok=True)
        return exists

    monkeypatch.setattr(pathlib.Path, "is_file", remove_first)
    assert finished_sweep.find_current_report(folder) is None
