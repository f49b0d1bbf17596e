"""Compiled programs of a training run.

compilation.py   compile the functions of a run, in parallel or at their first call
"""
