"""Compiled programs of a training run.

compilation.py   compile the functions of a run, in parallel or at their first call
evaluation.py    evaluate weights, and write the row of evals.jsonl
"""
