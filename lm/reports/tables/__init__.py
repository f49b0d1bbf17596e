"""Contents of tables of the report.

long_tables.py     the largest runs of a large sweep, and a CSV file with all runs
ladder_sizes.py    the sizes of the ladder that a sweep has, and the nearest size
"""
