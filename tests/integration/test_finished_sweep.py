"""A finished sweep that is called again."""

import os
import time

from fixtures import made_up_sweep

from experiments.common import finished_sweep


def test_report_is_reused_until_a_record_changes(tmp_path, monkeypatch):
    folder = made_up_sweep.sweep(tmp_path)
    page, version = folder / "report.html", finished_sweep.provenance.package_version()
    page.unlink(missing_ok=True)
    assert finished_sweep.find_current_report(folder) is None
    page.write_text(f"<p>lm-scaling {version}, from the records of 7 runs.</p>")
    later = time.time() + 10
    os.utime(page, (later, later))
    assert finished_sweep.find_current_report(folder) == page
    record = next(folder.glob("*/evals.jsonl"))
    os.utime(record, (later + 1, later + 1))
    assert finished_sweep.find_current_report(folder) is None
    os.utime(record, (later - 1, later - 1))
    monkeypatch.setattr(finished_sweep.provenance, "package_version", lambda: "9.9")
    assert finished_sweep.find_current_report(folder) is None
