"""Contents of tables of the report.

long_tables.py    the first runs of a large sweep, and a CSV file with all of them
"""
