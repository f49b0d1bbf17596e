"""Attack on runs, sweeps, prepared text and configs, with seeded cases.

Files in reading order: __main__, outcomes, subjects, children, readers, areas/.
"""
