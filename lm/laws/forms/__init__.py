"""The scaling laws, one family per file.

power_laws.py               power, chinchilla, overtrained
initial_values.py           initial values of a fit
log_linear.py               a line in logs
isoflop_minima.py           the minimum of one compute budget
isoflop.py                  the isoFLOP law through these minima
learning_curve_envelope.py  lower envelope of learning curves
compute_optimal.py          best allocation of a budget
evaluation_curves.py        evaluations during runs as rows of a law
data_constrained.py         repeated data; data that pre-training replaces
downstream.py               loss -> accuracy, in one or two steps
inference_cost.py           best N and D by the cost of training and inference
"""
