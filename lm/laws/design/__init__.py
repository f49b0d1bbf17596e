"""Experiment design: profile likelihoods, the next runs to train, and their cost.

experiment_design.py    profile likelihood, next runs within a budget
measurement_design.py   covariances of a law at candidate runs and at a target
next_ladder_run.py      next run of a ladder that predicts a target within an error
run_cost.py             cost of a run from the rows of a fit, and measured seconds
"""
