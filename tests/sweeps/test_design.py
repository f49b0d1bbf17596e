"""Comparison of branches with independent runs, on synthetic losses."""

import numpy as np
import pytest
from scipy import stats

from lm.sweeps import design

SD = 0.004


def rows(shift=0.0, seeds=3, trial=0) -> list[dict]:
    """Return rows of a trunk run, of a branch per token budget, and of independent runs.

    shift: difference of log losses between branches and independent runs, without noise.
    """
    rng = np.random.default_rng(trial)
    all_rows = [{"name": "b/trunk", "start.run": "", design.TOKENS: 9e5, design.LOSS: 9.0}]
    for tokens in (3e5, 1e6):
        mean_loss = 1 + 20 * tokens**-0.3
        branch = {"name": f"b/{tokens:g}", "start.run": "b/trunk", "start.restore": "full_state"}
        loss = mean_loss * np.exp(shift + SD * rng.standard_normal())
        all_rows.append(branch | {design.TOKENS: 1.01 * tokens, design.LOSS: loss})
        for seed in range(seeds):
            loss = mean_loss * np.exp(SD * rng.standard_normal())
            independent = {"name": f"b/alone-{seed}-{tokens:g}", "start.run": ""}
            all_rows.append(independent | {design.TOKENS: tokens, design.LOSS: loss})
    return [{"status": "done", design.SIZE: 8000} | row for row in all_rows]


def test_agreement_rate_equals_level_under_seed_noise():
    """Branches that differ from independent runs by seed noise alone agree in 95% of the cases."""
    agreements = [
        comparison["agrees"]
        for trial in range(200)
        for comparison in design.branch_agreement(rows(trial=trial))
    ]
    assert len(agreements) == 400 and 0.92 < np.mean(agreements) < 0.98


def test_branch_far_above_seed_noise_disagrees():
    comparisons = design.branch_agreement(rows(shift=0.05))
    assert [c["n_independent"] for c in comparisons] == [3, 3]
    assert not any(c["agrees"] for c in comparisons)
    assert all(0.03 < c["difference"] < 0.07 and c["lo"] == -c["hi"] for c in comparisons)


def test_single_independent_run_is_refused():
    with pytest.raises(ValueError, match="2 branches, 2 independent runs: a branch needs two"):
        design.branch_agreement(rows(seeds=1))


def test_interval_is_that_of_student_for_a_further_run():
    """The standard deviation is pooled: 2 + 2 degrees of freedom for two budgets of three runs."""
    table = rows(trial=5)
    losses = [
        np.log([r[design.LOSS] for r in table if "alone" in r["name"] and r[design.TOKENS] == n])
        for n in (3e5, 1e6)
    ]
    sd = np.sqrt(np.mean([np.var(values, ddof=1) for values in losses]))
    expected = stats.t.ppf(0.975, 4) * sd * np.sqrt(1 + 1 / 3)
    for comparison, values in zip(design.branch_agreement(table), losses, strict=True):
        assert comparison["hi"] == pytest.approx(expected)
        branch = np.log(comparison["branch_loss"])
        assert comparison["difference"] == pytest.approx(branch - values.mean())
        assert comparison["agrees"] == (abs(comparison["difference"]) <= expected)
