"""Check of the sizes of a sweep before it trains."""

import dataclasses

import pytest

from lm.config import model_sizes, schema
from lm.sweeps import prediction

SIZES = ("10K", "15K", "25K", "40K", "60K")


def runs(sizes, seeds=1, target="60K") -> list[schema.Run]:
    """Return runs of the given sizes, and the target."""
    made = [
        schema.Run(name=f"s/{size}-{seed}", seed=seed, model=model_sizes.ladder_model(size))
        for size in sizes
        for seed in range(seeds)
    ]
    predicted = schema.Run(name=f"s/{target}", model=model_sizes.ladder_model(target))
    return [*made, dataclasses.replace(predicted, is_prediction_target=True)]


@pytest.mark.parametrize("n", range(4))
def test_too_few_sizes_for_an_interval_are_refused(n):
    sizes = "size" if n == 1 else "sizes"
    expected = f"to predict s/60K from {n} other {sizes}: a law of 3 parameters needs at least 5"
    with pytest.raises(ValueError, match=expected) as error:
        prediction.check_prediction(runs(SIZES[:n]))
    assert "is_prediction_target=False" in str(error.value) and "\n" not in str(error.value)


def test_enough_sizes_and_no_target_are_accepted():
    assert prediction.check_prediction(runs(SIZES[:4])) == ""
    few = [dataclasses.replace(run, is_prediction_target=False) for run in runs(SIZES[:1])]
    assert prediction.check_prediction(few) == ""
    assert prediction.check_prediction([]) == ""


def test_seeds_of_one_size_count_once():
    with pytest.raises(ValueError, match="from 2 other sizes"):
        prediction.check_prediction(runs(SIZES[:2], seeds=3))
    assert "only their seeds give an interval" in prediction.check_prediction(
        runs(SIZES[:3], seeds=2)
    )


def test_learning_rates_of_one_size_are_no_seeds():
    sizes = SIZES[:3]
    made = [run for i in range(2) for run in runs(sizes)[: len(sizes)]]
    for i, run in enumerate(made):
        run.name, run.optim.lr = f"{run.name}-{i}", 0.01 * (1 + i // len(sizes))
    with pytest.raises(ValueError, match="from 3 other sizes"):
        prediction.check_prediction([*made, runs([])[0]])


def test_runs_on_other_budgets_do_not_count():
    made = runs(SIZES[:4])
    made[0].steps *= 2
    with pytest.raises(ValueError, match="from 3 other sizes.*equal training tokens"):
        prediction.check_prediction(made)
