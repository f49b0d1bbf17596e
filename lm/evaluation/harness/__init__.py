"""Evaluate the tasks of lm-evaluation-harness, and convert its results to those of this project.

harness_tasks.py     find and load tasks by name, evaluate them, convert the results

The adapter of a model is lm/evaluation/lm_eval_harness.py.
"""
