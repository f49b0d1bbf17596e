"""Training with a batch size that doubles: steps, rows, tokens, optimizer, restart and branches."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import flops, schema
from lm.config.schedules import batch_size_schedule
from lm.data import dataset
from lm.runs import records, status
from lm.sweeps.planning import cost
from lm.training import loaded_model, loop, optimizer, preemption, vmapped_runs, warm_start


@pytest.fixture
def warmed(tiny) -> schema.Run:
    """Return a run of 12 steps: 5 with 4 rows and 7 with 8 rows of 32 tokens."""
    tiny.data.batch_size_warmup, tiny.optim.b2_half_life_tokens = "600", 2000
    tiny.optim.warmup_tokens = 256
    return tiny


N_TOKENS = 32 * (5 * 4 + 7 * 8)


def test_batches_are_consecutive_rows_of_the_mixture(warmed):
    """The rows of all steps together are the first rows of a run with a constant batch size."""
    text = dataset.open_dataset(warmed.data, warmed.seed)
    constant = dataset.TokenDataset(
        dataclasses.replace(warmed.data, batch_size_warmup="", batch_size=4), 0, text.manifests
    )
    batches = [text.batch(step)["tokens"] for step in range(8)]
    assert [len(batch) for batch in batches] == [4] * 5 + [8] * 3
    expected = [constant.batch(step)["tokens"] for step in range(11)]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(expected))
    assert text.epochs(8) == constant.epochs(11)


@pytest.mark.slow
def test_run_counts_tokens_and_resumes_exactly_in_each_stage(warmed):
    loop.train(warmed)
    rows = records.load_metrics(records.run_dir(warmed))
    assert [row["tokens"] for row in rows] == [256, 512, 896, 1408, 1920, N_TOKENS]
    assert [row["lr"] for row in rows][0] < warmed.optim.lr
    (facts,) = records.load_runs(records.run_dir(warmed))
    per_token = flops.flops_per_token(warmed.model, 32)["full"]
    assert (facts["tokens"], facts["flops"]) == (N_TOKENS, N_TOKENS * per_token)
    assert rows[-1]["flops"] == facts["flops"]
    (done,) = status.run_statuses(warmed.dir)
    assert (done["status"], done["step"], done["seconds_left"]) == ("done", 12, 0.0)

    def stop(row):
        if (row["attempt"], row["step"]) in ((1, 4), (2, 8)):  # the next steps have 4 and 8 rows
            signal.raise_signal(signal.SIGTERM)

    other = dataclasses.replace(warmed, name="stopped")
    for _ in range(2):
        with pytest.raises(preemption.Interrupted):
            loop.train(other, stop)
    loop.train(other)
    other_rows = records.load_metrics(records.run_dir(other))
    assert [row["loss"] for row in other_rows] == [row["loss"] for row in rows]
    states = [loaded_model.restore_model(run)[1]["params"] for run in (warmed, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_second_moment_has_the_weights_of_its_half_life():
    """With equal gradients, the corrected moment is their square at every batch size."""
    schedule = batch_size_schedule.BatchSizeSchedule(16, 1, "40,160")
    optim = schema.Optimizer(b2_half_life_tokens=100, schedule="constant", warmup=0.0, lr=1.0)
    model, axes, gradient = schema.Model(), {"w": ("norm",)}, {"w": jnp.asarray([0.5, -2.0])}
    inputs, state = optimizer.inputs(optim, model, axes), None
    for step in range(30):
        stage = schedule.stage(step)
        resolved = batch_size_schedule.resolve_tokens(optim, schedule, 30, stage)
        rule = optimizer.make_optimizer(resolved, model, 30, axes, stage.step_offset)
        state = rule.init(gradient) if state is None else state
        update, state = rule.update(gradient, state, gradient, inputs=inputs)
        np.testing.assert_allclose(update["w"], -jnp.sign(gradient["w"]), rtol=1e-5)


def test_plan_counts_the_tokens_of_smaller_batches(warmed):
    row = cost.estimate_cost(warmed, 1e12)
    assert (row["steps"], row["tokens"]) == (12, N_TOKENS)
    constant = dataclasses.replace(warmed, data=dataclasses.replace(warmed.data))
    constant.data.batch_size_warmup = ""
    ratio = row["flops"] / cost.estimate_cost(constant, 1e12)["flops"]
    assert ratio == pytest.approx(76 / 96)


def test_branch_must_have_the_batch_sizes_of_its_parent(warmed):
    start = schema.Start(run=warmed.name, step=8, restore="full_state")
    branch = dataclasses.replace(warmed, name="branch", start=start)
    warm_start.validate_start(branch, warmed)
    branch.data = dataclasses.replace(warmed.data, batch_size_warmup="")
    with pytest.raises(ValueError, match="must be '600' up to data.batch_size=8, as in start.run"):
        warm_start.validate_start(branch, warmed)


def test_vmapped_runs_have_one_batch_size(warmed):
    with pytest.raises(ValueError, match="vmapped runs have one batch size: train it alone"):
        vmapped_runs.check_compatible([warmed, dataclasses.replace(warmed, seed=1)])
