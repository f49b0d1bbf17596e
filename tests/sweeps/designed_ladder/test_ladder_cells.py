"""Tests of the cells and the target of a designed ladder."""

import pytest

from configs import base
from lm.config import model_sizes, schema
from lm.sweeps.designed_ladder import ladder_cells

GOAL = ladder_cells.LadderGoal("4M", 0.01, 60)
SIZES = ("10K", "25K", "60K", "100K")


def make_runs(sizes=SIZES, budgets=(1e6,), seeds=(0,)) -> list[schema.Run]:
    """Return a run per size, token budget and seed, named as in the sweeps of configs."""
    runs = []
    for size in sizes:
        for tokens in budgets:
            for seed in seeds:
                run = base.get_config(size)
                run.name = f"s/{size}" + (f"-{tokens / 1e6:g}M" if len(budgets) > 1 else "")
                run.name, run.seed = f"{run.name}-seed{seed}", seed
                run.steps = model_sizes.steps_for_budget(run, tokens=tokens)
                runs.append(run)
    return runs


def test_cell_has_the_runs_of_the_file_and_further_seeds():
    ladder = ladder_cells.build_ladder(make_runs(seeds=(0, 7)), GOAL)
    assert [cell.label for cell in ladder.cells] == list(SIZES)
    assert ladder.target == {"N": pytest.approx(4e6, rel=0.05)}
    cell = ladder.cell("25K")
    assert [cell.next_seed(used) for used in ([], [0], [0, 7], [0, 7, 1])] == [0, 7, 1, 2]
    first, copied = cell.run(7), cell.run(2)
    assert (first.name, first.seed) == ("s/25K-seed7", 7)
    assert (copied.name, copied.seed, copied.steps) == ("s/25K-seed2", 2, first.steps)
    with pytest.raises(ValueError, match="decided to train 40K, which the sweep file does not"):
        ladder.cell("40K")


def test_several_budgets_give_a_law_of_size_and_tokens():
    budgets = (3e5, 6e5, 1.2e6)
    ladder = ladder_cells.build_ladder(make_runs(budgets=budgets), GOAL)
    assert list(ladder.target) == ["N", "D"] and len(ladder.cells) == 12
    assert ladder.target["D"] == pytest.approx(1.2e6, rel=0.01)
    goal = ladder_cells.LadderGoal("4M", 0.01, 60, tokens=5e6)
    assert ladder_cells.build_ladder(make_runs(budgets=budgets), goal).target["D"] == 5e6
    assert len(ladder.points(ladder.cells)) == 2


def test_runs_that_are_no_ladder_are_refused():
    def refuse(runs, goal=GOAL):
        with pytest.raises(ValueError) as caught:
            ladder_cells.build_ladder(runs, goal)
        return str(caught.value)

    assert "3 smaller sizes, and the law needs 4" in refuse(make_runs(SIZES[:3]))
    assert "size 4Q does not exist" in refuse(make_runs(), ladder_cells.LadderGoal("4Q", 0.1, 1))
    assert "2 smaller sizes" in refuse(make_runs(), ladder_cells.LadderGoal("60K", 0.1, 1))
    assert "needs several token budgets per size" in refuse(
        make_runs(), ladder_cells.LadderGoal("4M", 0.1, 1, tokens=1e6)
    )
    assert "2 token budgets, and a law of size and tokens needs 3" in refuse(
        make_runs(budgets=(1e6, 2e6))
    )
    faster = make_runs()
    for run in faster:
        run.name, run.optim.lr = f"{run.name}-fast", 2 * run.optim.lr
    assert "equal sizes and tokens and other settings" in refuse([*make_runs(), *faster])
    assert "same size, tokens and seed" in refuse([*make_runs(), *make_runs(SIZES[:1])])
    branch = make_runs()
    branch[1].start.run = "s/10K"
    assert "s/25K-seed0 starts from s/10K" in refuse(branch)
