"""Models to and from `transformers`: the same logits, the same weights, the same token ids."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer

from lm.config import schema
from lm.data import tokenizers
from lm.model import params, transformer
from lm.model.hf import architectures, export, load
from lm.runs import records
from lm.training import checkpoint_manifest, loaded_model, loop, warm_start

HERE = pathlib.Path(__file__).parents[2] / "fixtures" / "hf"  # made by transformers: see make.py
SHAPE = schema.Model(
    **{"vocab_size": 256, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1},
    **{"d_head": 8, "d_ff": 24, "base_width": 4, "base_depth": 1},
)
GPT2 = {
    **{"norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False},
    **{"learned_positions": 32, "n_kv_heads": 2},
}
SHAPES = {
    "qwen3": {},
    "qwen3-tied": {"tie_embeddings": True, "n_kv_heads": 2},
    "llama": {"qk_norm": False, "norm_eps": 1e-5, "rope_theta": 5e5},
    "gpt2": GPT2,
    "gpt2-tied": GPT2 | {"tie_embeddings": True},
    "qwen3_moe": {"n_experts": 3, "d_expert": 12, "normalize_expert_weights": False},
}


def weights(shape: schema.Model) -> dict:
    """Random ones, none at the 0 or 1 where scales and biases begin."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    rng = np.random.default_rng(0)
    return tree.unflatten(jnp.asarray(rng.normal(0.1, 0.3, w.shape), w.dtype) for w in leaves)


def written(folder, knobs: dict, **more) -> tuple[schema.Run, dict]:
    run = schema.Run(model=dataclasses.replace(SHAPE, **knobs))
    run.data.seq_len = 32
    parameters = weights(run.model)
    export.export_model(run, parameters, tokenizers.ByteTokenizer(), folder, **more)
    return run, parameters


