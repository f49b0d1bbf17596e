"""Minimal pairs: two sentences of which the first must have the higher probability.

pair_files.py      read files and folders of pairs
pair_metrics.py    results per paradigm, per phenomenon and of all pairs
"""
