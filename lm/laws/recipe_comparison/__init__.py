"""Comparison of two recipes A and B along their ladders of sizes: is B still better at scale?

Files in reading order: paired_runs.py (selection and pairs of runs), selection_bias.py (tuned
settings), anytime_valid_tests.py (critical values), multiplier.py (compute multiplier and its
error), multiplier_draws.py (multiplier beyond the ladder), recipe_verdict.py (trend, crossing,
probabilities, text), decision_cost.py (runs that decide an open question).
"""
