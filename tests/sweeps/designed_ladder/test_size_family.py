"""Tests of further sizes of the recipe of a sweep."""

import pytest

from configs import base
from configs.sweeps import quickstart, rates
from lm.config import model_sizes
from lm.sweeps.designed_ladder import size_family


def test_further_sizes_are_those_of_the_recipe():
    runs = list(quickstart.get_sweep())
    added = {run.name: run for run in size_family.extend_sizes(runs, "4M")}
    names = ["15K", "40K", "400K", "1M", "1.5M", "2.5M"]
    assert list(added) == [f"quickstart/{size}" for size in names]
    run, expected = added["quickstart/1M"], base.get_config("1M")
    assert run.model == expected.model and run.optim.lr == pytest.approx(expected.optim.lr)
    assert (run.steps, run.eval, run.data) == (runs[0].steps, runs[0].eval, runs[0].data)
    assert not any(run.is_prediction_target for run in added.values())


def test_tokens_in_proportion_to_parameters_are_a_rule():
    runs = [base.get_config(size) for size in ("10K", "60K", "150K")]
    for run, size in zip(runs, ("10K", "60K", "150K"), strict=True):
        run.name, run.optim.lr = f"s/{size}", 1e-3
        run.steps = model_sizes.steps_for_budget(run, tokens_per_param=20)
    added = size_family.extend_sizes(runs, "250K")
    assert [run.name for run in added] == ["s/15K", "s/25K", "s/40K", "s/100K"]
    steps = model_sizes.steps_for_budget(added[-1], tokens_per_param=20)
    assert abs(added[-1].steps - steps) <= 2 and added[-1].optim.lr == 1e-3


def test_recipes_without_a_rule_have_no_further_sizes():
    runs = list(quickstart.get_sweep())
    runs[2].optim.lr *= 1.1
    assert size_family.extend_sizes(runs, "4M") == []
    runs = list(quickstart.get_sweep())
    runs[1].model.d_ff += 8
    assert size_family.extend_sizes(runs, "4M") == []
    assert size_family.extend_sizes(list(rates.get_sweep()), "4M") == []
    assert size_family.extend_sizes(list(quickstart.get_sweep()), "my-size") == []
