"""Analyze a sweep and draw it: tables, figures, one HTML page.

The package reads records and laws only; it does not import JAX.

    summary.py            load a sweep, fit its laws, headline, tables
    task_analysis.py      tasks above chance, mastered tasks, predictions of accuracy
    transfer_analysis.py  fine-tuned models against models trained from scratch
    lr_analysis.py        best learning rate against width and depth
    figures.py            the figures of a sweep, and their verification
    html.py               parts of an HTML page
    report.py             write report.html
    plots/                the figures
"""
