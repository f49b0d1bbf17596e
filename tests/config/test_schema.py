"""The config converts to dicts and flags, and every field is fully declared."""

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
    with pytest.raises(schema.ConfigError, match=r"config=\[1\] must be a dict of config fields"):
        schema.from_dict([1])
    with pytest.raises(schema.ConfigError, match="optim.learning_rate .* did you mean optim.lr?"):
        schema.from_dict({"optim": {"learning_rate": 1}})


def test_flatten_types_and_infos_have_the_same_names():
    flat, types = schema.flatten(schema.Run()), schema.field_types(schema.Run)
    assert list(flat) == list(types) == list(fields.field_info(schema.Run))
    assert all(isinstance(flat[name], kind) for name, kind in types.items())


def test_runs_do_not_share_dict_fields():
    first, second = schema.Run(), schema.Run()
    first.data.sources["text:a.txt"] = 1.0
    assert "text:a.txt" not in second.data.sources


def test_every_field_has_a_description_sentence():
    """A description begins with a capital letter, ends with a full stop and has 2 to 25 words."""
    for name, info in fields.field_info(schema.Run).items():
        words = info.description.split()
        assert info.description[0].isupper() and info.description.endswith("."), name
        assert info.description == " ".join(words) and 2 <= len(words) <= 25, name


def test_every_number_has_a_range_that_contains_its_default():
    """Each number declares a lower bound, except mesh.data, which is -1 or at least 1."""
    defaults, kinds = schema.flatten(schema.Run()), schema.field_types(schema.Run)
    for name, info in fields.field_info(schema.Run).items():
        if kinds[name] in (int, float) and name != "mesh.data":
            assert (info.ge is None) != (info.gt is None), name
            assert info.ge is None or info.ge <= defaults[name], name
            assert info.gt is None or info.gt < defaults[name], name
            assert info.le is None or defaults[name] <= info.le, name
        else:
            assert info.ge is info.gt is info.le is None, name


def test_description_states_a_special_meaning_of_zero():
    explained = {
        name for name, info in fields.field_info(schema.Run).items() if "0 is" in info.description
    }
    assert explained >= {
        *("model.logit_softcap", "model.z_loss", "model.lora_rank", "model.n_experts"),
        *("model.learned_positions", "model.d_expert", "data.decontaminate_ngram"),
        *("data.unique_tokens", "data.max_epochs", "optim.clip_norm", "mesh.deterministic_shards"),
        *("eval.interval", "eval.task_interval", "eval.patience", "start.step", "stall_seconds"),
        *("steps_per_call", "permanent_checkpoint_interval"),
    }


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
        *("name", "seed", "optim.lr", "optim.weight_decay", "optim.independent_weight_decay"),
        *("optim.embedding_decay_factor", "optim.head_decay_factor", "optim.norm_decay_factor"),
    )
    assert fields.fields_with("traced", schema.Optimizer) == (
        *("lr", "weight_decay", "independent_weight_decay", "embedding_decay_factor"),
        *("head_decay_factor", "norm_decay_factor"),
    )
    assert fields.fields_with("adapter", schema.Model) == ("lora_rank", "lora_alpha", "lora_on")
    assert set(fields.fields_with("compute", schema.Model)) == {
        *("dtype", "gradient_dtype", "remat", "scan_unroll", "attention", "expert_kernel"),
        *("attention_query_blocks", "z_loss"),
    }
    alone = {name for name, info in fields.field_info(schema.Run).items() if info.alone}
    assert alone == {"wandb", "mesh.deterministic_shards", "data.batch_size_warmup"}
    execution = set(fields.fields_with("execution", schema.Run))
    assert not execution & {
        *("seed", "steps", "model.dtype", "eval.patience", "mesh.deterministic_shards"),
    }
