"""Ladder that designs itself: each run is chosen for the precision of a prediction per second.

ladder_cells.py     the sizes and token budgets of a sweep, their runs, and the target
ladder_record.py    ladder.json, the decisions of a ladder and their reasons
ladder_decision.py  the next run, or the reason to stop
ladder_loop.py      train the chosen runs until the target is predicted precisely enough
"""
