"""Evaluate the tasks of lm-evaluation-harness, and convert its results to those of this project.

harness_tasks.py     find and load tasks by name, evaluate them, convert the results
harness_command.py   command line of the harness with the model lm_scaling
"""
