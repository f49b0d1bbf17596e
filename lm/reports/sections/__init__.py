"""Sections of the report, each from the summary of a sweep.

report_sections.py    the list of sections; losses, predictions, learning rates, transfer
forecast_section.py   forecasts of final losses during the runs
source_section.py     predicted and measured loss of each source
task_section.py       accuracy on tasks, by size
transfer_section.py   gain of pre-training for tuned tasks, by size
text_section.py       text sources and held-out splits
next_run_section.py   next runs that narrow the prediction of a sweep
"""
