"""Law of the loss on a new corpus, from one or two runs and the law of a reference corpus.

    reference = lm.laws.chinchilla(runs_on_the_reference_corpus)
    law = lm.laws.new_corpus(two_runs_on_the_new_corpus, reference)
    law.predict(1e9, 2e10)

The loss on the new corpus is a shifted power law of the loss on the reference corpus at equal size
and tokens (Brandfonbrener et al. 2024, arXiv:2411.12925, train-to-train).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.laws import fit, prediction_intervals, run_table
from lm.laws.source_losses import loss_to_loss

REFERENCE_LOSS = "loss on the reference corpus"
CORPUS = "corpus.hash"
SAME_INPUT = 0.02  # largest relative difference of equal sizes and of equal token budgets
NORMAL_95 = 1.959964  # half the width of a normal 95% interval, in standard deviations


@dataclass
class NewCorpusLaw:
    """Fitted law of the loss on a new corpus: see `new_corpus`."""

    reference: fit.Fit
    law: loss_to_loss.LossToLoss  # from the loss on the reference corpus

    def predict(
        self, *inputs: Any, level: float = 0.95, **named: Any
    ) -> prediction_intervals.Prediction:
        """Return the loss on the new corpus, for the inputs of the law of the reference corpus.

        The interval includes that of the reference. `factor` is that of the reference, or that of
        the loss beyond the runs on the new corpus if it is larger.
        """
        total = self.reference.predict(*inputs, **named)
        if np.size(total.value) != 1:
            raise ValueError("inputs must be numbers: predict one point at a time")
        prediction = self.law.predict(float(total.value), _standard_error(total), level)
        return replace(prediction, factor=max(prediction.factor, total.factor), note=total.note)

    def __str__(self) -> str:
        return f"{self.law}\n{REFERENCE_LOSS}: {self.reference}"


def new_corpus(
    rows: run_table.Rows,
    reference: fit.Fit,
    y: str = "eval.loss",
    where: run_table.Where = None,
    mixed: bool | tuple[str, ...] = False,
) -> NewCorpusLaw:
    """Fit the loss y on a new corpus, given the law of a reference corpus.

    rows: runs on the new corpus, with the columns of the inputs of `reference`. Two runs of
    different size determine the slope; one run assumes proportional losses. The reference loss of a
    run is the mean loss of the reference runs of equal inputs, or the value of the law if there are
    none. Raises ValueError for runs on the reference corpus, and for a run so far beyond the
    reference runs that its reference loss is unknown.
    """
    fit.check_fits(reference=reference)
    columns = [reference.columns[letter] for letter in reference.inputs]
    table = run_table.select_columns(rows, [*columns, y], where=where, mixed=mixed)
    _check_corpora(table.rows, reference)
    paired_rows = []
    for i, row in enumerate(table.rows):
        inputs = [float(table.columns[column][i]) for column in columns]
        loss = _reference_loss(reference, columns, inputs, table.names[i])
        paired_rows.append({**row, REFERENCE_LOSS: loss})
    law = loss_to_loss.loss_to_loss(paired_rows, y, REFERENCE_LOSS, mixed=mixed)
    return NewCorpusLaw(reference, replace(law, excluded=table.excluded))


def _check_corpora(rows, reference: fit.Fit) -> None:
    """Raise ValueError for runs on the reference corpus."""
    corpora = {row.get(CORPUS) for row in reference.data.rows} - {None}
    if names := [str(row.get("name")) for row in rows if row.get(CORPUS) in corpora]:
        raise ValueError(
            f"{', '.join(names)}: trained on the corpus of the reference law: pass runs on another"
            " corpus, or extend the reference law with these runs"
        )


def _reference_loss(
    reference: fit.Fit, columns: list[str], inputs: list[float], name: str
) -> float:
    """Return the loss on the reference corpus at the inputs of a run on the new corpus."""
    is_equal = np.ones(len(reference.data), bool)
    for column, value in zip(columns, inputs, strict=True):
        is_equal &= np.abs(np.log(reference.data.columns[column] / value)) < SAME_INPUT
    if is_equal.any():
        output = next(
            c for letter, c in reference.columns.items() if letter not in reference.inputs
        )
        return float(reference.data.columns[output][is_equal].mean())
    prediction = reference.predict(*inputs)
    if prediction.factor > reference.reach:
        raise ValueError(
            f"{name} is {prediction.factor:.3g} times beyond the runs of the reference law, so its"
            f" loss on the reference corpus is unknown: train a smaller run"
        )
    return float(prediction.value)


def _standard_error(prediction: prediction_intervals.Prediction) -> float:
    """Return the standard error of a predicted loss, 0 without an interval."""
    width = float(prediction.hi) - float(prediction.lo)
    return width / (2 * NORMAL_95) if np.isfinite(width) else 0.0
