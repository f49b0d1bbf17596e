"""Experiment design: profile likelihoods, the next runs to train, and their cost.

experiment_design.py  profile likelihood, next runs within a budget
run_cost.py           cost of a run from the rows of a fit
"""
