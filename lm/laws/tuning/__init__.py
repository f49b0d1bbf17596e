"""Laws of the best hyperparameters, from runs that vary them.

loss_surface           least-squares fit of a loss that is quadratic in logs around its optimum
hyperparameter_law     the law: best learning rate, batch size and weight decay, with intervals
"""
