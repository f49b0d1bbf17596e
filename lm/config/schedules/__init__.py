"""Quantities of a run that change with its steps. The file is batch_size_schedule.py."""
