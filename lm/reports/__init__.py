"""Analyze a sweep and draw it: tables, figures, one HTML page.

The package uses the records of runs and the laws. It does not import JAX.

    summary.py            load a sweep, fit its laws, headline, tables
    task_significance.py  tasks above and below their baseline, mastered tasks
    task_analysis.py      noise, metrics and predictions of accuracy
    task_trends.py        tasks that improve with size, and flat tasks
    transfer_analysis.py  fine-tuned models against models trained from scratch
    paired_errors.py      errors of the difference between two runs on the same held-out text
    lr_analysis.py        best learning rate against width and depth
    figures.py            the figures of a sweep, and their verification
    device_cost.py        price and energy of runs
    html.py               elements of an HTML page
    report.py             write report.html
    two_sweeps/           a page that shows several sweeps side by side
    tuned_abilities/      gain of pre-training in tasks that models are tuned on
    recipes/              the comparison of two recipes, its page and its record
    audit/                predict the target run, and verify the prediction
    sections/             the sections of the report
    tables/               contents of tables of the report
    plots/                the figures
"""
