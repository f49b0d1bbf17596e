"""Sections of the report, each from the summary of a sweep.

report_sections.py      the order of the sections and their figures; runs, settings, reproduction
setup_section.py        models, text, recipe and hardware in three lines
law_section.py          formula, plain words, certainty, warnings, other laws
prediction_section.py   prediction and result
source_section.py       predicted and measured loss of each source
next_run_section.py     size for more compute, runs that narrow the prediction
ability_section.py      tasks that improve with size, and flat tasks
task_section.py         scores, noise and baselines of tasks
cost_section.py         time and cost against the plan
forecast_section.py     forecasts of final losses during the runs
text_section.py         text sources and held-out splits
"""
