"""Tests of the choice of the transformers architecture of a model."""

import dataclasses

import pytest
from fixtures.hf import random_models

from lm.model.hf import architectures


@pytest.mark.parametrize("name", random_models.VARIANTS)
def test_architecture_of_each_variant(name):
    shape = dataclasses.replace(random_models.SHAPE, **random_models.VARIANTS[name])
    assert architectures.architecture_of(shape) == name.partition("-")[0]


def test_family_of_an_import_is_preferred():
    """Phi-3 with a window has the fields of Mistral."""
    shape = dataclasses.replace(random_models.SHAPE, qk_norm=False, sliding_window=9)
    assert architectures.architecture_of(shape) == "mistral"
    assert architectures.architecture_of(shape, "phi3") == "phi3"
    assert architectures.architecture_of(shape, "gpt2") == "mistral"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"logit_softcap": 30.0}, "model.logit_softcap=30.0 must be 0.0: .* nearest is Qwen3For"),
        ({"bias": True}, "model.bias=True must be False"),
        ({"attention_scale": 0.25}, "model.attention_scale=0.25 must be 0.0"),
        ({"residual": "parallel"}, "model.residual='parallel' must be 'sequential'"),
        (random_models.GEMMA_FIELDS | {"embedding_scale": 2.0}, "embedding_scale=2.0 must be 4.0"),
        ({"learned_positions": 64}, "model.learned_positions=64 must be 0"),
        (
            random_models.GPT2_FIELDS | {"n_kv_heads": 1},
            "model.n_kv_heads=1 must be 2: .* GPT2LMHeadModel",
        ),
        ({"n_experts": 4, "n_shared_experts": 1}, "model.n_shared_experts=1 must be 0"),
        (
            {"n_experts": 4, "load_balancing": "bias"},
            "model.load_balancing='bias' must be 'loss' or 'none'",
        ),
        ({"n_experts": 4, "dispatch": "capacity"}, "model.dispatch='capacity' must be 'dropless'"),
    ],
)
def test_model_without_architecture_is_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=message):
        architectures.architecture_of(dataclasses.replace(random_models.SHAPE, **fields))
