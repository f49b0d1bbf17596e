"""Section of the report about forecasts of final losses."""

import math

from fixtures import made_up_sweep

from lm.laws.learning_curves import sweep_forecasts
from lm.reports import summary
from lm.reports.sections import forecast_section


def test_section_compares_forecasts_with_results(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"700K": ("lost", "")}, predict=False)
    text = forecast_section.loss_forecasts(summary.load_summary(folder))
    assert "unfinished run" in text and "700K" in text
    assert "of 5 results are inside their interval" in text
    assert text.count("<tr>") == 2 + 1 + 5
    assert "than that of the simple forecast" in text and "baseline" not in text
    forecast = sweep_forecasts.FinishedForecast("s/a", "collapse", 4.4, 4, 5, 4.0, 4.0)
    line = forecast_section._finished_line(forecast, "a")  # relative to the result, as in lm.laws
    assert math.isclose(line["error"], 0.1) and "(forecast - result) / result" in text


def test_forecasts_of_many_runs_use_a_part_of_all_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(forecast_section, "MAX_RUNS", 4)
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    text = forecast_section.loss_forecasts(summary.load_summary(folder))
    assert "Shown and used: 4 of 6 finished runs" in text and "1.6M" in text and "30K" in text
    rows = [{"name": str(n)} for n in range(7)]
    assert forecast_section.select_evenly(rows, 7) == rows
    assert [row["name"] for row in forecast_section.select_evenly(rows, 3)] == ["0", "3", "6"]


def test_section_states_why_there_are_no_forecasts(tmp_path):
    sizes = tuple(made_up_sweep.SIZES)[2:]
    folder = made_up_sweep.sweep(tmp_path, missing=sizes, predict=False)
    text = forecast_section.loss_forecasts(summary.load_summary(folder))
    assert "No forecasts: 2 finished runs do not suffice" in text
