"""Batch size, tokens and steps of a run, and fields of the optimizer in tokens."""

import pytest

from lm.config import model_sizes, optimizer_config, schema, validation
from lm.config.schedules import batch_size_schedule


def resolve(optim: schema.Optimizer, tokens_per_step: int) -> schema.Optimizer:
    """Return the optimizer of a run of 1000 steps with a constant batch size."""
    schedule = batch_size_schedule.BatchSizeSchedule(tokens_per_step, 1)
    return batch_size_schedule.resolve_tokens(optim, schedule, 1000)


@pytest.mark.parametrize(
    "fields, warmup, decay",
    [
        ({}, 50, 200),
        ({"warmup": 0.0, "decay": 0.0}, 0, 1),
        ({"warmup_steps": 7, "decay_steps": 9}, 7, 9),
        ({"warmup_tokens": 4096, "decay_tokens": 6144}, 2, 3),
        ({"warmup_tokens": 3071, "decay_tokens": 3073}, 1, 2),
        ({"warmup_tokens": 1, "decay_tokens": 1}, 1, 1),
    ],
)
def test_steps_or_tokens_replace_the_fraction(fields, warmup, decay):
    """A step has 2048 tokens, and the run has 1000 steps."""
    optim = resolve(schema.Optimizer(**fields), 2048)
    assert optimizer_config.count_warmup_steps(optim, 1000) == warmup
    assert optimizer_config.count_decay_steps(optim, 1000) == decay


def test_length_in_tokens_is_exact_for_large_numbers():
    optim = schema.Optimizer(warmup_tokens=3 * 2**60 + 2)
    assert resolve(optim, 3).warmup_steps == 2**60 + 1


@pytest.mark.parametrize("tokens_per_step", [2048, 65_536])
def test_second_moment_halves_in_its_half_life(tokens_per_step):
    """The decay per token does not depend on the batch size."""
    optim = schema.Optimizer(b2_half_life_tokens=10_000_000)
    b2 = resolve(optim, tokens_per_step).b2
    assert b2 ** (10_000_000 / tokens_per_step) == pytest.approx(0.5, rel=1e-9)


def test_optimizer_without_tokens_is_unchanged():
    optim = schema.Optimizer(warmup_steps=3)
    assert resolve(optim, 2048) is optim


def make_run(warmup: str, **data) -> schema.Run:
    """Return a run of 100 steps whose last batch has 16 rows of 32 tokens."""
    run = schema.Run(steps=100)
    run.model.vocab_size, run.data = 256, schema.Data(seq_len=32, batch_size_warmup=warmup, **data)
    return run


def test_batch_size_doubles_after_each_number_of_tokens():
    """The batches of 4 and 8 rows have 128 and 256 tokens, and steps are not split."""
    schedule = batch_size_schedule.BatchSizeSchedule(16, 32, "1000, 2e3")
    assert schedule.stages == (
        batch_size_schedule.Stage(0, 0, 4),
        batch_size_schedule.Stage(8, 32, 8),
        batch_size_schedule.Stage(12, 64, 16),
    )
    sizes = [schedule.stage(step).batch_size for step in range(20)]
    assert sizes == [4] * 8 + [8] * 4 + [16] * 8
    for n_steps in range(20):
        assert schedule.count_rows(n_steps) == sum(sizes[:n_steps])
        assert schedule.find_step(schedule.count_tokens(n_steps)) == n_steps
        end = 8 if n_steps < 8 else 12 if n_steps < 12 else 20
        assert schedule.end_of_stage(n_steps, 20) == end


def test_budget_in_tokens_counts_the_smaller_batches():
    run = make_run("1000,2000")
    n_tokens = model_sizes.training_tokens(run)
    assert n_tokens == 32 * (8 * 4 + 4 * 8 + 88 * 16)
    assert model_sizes.steps_for_budget(run, tokens=n_tokens) == 100
    assert model_sizes.steps_for_budget(run, tokens=1024) == 8


def test_optimizer_in_tokens_follows_the_batch_sizes():
    run = make_run("1000,2000")
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    optim = schema.Optimizer(
        schedule="wsd", warmup_tokens=1280, decay_tokens=512 * 89, b2_half_life_tokens=10_000
    )
    b2s = []
    for stage in schedule.stages:
        resolved = batch_size_schedule.resolve_tokens(optim, schedule, 100, stage)
        assert (resolved.warmup_steps, resolved.decay_steps) == (9, 90)
        b2s.append(resolved.b2)
        # The decays of all earlier steps are corrected as steps of this batch size.
        expected = 2 ** (-schedule.count_tokens(stage.first_step) / 10_000)
        assert resolved.b2 ** (stage.first_step + stage.step_offset) == pytest.approx(expected)
    assert b2s == [pytest.approx(2 ** (-n / 10_000)) for n in (128, 256, 512)]


@pytest.mark.parametrize(
    "warmup, change, message",
    [
        ("2e6,x", {}, "'x' must be an integer from 1"),
        ("1.5", {}, "'1.5' must be an integer"),
        ("0", {}, "'0' must be an integer"),
        ("1e3,", {}, "'' must be an integer"),
        ("1e99999", {}, "must be an integer"),
        ("5,4", {}, "leaves no step for the batch size 8 before 4 tokens: raise"),
        ("100,120", {}, "leaves no step for the batch size 8"),
        ("1,2,3,4,5", {}, r"doubles 5 times, so data.batch_size=16 must be a multiple of 2\^5"),
        ("1e6", {}, "reaches data.batch_size=16 after 3,907 steps, but steps=100: list fewer"),
        ("1000", {"mesh.data": 16}, "8 rows, which must be a multiple of mesh.data=16: list"),
        (
            "1000",
            {"optim.grad_accumulation_steps": 8, "mesh.data": 2},
            r"multiple of mesh.data\*optim.grad_accumulation_steps=16",
        ),
        ("1000", {"mesh.deterministic_shards": 16}, "of mesh.deterministic_shards=16: list"),
        ("1000", {"optim.on_nonfinite": "rewind"}, "contradicts optim.on_nonfinite='rewind'"),
        (
            "1000",
            {"optim.b2_half_life_tokens": 200_000_000_000},
            "is 7.81e[+]08 steps, which is b2=",
        ),
    ],
)
def test_impossible_warmup_is_refused_in_one_line(warmup, change, message):
    run = make_run(warmup)
    validation.validate_run(make_run("1000"))
    for name, value in change.items():
        group, field = name.split(".")
        setattr(getattr(run, group), field, value)
    with pytest.raises(schema.ConfigError, match=message) as error:
        validation.validate_run(run)
    assert "\n" not in str(error.value)
