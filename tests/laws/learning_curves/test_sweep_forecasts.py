"""Forecasts of all runs of a sweep."""

from fixtures import training_curves

from lm.config.schedules import batch_size_schedule
from lm.laws.learning_curves import loss_forecast, sweep_forecasts


def test_unfinished_runs_have_forecasts_or_reasons(tmp_path):
    curves = training_curves.curves()
    rows = [training_curves.write_run(tmp_path, curve) for curve in curves[:8]]
    rows.append(training_curves.write_run(tmp_path, curves[8].until(100), "running"))
    rows.append(training_curves.write_run(tmp_path, curves[9].until(10), "lost"))
    forecasts = sweep_forecasts.SweepForecasts()
    results = forecasts.forecast_unfinished(rows)
    assert set(results) == {curves[8].name, curves[9].name}
    forecast, reason = results[curves[8].name], results[curves[9].name]
    assert isinstance(forecast, loss_forecast.LossForecast) and forecast.n_runs == 8
    assert isinstance(reason, str) and "20% of the steps" in reason
    assert "4 runs" in str(sweep_forecasts.SweepForecasts().forecast_unfinished(rows[8:]))


def test_runs_with_a_batch_size_warmup_are_left_out(tmp_path):
    curves = training_curves.curves()
    rows = [training_curves.write_run(tmp_path, curve) for curve in curves[:5]]
    rows += [training_curves.write_run(tmp_path, c.until(100), "running") for c in curves[5:7]]
    for row in (rows[0], rows[5]):
        row[batch_size_schedule.FIELD] = "2e4"
    results = sweep_forecasts.SweepForecasts().forecast_unfinished(rows)
    assert results[rows[5]["name"]] == "its batch size changes"
    forecast = results[rows[6]["name"]]
    assert isinstance(forecast, loss_forecast.LossForecast) and forecast.n_runs == 4
    assert forecast.excluded == [(rows[0]["name"], "its batch size changes")]
    reason = sweep_forecasts.SweepForecasts().fit_finished(rows[:4])
    assert f"3 finished runs (1 left out, such as {rows[0]['name']}: its batch" in str(reason)


def test_finished_runs_are_forecast_from_the_others():
    curves = training_curves.curves()
    forecasts = sweep_forecasts.forecast_finished(loss_forecast.Forecaster(curves), 0.5)
    assert [forecast.name for forecast in forecasts] == [curve.name for curve in curves]
    n_inside = sum(f.lo <= f.measured <= f.hi for f in forecasts)
    assert n_inside >= len(curves) - 1
    assert all(abs(f.value / f.measured - 1) < 0.01 for f in forecasts)