def nested(tree: dict, flat: dict[str, np.ndarray]) -> dict:
    leaves = [jnp.asarray(flat[path]) for path in params.flatten_by_path(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def fingerprints(parameters: dict) -> dict[str, int]:
    return checkpoint_manifest.array_checksums(
        params.flatten_by_path(jax.tree.map(jnp.asarray, parameters))
    )


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_logits_are_those_of_transformers(name):
    shape, kind, context = load.read_shape(HERE / name)
    assert kind == name and context == 24
    loaded = load.read_weights(HERE / name, shape, kind)
    parameters = nested(jax.eval_shape(lambda: transformer.init_params(shape, 0)), loaded)
    expected = np.load(HERE / name / "expected.npz")
    shape = dataclasses.replace(shape, attention_query_blocks=1)
    for what in ("every", "repeated", "one"):
        ours = jax.jit(lambda ids: transformer.compute_logits(shape, parameters, ids))(
            expected[what]
        )
        there = expected[f"{what}.logits"]
        assert np.abs(there).max() > 0.3
        np.testing.assert_allclose(ours, there, atol=2e-6, err_msg=what)


@pytest.mark.parametrize("knobs", SHAPES.values(), ids=SHAPES)
def test_what_is_written_is_read_as_the_same_weights(tmp_path, knobs):
    run, parameters = written(tmp_path / "out", knobs, shard_bytes=5000)
    shape, name, context = load.read_shape(tmp_path / "out")
    back = load.read_weights(tmp_path / "out", shape, name)
    assert fingerprints(back) == fingerprints(parameters) and context == 32
    ignored = {"base_width": 64, "base_depth": 4, "d_ff": shape.d_ff if shape.n_experts else 24}
    assert shape == dataclasses.replace(run.model, **ignored)


def test_shards_are_as_large_as_asked_and_the_index_finds_every_tensor(tmp_path):
    written(tmp_path, {}, shard_bytes=6000)
    index = json.loads((tmp_path / architectures.INDEX).read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for file in files:
        inside = safetensors.numpy.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in inside)
        size = sum(array.nbytes for array in inside.values())
        assert size <= 6000 or len(inside) == 1
        total += size
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("piece", [64, 1000, 1 << 24])
def test_pieces_of_any_size_are_the_same_file(tmp_path, piece, monkeypatch):
    written(tmp_path / "whole", GPT2)
    monkeypatch.setattr(export, "PIECE_BYTES", piece)
    written(tmp_path / "pieces", GPT2)
    a, b = ((tmp_path / name / architectures.ONE).read_bytes() for name in ("whole", "pieces"))
    assert a == b


@pytest.mark.parametrize("rule", ["mup", "completep"])
@pytest.mark.parametrize(
    "knobs", [{}, GPT2 | {"tie_embeddings": True}, {"n_experts": 3, "d_expert": 12}]
)
def test_what_a_parametrization_multiplies_is_in_the_weights(tmp_path, rule, knobs):
    run, parameters = written(tmp_path, knobs | {"parametrization": rule})
    shape, name, _ = load.read_shape(tmp_path)
    back = load.read_weights(tmp_path, shape, name)
    plain = nested(parameters, back)
    ids = np.arange(32)[None] * 7 % 256
    ours, folded = (
        jax.jit(
            lambda p, s=s: transformer.compute_logits(
                dataclasses.replace(s, attention_query_blocks=1), p, ids
            )
        )(p)
        for s, p in ((run.model, parameters), (shape, plain))
    )
    assert shape.parametrization == "standard"
    np.testing.assert_allclose(ours, folded, atol=1e-5)


def test_additions_are_added_up(tmp_path):
    run, parameters = written(tmp_path, {"lora_rank": 2})
    back = load.read_weights(tmp_path, *load.read_shape(tmp_path)[:2])
    query = params.flatten_by_path(parameters)["blocks/attention/query"]
    assert np.abs(back["blocks/attention/query"] - query).max() > 0.01
    ids = np.arange(32)[None]
    plain = dataclasses.replace(run.model, lora_rank=0)
    whole = {path: w for path, w in parameters.items() if path != "lora"}
    merged = nested(whole, back)
    np.testing.assert_allclose(
        transformer.compute_logits(run.model, parameters, ids),
        transformer.compute_logits(plain, merged, ids),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"logit_softcap": 30.0}, "model.logit_softcap=30.0, not 0.0: .* nearest is Qwen3For"),
        ({"bias": True}, "model.bias=True, not False"),
        ({"learned_positions": 64}, "model.learned_positions=64, not 0"),
        (GPT2 | {"n_kv_heads": 1}, "model.n_kv_heads=1, not 2: .* GPT2LMHeadModel"),
        (GPT2 | {"learned_positions": 0}, "model.learned_positions=0, not 'a table'"),
        ({"n_experts": 4, "n_shared_experts": 1}, "model.n_shared_experts=1, not 0"),
        ({"n_experts": 4, "load_balancing": "bias"}, "model.load_balancing='bias', not 'loss'"),
        ({"n_experts": 4, "dispatch": "capacity"}, "model.dispatch='capacity', not 'dropless'"),
    ],
)
def test_what_no_stock_architecture_has_is_refused_by_its_knob(tmp_path, knobs, said):
    with pytest.raises(ValueError, match=said):
        architectures.architecture_of(dataclasses.replace(SHAPE, **knobs))


def test_bytes_as_a_tokenizer_json_have_the_same_ids(tmp_path):
    written(tmp_path, {})
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = tokenizers.load_tokenizer(tmp_path)
    letters = "".join(chr(i) for i in range(1, 0x3000) if not 0xD800 <= i < 0xE000)
    for text in ("héllo  wörld\n\t", "\x01q\x02a\x03", "日本 🎉 \U0010ffff", letters, "Ā ā"):
        ids = theirs.encode(text).ids
        assert ids == list(text.encode()) == ours.encode(text).tolist()
        assert theirs.decode(ids) == ours.decode(ids) == text
    assert theirs.token_to_id("\0") == 0 == ours.end
    assert theirs.decode([65, 0, 66]) == "AB"  # an end stands for no text
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said["eos_token"] == "\0"


def test_other_tokenizers_go_along_as_they_are(tmp_path):
    bpe = tokenizers.train_bpe(iter(["some words and some more words"] * 9), 270)
    run = schema.Run(model=dataclasses.replace(SHAPE, vocab_size=270))
    export.export_model(run, weights(run.model), bpe, tmp_path)
    assert tokenizers.load_tokenizer(tmp_path).hash == bpe.hash
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == bpe.end


