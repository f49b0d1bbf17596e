import dataclasses
import json

import pytest

from lm import config, fields


def test_json_round_trip_returns_the_same_run():
    run = config.Run(name="a/b")
    run.optim.lr, run.data.sources = 0.5, {"code": 1.0}
    assert config.from_dict(json.loads(json.dumps(config.to_dict(run)))) == run


def test_unknown_field_error_suggests_the_nearest_name():
    with pytest.raises(config.ConfigError, match="optim.lrr does not exist: did you mean optim.lr"):
        config.from_dict({"optim": {"lrr": 1}})
    with pytest.raises(config.ConfigError, match="optim=3 must be a dict of config fields"):
        config.from_dict({"optim": 3})


def test_flatten_types_and_infos_have_the_same_names():
    flat, types = config.flatten(config.Run()), config.field_types(config.Run)
    assert list(flat) == list(types) == list(fields.field_info(config.Run))
    assert all(isinstance(flat[name], kind) for name, kind in types.items())


def test_runs_do_not_share_dict_fields():
    first, second = config.Run(), config.Run()
    first.data.sources["more"] = 1.0
    assert "more" not in second.data.sources


def test_every_field_has_a_plain_sentence():
    for name, info in fields.field_info(config.Run).items():
        words = info.description.split()
        assert words and info.description.endswith(".") and len(words) <= 25, name


def test_roles_and_axes_of_declarations_are_known():
    for name, info in fields.field_info(config.Run).items():
        assert set(info.roles) <= set(fields.ROLES), name
    assert all(fields.fields_with(role, config.Run) for role in fields.ROLES)


def test_choices_reach_the_flag_parser_as_text():
    kinds = {declared.name: declared.type for declared in dataclasses.fields(config.Model)}
    assert kinds["norm"] is str and kinds["d_model"] is int
    assert fields.choices(config.Run)["model.norm"] == ("rms", "layer")


def test_roles_select_the_expected_fields():
    assert fields.fields_with("vmapped", config.Run) == (
        *("name", "seed", "optim.lr", "optim.weight_decay"),
    )
    assert fields.fields_with("traced", config.Optim) == ("lr", "weight_decay")
    assert fields.fields_with("adapter", config.Model) == ("lora_rank", "lora_alpha", "lora_on")
    assert set(fields.fields_with("compute", config.Model)) == {
        *("dtype", "remat", "unroll", "attention", "attention_blocks", "z_loss"),
    }
    alone = {name for name, info in fields.field_info(config.Run).items() if info.alone}
    assert alone == {"wandb", "mesh.exact"}
    is_result = set(config.flatten(config.Run())) - set(fields.fields_with("execution", config.Run))
    assert {"seed", "steps", "model.dtype", "eval.patience", "mesh.exact"} <= is_result


def names_in_hashes(kind: type, *roles: str) -> list[str]:
    """Return the names that enter hashes, in order, of the fields with one of these roles."""
    infos = fields.field_info(kind)
    values = {name: None for name in infos if not roles or {*roles} & {*infos[name].roles}}
    return list(fields.for_hash(values, kind))


def test_names_in_hashes_never_change():
    """A change here would build every prepared corpus again and fail every stored batch hash."""
    assert names_in_hashes(config.Data, "corpus") == [
        *("broken", "min_words", "min_letters", "max_repeats", "drop_copies", "overlap", "protect"),
    ]
    assert names_in_hashes(config.Data, "batch") == [
        *("rows", "score", "too_long", "across", "unique_tokens"),
    ]
    is_result = set(names_in_hashes(config.Run)) - set(names_in_hashes(config.Run, "execution"))
    assert sorted(is_result) == RESULT_NAMES


def test_values_in_hashes_never_change():
    data = config.Data(broken="skip", overlap=13, drop_copies=True, protect="code")
    assert list(fields.changed_for_hash(data, "corpus").items()) == [
        *(("broken", "skip"), ("drop_copies", True), ("overlap", 13), ("protect", "code")),
    ]
    data = config.Data(rows="whole", score="answers", too_long="drop", across=False)
    assert fields.changed_for_hash(data, "batch") == {
        **{"rows": "whole", "score": "answers", "too_long": "drop", "across": False},
    }
    data = config.Data(rows="continued", too_long="refuse")
    assert fields.changed_for_hash(data, "batch") == {"rows": "continued", "too_long": "refuse"}


# Names that enter the hash of a config.
RESULT_NAMES = sorted(
    """
    data.across data.batch_size data.broken data.drop_copies data.heldout data.max_epochs
    data.max_repeats data.min_letters data.min_words data.overlap data.protect data.rows data.score
    data.seq_len data.sources data.tokenizer data.too_long data.unique_tokens data.unseen
    eval.patience mesh.exact model.attention_blocks model.balance model.balance_rate
    model.balance_weight model.base_depth model.base_width model.bias model.capacity model.d_expert
    model.d_ff model.d_head model.d_model model.dispatch model.dtype model.experts_per_token
    model.logit_softcap model.lora_alpha model.lora_on model.lora_rank model.max_positions
    model.mlp model.n_experts model.n_heads model.n_kv_heads model.n_layers model.n_shared_experts
    model.norm model.norm_eps model.normalize_experts model.parametrization model.qk_norm
    model.rope_theta model.router model.router_z_loss model.tied model.vocab_size model.z_loss name
    optim.b1 optim.b2 optim.clip optim.decay optim.eps optim.freeze optim.layer_decay optim.lr
    optim.lr_end optim.name optim.schedule optim.warmup optim.weight_decay seed start.keep
    start.run start.step steps steps_per_call
    """.split()
)
