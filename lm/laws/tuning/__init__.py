"""Laws of the best hyperparameters, from runs that vary them.

tuned_runs.py          hyperparameters of runs, and the selection of those near the best run
quadratic_surface.py   least-squares fit of a loss that is quadratic in logs around its optimum
hyperparameter_law.py  the law: best learning rate, batch size and weight decay, with intervals
"""
