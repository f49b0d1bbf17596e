"""Order of the runs of a sweep."""

import dataclasses

import pytest

from lm.config import schema
from lm.sweeps import run_order


@pytest.fixture
def runs(tiny) -> list[schema.Run]:
    parents = {"p": "", "b": "s/a", "c": "s/b", "a": "", "d": "s/a"}
    return [
        dataclasses.replace(
            tiny,
            name=f"s/{name}",
            start=schema.Start(run=parent),
            is_prediction_target=name == "p",
        )
        for name, parent in parents.items()
    ]


def test_parents_come_before_children_and_prediction_last(runs):
    names = [run.name for run in run_order.topological_order(runs)]
    assert names == ["s/a", "s/b", "s/c", "s/d", "s/p"]


def test_runs_that_wait_for_others_are_not_parallel(runs):
    assert run_order.max_parallel_runs(runs) == 2  # c and d; p is predicted from them
    assert run_order.max_parallel_runs(runs[:1]) == run_order.max_parallel_runs(runs[3:4]) == 1
    assert run_order.max_parallel_runs([]) == 0
