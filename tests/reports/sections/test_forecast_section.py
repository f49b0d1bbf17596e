"""Section of the report about forecasts of final losses."""

from fixtures import made_up_sweep

from lm.reports import summary
from lm.reports.sections import forecast_section


def test_section_compares_forecasts_with_results(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"700K": ("lost", "")}, predict=False)
    text = forecast_section.loss_forecasts(summary.load_summary(folder))
    assert "unfinished run" in text and "700K" in text
    assert "of 5 results are inside their interval" in text
    assert text.count("<tr>") == 2 + 1 + 5


def test_section_states_why_there_are_no_forecasts(tmp_path):
    sizes = tuple(made_up_sweep.SIZES)[2:]
    folder = made_up_sweep.sweep(tmp_path, missing=sizes, predict=False)
    text = forecast_section.loss_forecasts(summary.load_summary(folder))
    assert "No forecasts: 2 finished runs do not suffice" in text
