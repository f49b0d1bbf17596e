"""Learning curves: models of the loss during training, and forecasts of the final loss.

recorded_curves.py   curves of runs, from their directories or from a file
curve_models.py      the loss as a function of the learning rates of all steps
curve_fit.py         fit of a model to several runs, and the forecast of a run
curve_backtest.py    errors of the forecasts of finished runs
loss_forecast.py     forecast of the final loss of an unfinished run
departures.py        tests of a run against its expected curve
sweep_forecasts.py   forecasts of all runs of sweeps
"""
