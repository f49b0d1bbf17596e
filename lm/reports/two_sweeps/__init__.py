"""Page that shows two sweeps side by side: side_by_side.py.

The comparison of two recipes by paired runs is in lm/reports/recipes.
"""
