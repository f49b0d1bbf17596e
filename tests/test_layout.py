import pytest

from lm import checks, config, layout


def refused(knobs: dict) -> str:
    """The one line by which a run with these knobs is refused."""
    run = config.Run()
    for knob, value in knobs.items():
        group, name = knob.split(".")
        setattr(getattr(run, group), name, value)
    with pytest.raises(ValueError) as error:
        checks.check(run)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3}, "mesh.data=3 must be the number of devices, 4: try mesh.data=4"),
        ({"fsdp": 2, "tensor": 3}, "mesh.fsdp=2 x mesh.tensor=3 .*, 4: try mesh.tensor=2"),
        ({"data": 2, "sequence": 4}, "mesh.data=2 x mesh.sequence=4 .*: try mesh.sequence=2"),
        ({"data": 2, "tensor": 4}, "mesh.data=2 x mesh.tensor=4 .*: try mesh.tensor=2"),
        ({"fsdp": 3, "tensor": 3}, "try mesh.data=-1, which takes what is left, and 1 for every"),
    ],
)
def test_a_mesh_that_does_not_multiply_is_refused_with_the_nearest(sizes, words):
    with pytest.raises(ValueError, match=words):
        layout.check_devices(vars(config.Mesh(**sizes)), 4)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        (
            {"mesh.data": 4, "data.batch_size": 6},
            "data.batch_size=6 must be a multiple of mesh.data=4: try data.batch_size=8"
            " or mesh.data=3",
        ),
        (
            {"mesh.fsdp": 2, "optim.accumulate": 5, "data.batch_size": 8},
            "data.batch_size=8 must be a multiple of mesh.fsdp*optim.accumulate=10: try"
            " data.batch_size=10 or optim.accumulate=4",
        ),
        (
            {"data.seq_len": 30, "model.attention_blocks": 4},
            "data.seq_len=30 must be a multiple of model.attention_blocks=4: try data.seq_len=32"
            " or model.attention_blocks=3",
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
def test_what_does_not_divide_is_refused_with_the_nearest_that_works(knobs, words):
    assert refused(knobs) == words


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"mlps": "tensor"}, "mesh.rules['mlps']='tensor' is not an axis of a weight: those are "),
        ({"batch": "data"}, "mesh.rules['batch']='data' is not an axis of a weight: those are "),
        ({"mlp": "model"}, "mesh.rules['mlp']='model' must be one of data, fsdp, expert, seq"),
        ({"mlp": None}, "mesh.rules['mlp']=None must be one of data, fsdp, expert, sequence, te"),
        ({"mlp": ["tensor", "tensor"]}, "mesh.rules['mlp']=['tensor', 'tensor'] repeats an axis"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused_by_name(rules, words):
    assert refused({"mesh.rules": rules}).startswith(words)


def test_a_row_of_a_run_replaces_a_row_of_the_table():
    table = layout.rules({"mlp": "fsdp", "vocab": []})
    assert (table["mlp"], table["vocab"], table["embed"]) == (("fsdp",), (), ("fsdp",))
    assert layout.RULES["mlp"] == ("tensor",)
