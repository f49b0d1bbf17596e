"""Figures of scaling experiments. Every function except save_figure returns a matplotlib Figure.

    runs = lm.load_runs("runs/quickstart")
    figure = lm.plots.loss_vs_parameters(runs, lm.laws.power(runs))
    lm.plots.save_figure(figure, "loss", {"sweep": "quickstart"})     # loss.png and loss.svg

The files, in reading order:

    style.py              theme, axes, number formats, saving
    geometry/             free positions of labels, ticks of small panels, inline SVG
    markers/              error bars of many points, drawn together
    elements.py           markers, curves, intervals, labels
    scaling.py            loss against parameters, compute and sources; conventions of all figures
    loss_surface.py       loss against tokens, L(N, D) contours, isoFLOP
    task_accuracy.py      accuracy, mastered tasks, emergence
    abilities.py          tasks above baseline by family, accuracy beside log-probability
    transfer.py           fine-tuning, forgetting, compute saved, gain of pre-training
    recipe_multiplier.py  compute multiplier of two recipes
    learning_rates.py     loss against learning rate, coordinate check
    goodput.py            time by phase
    explanations.py       two plain sentences about each figure of a report
"""

from lm.reports.plots.abilities import abilities_by_family, gain_and_margin
from lm.reports.plots.goodput import time_by_phase
from lm.reports.plots.learning_rates import activation_changes, loss_vs_learning_rate
from lm.reports.plots.loss_surface import (
    compute_optimal_frontier,
    isoflop_parabolas,
    loss_contours,
    loss_vs_tokens,
    optimal_size,
)
from lm.reports.plots.scaling import (
    learning_curves,
    loss_by_source,
    loss_vs_compute,
    loss_vs_parameters,
    predicted_vs_measured,
)
from lm.reports.plots.style import save_figure
from lm.reports.plots.task_accuracy import (
    accuracy_vs_loss,
    accuracy_vs_size,
    emergence,
    predicted_accuracy,
    task_curves,
    tasks_mastered,
)
from lm.reports.plots.transfer import (
    compute_saved_vs_size,
    finetuned_vs_scratch,
    forgetting_vs_size,
    left_out_clusters,
    pretraining_gain_vs_size,
    task_quality_vs_data,
    tuned_scores_vs_size,
    unseen_task_accuracy,
)

__all__ = [
    "abilities_by_family",
    "accuracy_vs_loss",
    "accuracy_vs_size",
    "activation_changes",
    "compute_optimal_frontier",
    "compute_saved_vs_size",
    "emergence",
    "finetuned_vs_scratch",
    "forgetting_vs_size",
    "gain_and_margin",
    "isoflop_parabolas",
    "learning_curves",
    "left_out_clusters",
    "loss_by_source",
    "loss_contours",
    "loss_vs_compute",
    "loss_vs_learning_rate",
    "loss_vs_parameters",
    "loss_vs_tokens",
    "optimal_size",
    "predicted_accuracy",
    "predicted_vs_measured",
    "pretraining_gain_vs_size",
    "save_figure",
    "task_curves",
    "task_quality_vs_data",
    "tasks_mastered",
    "time_by_phase",
    "tuned_scores_vs_size",
    "unseen_task_accuracy",
]
