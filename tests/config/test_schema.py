import dataclasses
import json

import pytest

from lm.config import fields, schema


def test_json_round_trip_returns_the_same_run():
    run = schema.Run(name="a/b")
    run.optim.lr, run.data.sources = 0.5, {"code": 1.0}
    assert schema.from_dict(json.loads(json.dumps(schema.to_dict(run)))) == run


def test_unknown_field_error_suggests_the_nearest_name():
    with pytest.raises(schema.ConfigError, match="optim.lrr does not exist: did you mean optim.lr"):
        schema.from_dict({"optim": {"lrr": 1}})
    with pytest.raises(schema.ConfigError, match="optim=3 must be a dict of config fields"):
        schema.from_dict({"optim": 3})


def test_flatten_types_and_infos_have_the_same_names():
    flat, types = schema.flatten(schema.Run()), schema.field_types(schema.Run)
    assert list(flat) == list(types) == list(fields.field_info(schema.Run))
    assert all(isinstance(flat[name], kind) for name, kind in types.items())


def test_runs_do_not_share_dict_fields():
    first, second = schema.Run(), schema.Run()
    first.data.sources["more"] = 1.0
    assert "more" not in second.data.sources


def test_every_field_has_a_plain_sentence():
    for name, info in fields.field_info(schema.Run).items():
        words = info.description.split()
        assert words and info.description.endswith(".") and len(words) <= 25, name


def test_roles_and_axes_of_declarations_are_known():
    for name, info in fields.field_info(schema.Run).items():
        assert set(info.roles) <= set(fields.ROLES), name
    assert all(fields.fields_with(role, schema.Run) for role in fields.ROLES)


def test_choices_reach_the_flag_parser_as_text():
    kinds = {declared.name: declared.type for declared in dataclasses.fields(schema.Model)}
    assert kinds["norm"] is str and kinds["d_model"] is int
    assert fields.choices(schema.Run)["model.norm"] == ("rms", "layer")


def test_roles_select_the_expected_fields():
    assert fields.fields_with("vmapped", schema.Run) == (
        *("name", "seed", "optim.lr", "optim.weight_decay"),
    )
    assert fields.fields_with("traced", schema.Optimizer) == ("lr", "weight_decay")
    assert fields.fields_with("adapter", schema.Model) == ("lora_rank", "lora_alpha", "lora_on")
    assert set(fields.fields_with("compute", schema.Model)) == {
        *("dtype", "remat", "scan_unroll", "attention", "attention_query_blocks", "z_loss"),
    }
    alone = {name for name, info in fields.field_info(schema.Run).items() if info.alone}
    assert alone == {"wandb", "mesh.deterministic_shards"}
    is_result = set(schema.flatten(schema.Run())) - set(fields.fields_with("execution", schema.Run))
    assert {
        "seed",
        "steps",
        "model.dtype",
        "eval.patience",
        "mesh.deterministic_shards",
    } <= is_result
