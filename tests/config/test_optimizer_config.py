"""Lengths of warm-up and decay, and half-life of the second moment, in tokens."""

import pytest

from lm.config import optimizer_config, schema


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
    optim = optimizer_config.resolve_tokens(schema.Optimizer(**fields), 2048)
    assert optimizer_config.count_warmup_steps(optim, 1000) == warmup
    assert optimizer_config.count_decay_steps(optim, 1000) == decay


def test_length_in_tokens_is_exact_for_large_numbers():
    optim = schema.Optimizer(warmup_tokens=3 * 2**60 + 2)
    assert optimizer_config.resolve_tokens(optim, 3).warmup_steps == 2**60 + 1


@pytest.mark.parametrize("tokens_per_step", [2048, 65_536])
def test_second_moment_halves_in_its_half_life(tokens_per_step):
    """The decay per token does not depend on the batch size."""
    optim = schema.Optimizer(b2_half_life_tokens=10_000_000)
    b2 = optimizer_config.resolve_tokens(optim, tokens_per_step).b2
    assert b2 ** (10_000_000 / tokens_per_step) == pytest.approx(0.5, rel=1e-9)


def test_lengths_in_tokens_need_the_tokens_of_a_step():
    optim = schema.Optimizer(warmup_tokens=4096)
    with pytest.raises(ValueError, match="optim.warmup_tokens=4096 needs the tokens per step"):
        optimizer_config.count_warmup_steps(optim, 100)


def test_optimizer_without_tokens_is_unchanged():
    optim = schema.Optimizer(warmup_steps=3)
    assert optimizer_config.resolve_tokens(optim, 2048) is optim
