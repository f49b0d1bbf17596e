"""Names and values of fields in hashes stay the same when a field is renamed.

A change of a name in this file would prepare every corpus again and invalidate stored hashes.
"""

import copy
import dataclasses
import pickle

import pytest

from lm.config import field_names, fields, schema


def names_in_hashes(kind: type, *roles: str) -> list[str]:
    """Return the names in hashes of the fields with one of these roles, or of all fields."""
    infos = fields.field_info(kind)
    values = {name: None for name in infos if not roles or {*roles} & {*infos[name].roles}}
    return list(fields.for_hash(values, kind))


def test_names_in_hashes_never_change():
    assert names_in_hashes(schema.Data, "corpus") == [
        *("broken", "min_words", "min_letters", "max_repeats", "drop_copies"),
        *("quality_filters", "overlap", "protect"),
    ]
    assert names_in_hashes(schema.Data, "batch") == [
        *("rows", "score", "too_long", "across", "unique_tokens"),
    ]
    names = set(names_in_hashes(schema.Run)) - set(names_in_hashes(schema.Run, "execution"))
    assert sorted(names) == RESULT_NAMES


def test_values_in_hashes_never_change():
    data = schema.Data(
        on_error="skip",
        decontaminate_ngram=13,
        drop_near_duplicates=True,
        decontaminate_against="code",
    )
    assert list(fields.changed_for_hash(data, "corpus").items()) == [
        *(("broken", "skip"), ("drop_copies", True), ("overlap", 13), ("protect", "code")),
    ]
    data = schema.Data(
        packing="documents", loss_on="answers", on_overflow="drop", attend_across_documents=False
    )
    assert fields.changed_for_hash(data, "batch") == {
        **{"rows": "whole", "score": "answers", "too_long": "drop", "across": False},
    }
    data = schema.Data(packing="continuation", on_overflow="error")
    assert fields.changed_for_hash(data, "batch") == {"rows": "continued", "too_long": "refuse"}


@pytest.mark.parametrize("kind", [schema.Run, schema.Model, schema.Data, schema.Optimizer])
def test_unknown_name_is_rejected_in_each_access(kind):
    group = kind()
    for access in (
        lambda: setattr(group, "layerz", 1),
        lambda: group.layerz,
        lambda: kind(layerz=1),
        lambda: dataclasses.replace(group, **{"layerz": 1}),
    ):
        with pytest.raises(field_names.UnknownFieldError, match="layerz does not exist"):
            access()
    assert "layerz" not in vars(group)
    assert not hasattr(group, "layerz")


def test_unknown_name_in_a_group_names_the_group():
    run = schema.Run()
    with pytest.raises(schema.ConfigError, match=r"^optim.lrr does not exist: did you mean optim"):
        run.optim.lrr = 1.0
    with pytest.raises(schema.ConfigError, match=r"^predct does not exist: did you mean is_predic"):
        run.predct = True


def test_config_can_be_copied_and_pickled():
    run = schema.Run(name="a", optim=schema.Optimizer(lr=0.5))
    assert copy.deepcopy(run) == copy.copy(run) == pickle.loads(pickle.dumps(run)) == run
    assert dataclasses.replace(run, seed=3).seed == 3


# Names that enter the hash of a config: fields without the role "execution".
RESULT_NAMES = sorted(
    """
    data.across data.batch_size data.batch_size_rule data.batch_size_warmup data.broken
    data.drop_copies data.heldout data.max_epochs data.max_repeats data.min_letters
    data.min_words data.overlap data.protect data.quality_filters data.rows data.score data.seq_len
    data.sources data.tokenizer data.too_long data.unique_tokens
    data.unseen eval.patience mesh.exact model.attention_blocks model.balance model.balance_rate
    model.balance_weight model.base_depth model.base_width model.bias model.capacity model.d_expert
    model.d_ff model.d_head model.d_model model.dispatch model.dtype model.experts_per_token
    model.attention_scale model.attention_softcap model.embedding_scale
    model.full_attention_interval model.gradient_dtype model.head_bias model.local_rope_theta
    model.norm_position model.qk_norm_scope model.qkv_bias model.residual model.rope_factor
    model.rope_original_length model.rope_scaling model.rotary_fraction model.sliding_window
    model.logit_softcap model.lora_alpha model.lora_on model.lora_rank model.max_positions model.mlp
    model.n_experts model.n_heads model.n_kv_heads model.n_layers model.n_shared_experts model.norm
    model.norm_eps model.normalize_experts model.parametrization model.qk_norm model.rope_theta
    model.router model.router_z_loss model.tied model.vocab_size model.z_loss name optim.b1 optim.b2
    optim.b2_half_life_tokens optim.clip optim.decay optim.decay_steps optim.decay_tokens
    optim.embedding_decay_factor optim.eps optim.freeze optim.head_decay_factor
    optim.independent_weight_decay optim.layer_decay optim.lr optim.lr_end optim.lr_rule
    optim.moment_dtype optim.name optim.norm_decay_factor optim.schedule optim.warmup
    optim.warmup_steps optim.warmup_tokens optim.weight_decay optim.weight_decay_rule seed
    start.keep start.run start.step steps
    """.split()
)


def test_default_of_a_newer_field_is_not_in_hashes():
    """The hashes of runs stored before the field existed stay equal."""
    model = schema.Model()
    values = {"model.sliding_window": 0, "model.rope_theta": model.rope_theta}
    assert list(fields.for_hash(values, schema.Run)) == ["model.rope_theta"]
    assert fields.for_hash({"model.sliding_window": 7}, schema.Run) == {"model.sliding_window": 7}
