"""Learning curves: models of the loss during training, and forecasts of the final loss.

curve_models        loss as a function of the learning rates of all steps
loss_forecast       final loss of an unfinished run, from finished runs
"""
