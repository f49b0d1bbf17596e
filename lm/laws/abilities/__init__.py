"""Scores of many tasks at once, as functions of the loss or of size and tokens.

score_regression.py    regression of the scores of all tasks, with joint draws for a new run
above_baseline.py      from draws of scores to tasks above baseline, and Brier scores
"""
