"""Time by phase: shares, table and figure."""

import pytest
from fixtures import made_up_sweep

from lm.reports.plots import elements, goodput
from lm.runs import records

SECONDS = {"steps": 80.0, "input": 1.0, "evaluate": 9.0, "compile": 6.0, "lost": 4.0}


def row(name="s/a", **seconds) -> dict:
    return {"name": name, "clock.goodput": 0.8} | {f"clock.{k}": v for k, v in seconds.items()}


def test_phase_shares_add_up_to_one():
    shares = goodput.phase_shares(row(**SECONDS))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert (shares["steps"], shares["lost"], shares["save"]) == pytest.approx((0.8, 0.04, 0.0))


def test_goodput_table_has_a_line_per_timed_run():
    (line,) = goodput.phase_table([row(**SECONDS), {"name": "s/old"}])
    assert line["run"] == "a" and line["seconds"] == 100.0
    assert line["waiting for input"] == pytest.approx(0.01)
    assert line["repeated steps"] == pytest.approx(0.04)


def test_goodput_bars_add_up_to_all_time(tmp_path, monkeypatch):
    rows = records.load_runs(made_up_sweep.sweep(tmp_path))
    axes = goodput.time_by_phase(rows).axes[0]
    n = len(goodput.timed_runs(rows))
    bar_ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert n > 3 and max(bar_ends) == pytest.approx(100.0)
    assert len(axes.get_yticklabels()) == n and len(axes.patches) % n == 0
    monkeypatch.setattr(elements, "MAX_LINES", 3)
    axes = goodput.time_by_phase(rows).axes[0]  # a figure of a thousand bars cannot be drawn
    names = [elements.short_run_name(row) for row in goodput.timed_runs(rows)[-3:]]
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == names
