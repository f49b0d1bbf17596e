"""Figures of scaling experiments. Every function returns a matplotlib Figure.

    style.py           theme, axes, number formats, saving
    elements.py        markers, curves, intervals, labels
    scaling.py         loss against parameters, compute and sources
    loss_surface.py    loss against tokens, L(N, D) contours, isoFLOP
    task_accuracy.py   accuracy, mastered tasks, emergence
    transfer.py        fine-tuning, forgetting, compute saved
    learning_rates.py  loss against learning rate, coordinate check
    goodput.py         time by phase
"""
