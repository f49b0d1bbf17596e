"""Forecasts of unfinished runs in the output of experiments.status."""

import dataclasses
from unittest import mock

from fixtures import made_up_sweep, training_curves

from experiments import status as status_command
from experiments.common import console
from lm.laws.learning_curves import departures, sweep_forecasts
from lm.runs import status


def printed(runs) -> str:
    """Return the status table as text."""
    table = console.CommandConsole(width=250, record=True, quiet=False)
    with table.capture() as capture:
        table.print(console.status_view(runs, status.sweep_progress(runs)))
    return capture.get()


def test_status_shows_the_forecast_of_an_unfinished_run(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"700K": ("lost", "")}, predict=False)
    runs = status.run_statuses(folder)
    notes = status_command.add_forecasts(runs, folder)
    (run,) = [run for run in runs if run["forecast"]]
    forecast = run["forecast"]
    assert run["name"] == "toy/700K" and forecast["lo"] < forecast["value"] < forecast["hi"]
    assert forecast["step"] <= run["step"] and not forecast["is_flagged"] and not notes
    text = printed(runs)
    assert "Forecasts of the final held-out loss" in text
    assert f"{forecast['value']:.3f}" in text and f"{forecast['baseline']:.3f}" in text


def test_status_names_the_reason_of_a_missing_forecast_once(tmp_path):
    sizes = ("60K", "120K", "300K", "700K")
    folder = made_up_sweep.sweep(
        tmp_path, status=dict.fromkeys(sizes, ("lost", "")), missing=("1.6M",), predict=False
    )
    runs = status.run_statuses(folder)
    notes = status_command.add_forecasts(runs, folder)
    assert notes == [
        "no forecast of toy/60K and 3 more runs: 1 finished runs do not suffice: finish at least 4"
        " runs on the same text"
    ]
    assert "Forecasts of" not in printed(runs)


def test_status_marks_a_flagged_run(tmp_path, monkeypatch):
    curves = training_curves.curves()
    test = departures.DepartureTest("level", 0.2, 0.01, 0.05)
    check = departures.DepartureCheck(curves[0].name, 100, 11, (test,))
    forecaster = sweep_forecasts.loss_forecast.Forecaster(curves[1:6])
    forecast = dataclasses.replace(forecaster.forecast(curves[0].until(100)), check=check)
    folder = made_up_sweep.sweep(tmp_path, status={"30K": ("lost", "")}, predict=False)
    runs = status.run_statuses(folder)
    forecasts = sweep_forecasts.SweepForecasts()
    monkeypatch.setattr(forecasts, "forecast_unfinished", lambda rows: {"toy/30K": forecast})
    (note,) = status_command.add_forecasts(runs, folder, lambda: forecasts)
    assert note.startswith("toy/30K leaves its expected curve: its training loss differs")
    assert "unexpected" in printed(runs)


def test_watch_returns_the_notes_of_its_last_iteration(tmp_path, monkeypatch):
    run = {"name": "toy/30K", "status": "running"}
    shown = []
    last = ([run | {"status": "done"}], ["damaged line"])
    monkeypatch.setattr(status_command.status, "folder_status", lambda folder: last)
    monkeypatch.setattr(status_command, "add_forecasts", lambda runs, *_: ["new flag"])
    monkeypatch.setattr(status_command, "WATCH_SECONDS", 0)
    monkeypatch.setattr(status_command, "_DIR", mock.Mock(value=str(tmp_path)))
    monkeypatch.setattr(status_command.status, "sweep_progress", lambda runs: {})
    monkeypatch.setattr(status_command.console, "status_view", lambda runs, _: "table")
    monkeypatch.setattr(
        status_command, "watch_view", lambda runs, notes: shown.append(notes) or "view"
    )
    notes = status_command.watch([run], ["old flag"], sweep_forecasts.SweepForecasts)
    assert notes == ["damaged line", "new flag"] and shown == [["old flag"], notes]


def test_watched_notes_are_below_the_table(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, predict=False)
    table = console.CommandConsole(width=250, record=True, quiet=False)
    with table.capture() as capture:
        table.print(status_command.watch_view(status.run_statuses(folder), ["[x] is flagged"]))
    assert capture.get().rstrip().endswith("[x] is flagged")
