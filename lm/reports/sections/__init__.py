"""Sections of the report, each from the summary of a sweep.

report_sections.py      the order of the sections and their figures; runs, settings, reproduction
setup_section.py        models, text, recipe and hardware in three lines
law_section.py          formula, plain words, certainty, warnings, other laws
prediction_section.py   prediction and result
source_section.py       predicted and measured loss of each source
next_run_section.py     size for more compute, runs that narrow the prediction
abilities/              tasks that improve with size, predicted scores, noise and baselines
cost_section.py         time and cost against the plan
forecast_section.py     forecasts of final losses during the runs
text_section.py         text sources and held-out splits
"""
