"""Sharding rules and mesh shapes are validated, and messages suggest values that work."""

import pytest

from lm.config import axis_rules, schema, validation


def rejection(values: dict) -> str:
    """Return the error message for a run with these fields."""
    run = schema.Run()
    for field, value in values.items():
        group, name = field.split(".")
        setattr(getattr(run, group), name, value)
    with pytest.raises(schema.ConfigError) as error:
        validation.validate_run(run)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "mesh.data=3 must be the number of devices, 4: try mesh.data=4"),
        ({"fsdp": 2, "tensor": 3}, "mesh.fsdp=2 x mesh.tensor=3 .*, 4: try mesh.tensor=2"),
        ({"data": 2, "sequence": 4}, "mesh.data=2 x mesh.sequence=4 .*: try mesh.sequence=2"),
        ({"data": 2, "tensor": 4}, "mesh.data=2 x mesh.tensor=4 .*: try mesh.tensor=2"),
        ({"fsdp": 3, "tensor": 3}, "try mesh.data=-1 for all remaining devices, and 1 for every"),
    ],
)
def test_wrong_mesh_product_suggests_the_nearest_mesh(sizes, message):
    with pytest.raises(schema.ConfigError, match=message):
        axis_rules.resolve_mesh_shape(vars(schema.Mesh(**sizes)), 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mesh.data": 4, "data.batch_size": 6},
            "data.batch_size=6 must be a multiple of mesh.data=4: try data.batch_size=8"
            " or mesh.data=3",
        ),
        (
            {"mesh.fsdp": 2, "optim.grad_accumulation_steps": 5, "data.batch_size": 8},
            "data.batch_size=8 must be a multiple of mesh.fsdp*optim.grad_accumulation_steps=10:"
            " try data.batch_size=10 or optim.grad_accumulation_steps=4",
        ),
        (
            {"data.seq_len": 30, "model.attention_query_blocks": 4},
            "data.seq_len=30 must be a multiple of model.attention_query_blocks=4: try"
            " data.seq_len=32 or model.attention_query_blocks=3",
        ),
        (
            {"mesh.sequence": 3},
            "data.seq_len=128 must be a multiple of mesh.sequence=3: try data.seq_len=129"
            " or mesh.sequence=2",
        ),
        (
            {"mesh.sequence": 64, "model.loss_chunks": 4},
            "data.seq_len=128 must be a multiple of mesh.sequence*model.loss_chunks=256: try"
            " data.seq_len=256 or model.loss_chunks=2",
        ),
        (
            {"mesh.tensor": 3},
            "model.n_heads=4 must be a multiple of mesh.tensor=3: try model.n_heads=3"
            " or mesh.tensor=2",
        ),
        (
            {"mesh.tensor": 4, "model.n_kv_heads": 2},
            "model.n_kv_heads=2 must be a multiple of mesh.tensor=4: try model.n_kv_heads=4"
            " or mesh.tensor=2",
        ),
        (
            {"mesh.tensor": 4, "model.d_ff": 386},
            "model.d_ff=386 must be a multiple of mesh.tensor=4: try model.d_ff=384"
            " or mesh.tensor=2",
        ),
        (
            {"mesh.fsdp": 3, "data.batch_size": 18},
            "model.d_model=128 must be a multiple of mesh.fsdp=3: try model.d_model=129"
            " or mesh.fsdp=2",
        ),
        (
            {
                "mesh.rules": {"vocab": ["fsdp", "tensor"]},
                "mesh.fsdp": 4,
                "mesh.tensor": 4,
                "model.vocab_size": 260,
            },
            "model.vocab_size=260 must be a multiple of mesh.fsdp*mesh.tensor=16: try"
            " model.vocab_size=256 or mesh.tensor=1",
        ),
    ],
)
def test_indivisible_size_suggests_the_nearest_valid_size(values, message):
    assert rejection(values) == message


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"mlps": "tensor"},
            "mesh.rules['mlps']='tensor' is not an axis of a weight: the axes are ",
        ),
        ({"batch": "data"}, "mesh.rules['batch']='data' is not an axis of a weight: the axes are "),
        ({"mlp": "model"}, "mesh.rules['mlp']='model' must be one of data, fsdp, expert, seq"),
        ({"mlp": None}, "mesh.rules['mlp']=None must be one of data, fsdp, expert, sequence, te"),
        ({"mlp": ["tensor", "tensor"]}, "mesh.rules['mlp']=['tensor', 'tensor'] repeats an axis"),
    ],
)
def test_invalid_sharding_rule_is_named_in_the_error(rules, message):
    assert rejection({"mesh.rules": rules}).startswith(message)


def test_axis_sizes_come_from_the_declared_fields():
    assert axis_rules.AXIS_SIZES == {
        "batch": ("data.batch_size", ("optim.grad_accumulation_steps",)),
        "length": ("data.seq_len", ("model.attention_query_blocks", "model.loss_chunks")),
        "embed": ("model.d_model", ()),
        "heads": ("model.n_heads", ()),
        "kv_heads": ("model.n_kv_heads", ()),
        "d_head": ("model.d_head", ()),
        "mlp": ("model.d_ff", ()),
        "vocab": ("model.vocab_size", ()),
        "positions": ("model.learned_positions", ()),
        "layers": ("model.n_layers", ()),
        "experts": ("model.n_experts", ()),
    }
    assert set(axis_rules.AXIS_SIZES) <= set(axis_rules.AXIS_RULES)


def test_sharding_rule_of_a_run_replaces_the_default():
    table = axis_rules.merged_axis_rules({"mlp": "fsdp", "vocab": []})
    assert (table["mlp"], table["vocab"], table["embed"]) == (("fsdp",), (), ("fsdp",))
    assert axis_rules.AXIS_RULES["mlp"] == ("tensor",)


def test_largest_divisor_is_at_most_the_limit():
    assert [axis_rules.largest_divisor(12, limit) for limit in (1, 5, 6, 11, 12, 99)] == [
        *(1, 4, 6, 6, 12, 12),
    ]
    assert axis_rules.largest_divisor(2**31 - 1, 2**31 - 2) == 1
    assert axis_rules.largest_divisor(7, 0) == 1
