"""Contradictions between the fields of a model are rejected in one line."""

import pytest

from lm.config import schema, validation


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rotary_fraction": 0.1}, "model.rotary_fraction=0.1 rotates 3 of model.d_head=32"),
        ({"rotary_fraction": 0.01}, "rotates 0 .* at least 2, try 0.0625"),
        (
            {"learned_positions": 999, "rope_scaling": "linear"},
            "model.rope_scaling='linear' has no effect with model.learned_positions: set 'none'",
        ),
        (
            {"rope_factor": 8.0},
            "model.rope_factor=8.0 has no effect with model.rope_sc",
        ),
        ({"full_attention_interval": 2}, "has no effect with model.sliding_window=0"),
        ({"sliding_window": 8, "full_attention_interval": 1}, "gives no layer a window"),
        ({"sliding_window": 8, "local_rope_theta": 1e4}, "needs layers without a window"),
        ({"sliding_window": 8, "attention": "splash"}, "model.sliding_window=8 has no kernel 'spl"),
        ({"attention_softcap": 5.0, "attention": "cudnn"}, "set model.attention='auto'"),
        ({"norm_position": "post", "residual": "parallel"}, "for model.norm_position='pre' only"),
        ({"qk_norm_scope": "all_heads", "qk_norm": False}, "no effect with model.qk_norm=False"),
        ({"qkv_bias": True, "bias": True}, "model.qkv_bias=True has no effect with model.bias=Tru"),
    ],
)
def test_contradiction_is_rejected_in_one_line(fields, message):
    with pytest.raises(schema.ConfigError, match=message) as error:
        validation.validate_run(schema.Run(model=schema.Model(**fields)))
    assert "\n" not in str(error.value)
