"""Abilities of models that are tuned on prompts, against single-purpose models, by size.

pretraining_gain.py   gain of pre-training in each task, and the size from which it pays
task_groups.py        mean scores of groups of tasks, such as unseen tasks
"""
