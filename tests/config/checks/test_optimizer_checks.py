"""Contradictions between the fields of the optimizer are rejected in one line."""

import pytest

from lm.config import schema, validation

WSD = {"schedule": "wsd"}
INDEPENDENT = {"independent_weight_decay": True}
BFLOAT16 = {"moment_dtype": "bfloat16"}


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"warmup_steps": 3, "warmup_tokens": 4},
            "optim.warmup_steps=3 contradicts",
        ),
        (WSD | {"decay_steps": 3, "decay_tokens": 4}, "optim.decay_steps=3 contradicts"),
        ({"warmup": 0.1, "warmup_steps": 3}, "optim.warmup_steps=3 contradicts optim.warmup=0.1"),
        (WSD | {"decay": 0.3, "decay_tokens": 9}, "decay_tokens=9 contradicts optim.decay=0.3"),
        ({"warmup_steps": 100}, "is 100 steps of warm-up, and must be below steps=100"),
        ({"warmup_tokens": 10**9}, "is 488,281 steps of warm-up, and must be below steps=100"),
        ({"decay_tokens": 9}, "optim.decay_tokens=9 has no effect with optim.schedule='cosine'"),
        ({"schedule": "constant", "decay_steps": 9}, "optim.decay_steps=9 has no effect"),
        (WSD | {"decay_steps": 99}, "gives 5 steps of warm-up and 99 of decay, together more"),
        (WSD | {"warmup_tokens": 90 * 2048}, "gives 90 steps of warm-up and 20 of decay"),
        ({"b2_half_life_tokens": 2000}, "is shorter than a step of 2,048 tokens"),
        ({"b2_half_life_tokens": 10**15}, "b2 must be at most 0.999999"),
        ({"b2": 0.9, "b2_half_life_tokens": 10**6}, "contradicts optim.b2=0.9: set optim.b2=0.95"),
        ({"name": "lion", "b2_half_life_tokens": 10**6}, "needs a second moment"),
        (INDEPENDENT, "optim.weight_decay=0.1 removes this fraction of a weight per step"),
        (INDEPENDENT | {"weight_decay": 1.0}, "set at most 0.01, such as 1e-4"),
        (
            INDEPENDENT | {"weight_decay": 0.01, "norm_decay_factor": 200.0},
            "times the largest factor of a group, 200, must be below 1",
        ),
        (BFLOAT16 | {"b1": 0.995}, "optim.b1=0.995 must be at most 0.99 with optim.moment_dtype"),
        (BFLOAT16 | {"name": "lion", "b2": 0.995}, "optim.b2=0.995 must be at most 0.99"),
    ],
)
def test_contradiction_is_rejected_in_one_line(fields, message):
    """A step of the default run has 2048 tokens."""
    run = schema.Run(steps=100, optim=schema.Optimizer(**fields))
    with pytest.raises(schema.ConfigError) as error:
        validation.validate_run(run)
    text = str(error.value)
    assert message in text and "\n" not in text and text.startswith("optim."), text


def test_factor_of_a_tied_head_is_rejected():
    run = schema.Run(optim=schema.Optimizer(head_decay_factor=0.0))
    run.model.tie_embeddings = True
    with pytest.raises(schema.ConfigError, match="head_decay_factor=0.0 has no effect with model"):
        validation.validate_run(run)


@pytest.mark.parametrize(
    "fields",
    [
        {"warmup_steps": 99},
        {"warmup": 0.0, "warmup_tokens": 4096},
        WSD | {"warmup_tokens": 4096, "decay_steps": 98},
        {"b2_half_life_tokens": 2048},
        INDEPENDENT | {"weight_decay": 1e-4},
        INDEPENDENT | {"weight_decay": 0.02, "weight_decay_rule": "power_lines"},
        BFLOAT16 | {"name": "muon"},
    ],
)
def test_consistent_fields_are_accepted(fields):
    validation.validate_run(schema.Run(steps=100, optim=schema.Optimizer(**fields)))
