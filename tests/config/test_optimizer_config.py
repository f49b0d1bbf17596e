"""Lengths of warm-up and decay."""

import pytest

from lm.config import optimizer_config, schema


def test_lengths_in_tokens_need_the_tokens_of_a_step():
    optim = schema.Optimizer(warmup_tokens=4096)
    with pytest.raises(ValueError, match="optim.warmup_tokens=4096 needs the tokens per step"):
        optimizer_config.count_warmup_steps(optim, 100)
