"""The planned disk space of checkpoints agrees with the checkpoints that a run retains."""

import os

import jax
import pytest

from lm.config import model_sizes, schema
from lm.parallel import mesh
from lm.runs import records
from lm.sweeps.planning import checkpoint_space
from lm.training import loop, step
from lm.training.checkpointing import checkpoint_retention


@pytest.mark.parametrize(
    "changes",
    [{}, {"name": "lion"}, {"name": "muon"}, {"frozen": "embed,mlp"}, {"frozen": "vocab"}],
)
def test_bytes_of_a_checkpoint_are_those_of_the_state(changes):
    run = schema.Run(model=model_sizes.ladder_model("10K", vocab_size=256))
    for name, value in changes.items():
        setattr(run.optim, name, value)
    functions = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    arrays = jax.tree.leaves(functions.abstract_saved)
    n_bytes = sum(array.size * array.dtype.itemsize for array in arrays)
    n_counters = sum(array.size == 1 for array in arrays)
    assert n_bytes - 8 * n_counters <= checkpoint_space.checkpoint_bytes(run) <= n_bytes


def test_number_of_retained_checkpoints_is_that_of_a_run(tiny):
    """The run has checkpoints at 2, 4, ... 12. Two are the newest, 4 and 8 are permanent."""
    tiny.checkpoint_interval, tiny.permanent_checkpoint_interval = 2, 4
    checkpoint_retention.pin_checkpoint(tiny, 6, "sweep/branch")
    loop.train(tiny)
    steps = {n for n in os.listdir(records.run_dir(tiny) / "checkpoints") if n.isdecimal()}
    assert steps == {"4", "6", "8", "10", "12"}
    assert checkpoint_space.count_retained(tiny, {6}) == len(steps)


@pytest.mark.parametrize(
    ("steps", "interval", "permanent", "best", "starts", "n"),
    [
        (100, 200, 0, False, set(), 1),
        (1000, 200, 0, False, set(), 2),
        (1000, 200, 0, True, set(), 3),
        (1000, 200, 400, False, set(), 3),  # 400, 800, 1000
        (1000, 200, 200, True, set(), 6),
        (1000, 200, 400, False, {600, 800, -1}, 4),
        (2**31 - 1, 1, 1, False, set(), 2**31 - 1),
    ],
)
def test_retained_checkpoints_are_counted_once(steps, interval, permanent, best, starts, n):
    run = schema.Run(steps=steps, checkpoint_interval=interval, keep_best=best)
    run.permanent_checkpoint_interval = permanent
    assert checkpoint_space.count_retained(run, starts) == n


def test_space_of_a_trunk_includes_the_starts_of_its_branches():
    trunk, branch, late = (schema.Run(name=f"s/{name}") for name in ("trunk", "a", "b"))
    for run in (trunk, branch, late):
        run.model = model_sizes.ladder_model("10K", vocab_size=256)
    branch.start = schema.Start("s/trunk", 400, "full_state")
    late.start = schema.Start("s/trunk", 600, "full_state")
    space = checkpoint_space.estimate_space([trunk, branch, late])
    assert [space[run.name].n_retained for run in (trunk, branch, late)] == [4, 2, 2]
    assert space["s/a"].largest_bytes == 3 * space["s/a"].checkpoint_bytes
