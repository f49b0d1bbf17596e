"""Analyze a sweep and draw it: tables, figures, one HTML page.

The package uses the records of runs and the laws. It does not import JAX.

    summary.py            load a sweep, fit its laws, headline, tables
    task_analysis.py      tasks above chance, mastered tasks, predictions of accuracy
    transfer_analysis.py  fine-tuned models against models trained from scratch
    paired_errors.py      errors of the difference between two runs on the same held-out text
    lr_analysis.py        best learning rate against width and depth
    target_prediction.py  predict the target run from the rows of the others
    prediction_audit.py   verify the hashes of a prediction, from its inputs to its result
    figures.py            the figures of a sweep, and their verification
    html.py               elements of an HTML page
    report.py             write report.html
    sections/             the sections of the report
    plots/                the figures
"""
