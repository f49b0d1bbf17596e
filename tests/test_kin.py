"""Branches beside runs alone, of made-up losses."""

import numpy as np
import pytest

from lm import kin

SD = 0.004


def rows(shift=0.0, seeds=3, trial=0) -> list[dict]:
    """A trunk, its branches at two budgets, whose log losses lie `shift` off, and runs alone."""
    rng = np.random.default_rng(trial)
    found = [{"name": "b/trunk", "start.run": "", kin.TOKENS: 9e5, kin.LOSS: 9.0}]
    for tokens in (3e5, 1e6):
        middle = 1 + 20 * tokens**-0.3
        branch = {"name": f"b/{tokens:g}", "start.run": "b/trunk", "start.keep": "state"}
        loss = middle * np.exp(shift + SD * rng.standard_normal())
        found.append(branch | {kin.TOKENS: 1.01 * tokens, kin.LOSS: loss})
        for seed in range(seeds):
            loss = middle * np.exp(SD * rng.standard_normal())
            alone = {"name": f"b/alone-{seed}-{tokens:g}", "start.run": ""}
            found.append(alone | {kin.TOKENS: tokens, kin.LOSS: loss})
    return [{"status": "done", kin.SIZE: 8000} | row for row in found]


def test_branches_agree_as_often_as_the_level_says_where_only_seeds_part_them():
    found = [one["agrees"] for trial in range(200) for one in kin.agreement(rows(trial=trial))]
    assert len(found) == 400 and 0.92 < np.mean(found) < 0.98


def test_a_branch_that_is_worse_by_much_more_than_seeds_are_apart_is_told():
    found = kin.agreement(rows(shift=0.05))
    assert [one["n"] for one in found] == [3, 3] and not any(one["agrees"] for one in found)
    assert all(0.03 < one["apart"] < 0.07 and one["lo"] == -one["hi"] for one in found)


def test_one_run_alone_says_nothing_of_seeds():
    with pytest.raises(ValueError, match="2 branches, 2 runs alone: a branch needs two runs"):
        kin.agreement(rows(seeds=1))
