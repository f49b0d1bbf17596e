"""Check the fields of one group of a run together. lm/config/validation.py calls the functions.

model_checks.py      heads, positions, norms, windows and experts
optimizer_checks.py  schedule, weight decay, half-life and type of the moments
"""