def test_a_run_goes_out_and_comes_back_and_is_evaluated_and_tuned(tiny):
    loop.train(tiny)
    _, state = loaded_model.restore_model(tiny)
    out, place = pathlib.Path(tiny.dir) / "out", pathlib.Path(tiny.dir) / "far" / "back"
    export.export_model(tiny, state["params"], tokenizers.ByteTokenizer(), out)
    back = warm_start.run_from_huggingface(out, place, seq_len=tiny.data.seq_len)
    _, again = loaded_model.restore_model(records.read_config(place))
    assert fingerprints(again["params"]) == fingerprints(state["params"])
    shutil.rmtree(out)  # the run needs it no longer
    tuned = dataclasses.replace(tiny, name="tuned", start=schema.Start(run="far/back"), steps=4)
    tuned.model = back.model
    tuned.data = dataclasses.replace(tiny.data, tokenizer=back.data.tokenizer)
    loop.train(tuned)
    first = records.load_evals(records.run_dir(tuned))[0]
    last = records.load_evals(records.run_dir(tiny))[-1]
    assert first["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert records.load_runs(place)[0]["status"] == "done"


@pytest.fixture
def broken(tmp_path) -> pathlib.Path:
    written(tmp_path / "out", {})
    return tmp_path / "out"


def change(folder: pathlib.Path, change) -> None:
    inside = safetensors.numpy.load_file(folder / architectures.ONE)
    change(inside)
    safetensors.numpy.save_file(inside, folder / architectures.ONE)


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda t: t.pop(NORM), rf"{NORM} \[16\] is missing \(1 tensors are\)"),
        (lambda t: t.update({NORM: np.ones(8, np.float32)}), rf"{NORM} is \[8\], .* \[16\]"),
        (lambda t: t.update(more=np.ones(8, np.float32)), r"safetensors: more is no weight"),
        (lambda t: t.update({NORM: np.ones(16, np.int8)}), rf"{NORM} is int8, not of floats"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(broken, edit, said):
    change(broken, edit)
    with pytest.raises(ValueError, match=said):
        warm_start.run_from_huggingface(broken, broken / "run")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw[:40], lambda raw: b""])
def test_a_file_that_is_damaged_is_named(broken, damage):
    file = broken / architectures.ONE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="model.safetensors: is no whole file of safetensors"):
        warm_start.run_from_huggingface(broken, broken / "run")


@pytest.mark.parametrize(
    "knobs, said",
    [
        (
            {"model_type": "mamba"},
            "model_type='mamba' must be one of llama, qwen3, qwen3_moe, gpt2",
        ),
        ({"hidden_act": "relu"}, "hidden_act='relu' must be 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "must be of rope_type"),
        ({"hidden_size": None}, "hidden_size=None must be a whole number"),
        ({"vocab_size": 200}, "vocab_size=200 is less than the 256 of"),
    ],
)
def test_a_config_that_is_another_model_is_refused(broken, knobs, said):
    said_there = json.loads((broken / "config.json").read_text()) | knobs
    (broken / "config.json").write_text(json.dumps(said_there))
    with pytest.raises(ValueError, match=said):
        warm_start.run_from_huggingface(broken, broken / "run")


def test_missing_files_are_named(broken):
    with pytest.raises(ValueError, match="is not empty: name a new folder"):
        export.export_model(
            schema.Run(model=SHAPE), weights(SHAPE), tokenizers.ByteTokenizer(), broken
        )
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer.json or tokenizer.model: name one"):
        warm_start.run_from_huggingface(broken, broken / "run")
    (broken / architectures.ONE).unlink()
    with pytest.raises(ValueError, match="has neither model.safetensors nor model.safetensors.ind"):
        warm_start.run_from_huggingface(broken, broken / "run", "bytes")
    with pytest.raises(ValueError, match="has no config.json"):
        load.read_shape(broken / "nowhere")


@pytest.mark.parametrize("knobs", SHAPES.values(), ids=SHAPES)
def test_transformers_opens_it_with_the_same_logits(tmp_path, knobs):
    torch = pytest.importorskip("torch", reason="extra: transformers")
    transformers = pytest.importorskip("transformers", reason="extra: transformers")
    run, parameters = written(tmp_path, knobs, shard_bytes=5000)
    there = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    ).eval()
    shape = dataclasses.replace(run.model, attention_query_blocks=1)
    for ids in (np.arange(256).reshape(8, 32), np.full((1, 32), 7), np.array([[255]])):
        ours = jax.jit(lambda ids: transformer.compute_logits(shape, parameters, ids))(ids)
        with torch.no_grad():
            theirs = there(torch.tensor(ids)).logits.numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "héllo \x01 日本 Ā"
    assert known(text)["input_ids"] == list(text.encode()) and known.eos_token_id == 0
    assert known.decode(known(text)["input_ids"]) == text
