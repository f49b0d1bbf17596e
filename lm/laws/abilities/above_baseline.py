"""Tasks above baseline from p-values of many draws, and scores of predicted probabilities.

Legend: B draws, T tasks.
"""

from collections.abc import Mapping

import numpy as np


def select_discoveries(p_values_BT: np.ndarray, rate: float) -> np.ndarray:
    """Return the mask of the tasks that the rule of Benjamini and Hochberg (1995) selects, per row.

    rate: largest expected fraction of false discoveries.
    """
    n_tasks = p_values_BT.shape[1]
    order_BT = np.argsort(p_values_BT, axis=1, kind="stable")
    limits_T = rate * np.arange(1, n_tasks + 1) / max(n_tasks, 1)
    is_small_BT = np.take_along_axis(p_values_BT, order_BT, 1) <= limits_T
    # All p-values up to the last one below its limit are selected.
    is_selected_BT = np.flip(np.logical_or.accumulate(np.flip(is_small_BT, 1), axis=1), 1)
    mask_BT = np.zeros_like(is_selected_BT)
    np.put_along_axis(mask_BT, order_BT, is_selected_BT, 1)
    return mask_BT


def brier_score(probabilities: Mapping[str, float], outcomes: Mapping[str, bool]) -> float:
    """Return the mean squared error of probabilities (Brier 1950), NaN without a common task."""
    errors = [probabilities[name] - outcomes[name] for name in probabilities if name in outcomes]
    return float(np.mean(np.square(errors))) if errors else float("nan")
