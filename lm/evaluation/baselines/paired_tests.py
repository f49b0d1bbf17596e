"""Tests of a model against baselines on the same items.

    sign_tests(points, [unigram_points, bigram_points])["p_above_baseline"]
    mean_tests([model_means - unigram_means, model_means - bigram_means])

p_above_baseline is the largest of the p-values against the baselines. It is valid for the claim
that the model is better than all of them (intersection-union test, Berger 1982). p_below_baseline
is the smallest p-value of the opposite tests times their number (Bonferroni): the model is worse
than at least one baseline. Both functions return {} without baselines.
"""

from collections.abc import Sequence

import numpy as np

from lm.evaluation import tasks

ABOVE, BELOW = "p_above_baseline", "p_below_baseline"


def sign_tests(points: np.ndarray, baseline_points: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the p-values of exact sign tests over items with different points (McNemar 1947).

    points, baseline_points: points per item of the model and of each baseline.
    """
    from scipy import stats  # its import takes a second, and training does not need it

    p_values = []
    for other in baseline_points:
        n_better, n_worse = int((points > other).sum()), int((points < other).sum())
        n = n_better + n_worse
        above, below = (stats.binom.sf(k - 1, n, 0.5) for k in (n_better, n_worse))
        p_values.append((float(above), float(below)))
    return _combine(p_values)


def mean_tests(improvements: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the p-values of t-tests of mean improvements over clusters or items.

    improvements: for each baseline, points of the model minus those of the baseline, one per
    cluster.
    """
    from scipy import stats

    p_values = []
    for gain in improvements:
        n, mean = len(gain), float(np.mean(gain))
        se = float(np.std(gain, ddof=1)) / n**0.5 if n > 1 else 0.0
        if not se:
            above = 1.0 if n < 2 or mean <= 0 else 0.0
            below = 1.0 if n < 2 or mean >= 0 else 0.0
        else:
            above, below = (float(stats.t.sf(x / se, n - 1)) for x in (mean, -mean))
        p_values.append((above, below))
    return _combine(p_values)


def baseline_metrics(
    groups: Sequence[str], points: np.ndarray, baselines: Sequence[tasks.Baseline]
) -> dict[str, dict[str, float]]:
    """Return {metric: {"value": value}} of baseline_NAME of each baseline, and both p-values.

    groups: member of a group of tasks for each example. points: accuracy of the model per example.
    The test of a group of tasks compares the means of its members, and that of a single task the
    examples.
    """
    names = np.array(groups)
    members = [np.flatnonzero(names == name) for name in dict.fromkeys(groups)]
    values = {
        f"baseline_{baseline.name}": float(np.mean([baseline.points[m].mean() for m in members]))
        for baseline in baselines
    }
    if len(members) > 1:
        improvements = [points - baseline.points for baseline in baselines]
        values |= mean_tests([np.array([gain[m].mean() for m in members]) for gain in improvements])
    else:
        values |= sign_tests(points, [baseline.points for baseline in baselines])
    return {name: {"value": value} for name, value in values.items()}


def _combine(p_values: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the p-values of the model against all baselines."""
    if not p_values:
        return {}
    above, below = zip(*p_values, strict=True)
    return {ABOVE: max(above), BELOW: min(1.0, min(below) * len(below))}
