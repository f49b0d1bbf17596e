"""Laws of the best hyperparameters, from runs that vary them.

tuned_runs.py          hyperparameters of runs, and the selection of those near the best run
quadratic_surface.py   least-squares fit of a loss that is quadratic in logs around its optimum
optimum_parameters.py  parameters of the law, and the optima that they give
tuned_surfaces.py      surface of rate and weight decay, surface of the batch size, check per cell
hyperparameter_law.py  the law: best learning rate, batch size and weight decay, with intervals
"""
