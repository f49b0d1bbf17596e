"""Tests of reading folders of transformers: equal logits, and errors that name the fault."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from fixtures.hf import random_models

from lm.config import schema
from lm.data import tokenizers
from lm.model import transformer
from lm.model.hf import architectures, export, load
from lm.runs import records
from lm.training import loaded_model, loop, warm_start

STORED_MODELS = pathlib.Path(__file__).parents[2] / "fixtures" / "hf"  # written by its make.py
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    random_models.export_random_model(tmp_path / "out", {})
    return tmp_path / "out"


def edit_tensors(folder: pathlib.Path, edit) -> None:
    tensors = safetensors.numpy.load_file(folder / architectures.WEIGHTS_FILE)
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / architectures.WEIGHTS_FILE)


STORED_NAMES = sorted(file.parent.name for file in STORED_MODELS.glob("*/config.json"))


@pytest.mark.parametrize("name", STORED_NAMES)
def test_logits_equal_those_of_transformers(name):
    """The texts are rows of one batch. Later tokens, here 0, do not change logits."""
    shape, architecture, context = load.read_shape(STORED_MODELS / name)
    assert architecture == name.replace("llama3", "llama") and context == 24
    arrays = load.read_weights(STORED_MODELS / name, shape, architecture)
    params = random_models.unflatten(
        jax.eval_shape(lambda: transformer.init_params(shape, 0)), arrays
    )
    stored = np.load(STORED_MODELS / name / "expected.npz")
    shape = dataclasses.replace(shape, attention_query_blocks=1)
    texts = ("every", "repeated", "one")
    ids_BT = np.zeros((len(texts), context), np.int32)
    for row, text in enumerate(texts):
        ids_BT[row, : stored[text].size] = stored[text][0]
    logits = jax.jit(lambda params, ids_BT: transformer.compute_logits(shape, params, ids_BT))
    for text, actual_TV in zip(texts, logits(params, ids_BT), strict=True):
        expected_TV = stored[f"{text}.logits"][0]
        assert np.abs(expected_TV).max() > 0.3
        actual_TV = actual_TV[: len(expected_TV)]
        np.testing.assert_allclose(actual_TV, expected_TV, atol=1e-5, rtol=0, err_msg=text)


@pytest.mark.slow
def test_exported_run_can_be_imported_and_trained(tiny):
    """The imported run has the same weights and loss, without the exported folder."""
    loop.train(tiny)
    _, state = loaded_model.restore_model(tiny)
    exported = pathlib.Path(tiny.dir) / "out"
    imported_dir = pathlib.Path(tiny.dir) / "far" / "back"
    export.export_model(tiny, state["params"], tokenizers.ByteTokenizer(), exported)
    imported = warm_start.run_from_huggingface(exported, imported_dir, seq_len=tiny.data.seq_len)
    _, imported_state = loaded_model.restore_model(records.read_config(imported_dir))
    assert random_models.checksums(imported_state["params"]) == random_models.checksums(
        state["params"]
    )
    assert (imported_dir / "checkpoints" / "1").is_dir()  # its facts end at step 1
    shutil.rmtree(exported)
    tuned = dataclasses.replace(tiny, name="tuned", start=schema.Start(run="far/back"), steps=4)
    tuned.model = imported.model
    tuned.data = dataclasses.replace(tiny.data, tokenizer=imported.data.tokenizer)
    loop.train(tuned)
    first = records.load_evals(records.run_dir(tuned))[0]
    last = records.load_evals(records.run_dir(tiny))[-1]
    assert first["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert records.load_runs(imported_dir)[0]["status"] == "done"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop(NORM), rf"{NORM} \[16\] is missing \(1 missing tensors\)"),
        (
            lambda t: t.update({NORM: np.ones(8, np.float32)}),
            rf"{NORM} has the shape \[8\], .* \[16\]",
        ),
        (
            lambda t: t.update(more=np.ones(8, np.float32)),
            r"safetensors: more is not a weight of this model \(1 unknown tensors\)",
        ),
        (
            lambda t: t.update({NORM: np.ones(16, np.int8)}),
            rf"{NORM} has the dtype int8: it must be of floats",
        ),
    ],
)
def test_wrong_tensor_is_named(folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match=message):
        warm_start.run_from_huggingface(folder, folder / "run")


@pytest.mark.parametrize("corrupt", [lambda raw: raw[:-9], lambda raw: raw[:40], lambda raw: b""])
def test_truncated_file_is_named(folder, corrupt):
    file = folder / architectures.WEIGHTS_FILE
    file.write_bytes(corrupt(file.read_bytes()))
    with pytest.raises(ValueError, match="model.safetensors: is not a complete safetensors file"):
        warm_start.run_from_huggingface(folder, folder / "run")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model_type": "mamba"},
            "model_type='mamba' must be one of qwen3_moe, qwen3, llama, mistral",
        ),
        ({"hidden_act": "relu"}, "hidden_act='relu' must be 'silu'"),
        (
            {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None},
            "must have the rope_type 'default' or 'linear' or 'llama3'",
        ),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types=.* must be full_attention in al"),
        ({"layer_types": ["chunked"] * 2}, "layer_types=.* must list full_attention or sliding"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 must be 1.0"),
        (
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_parameters={'rope_type': 'linear'} must have a factor",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
            "rope_parameters.low_freq_factor=2.0 must be 1.0",
        ),
        ({"hidden_size": None}, "hidden_size=None must be a positive integer"),
        ({"vocab_size": True}, "vocab_size=True must be a positive integer"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers=10+ must be a positive integer below"),
        ({"num_hidden_layers": 10**9}, "describes [0-9,]* weights, the files contain [0-9,]*:"),
        ({"vocab_size": 10**9}, "describes [0-9,]* weights, the files contain [0-9,]*:"),
        ({"intermediate_size": "wide"}, "config.json: model.d_ff='wide' must be int, not str"),
        ({"rms_norm_eps": float("inf")}, "config.json: model.norm_eps=inf must be a finite"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings='long' must be a positive"),
        ({"rope_parameters": ["yarn"]}, r"rope_parameters=\['yarn'\] must be an object"),
        ({"vocab_size": 200}, "vocab_size=200 is less than the 256 of"),
    ],
)
def test_config_of_another_model_is_refused(folder, changes, message):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        warm_start.run_from_huggingface(folder, folder / "run")


def test_missing_files_are_named(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json or tokenizer.model: set --tokenizer"):
        warm_start.run_from_huggingface(folder, folder / "run")
    (folder / architectures.WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match="has neither model.safetensors nor model.safetensors.ind"):
        warm_start.run_from_huggingface(folder, folder / "run", "bytes")
    with pytest.raises(ValueError, match="has no config.json"):
        load.read_shape(folder / "nowhere")


@pytest.mark.parametrize(
    "weight_map, message",
    [
        ({"a": "../secret.safetensors"}, "lists '../secret.safetensors': it must be the name of a"),
        ({"a": "/etc/secret.safetensors"}, "lists '/etc/secret.safetensors': it must be the name"),
        ({"a": "secret"}, "lists 'secret': it must be the name of a .safetensors file"),
        ({"a": ".."}, "lists '..': it must be the name of a .safetensors file"),
        ({"a": 3}, "lists '3': it must be the name of a .safetensors file"),
        ({"a": "absent.safetensors"}, "lists absent.safetensors, which does not exist"),
        (["a"], "weight_map must be an object that lists the tensors"),
        ({}, "weight_map must be an object that lists the tensors"),
    ],
)
def test_index_lists_files_of_its_folder(folder, weight_map, message):
    weights = folder / architectures.WEIGHTS_FILE
    shutil.copy(weights, folder.parent / "secret.safetensors")
    index = folder / architectures.INDEX_FILE
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        warm_start.run_from_huggingface(folder, folder / "run")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", architectures.WEIGHTS_FILE])
def test_link_out_of_the_folder_is_refused(folder, name):
    target = folder.parent / "elsewhere" / name
    target.parent.mkdir()
    (folder / name).rename(target)
    (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match=f"{name} is a link to .*elsewhere/{name}, outside"):
        warm_start.run_from_huggingface(folder, folder.parent / "run")
    load.check_files(folder, [str(target.parent)])


def test_links_of_a_hub_snapshot_are_followed(folder):
    snapshot = folder.parent / "hub" / "snapshots" / "0d6f2c"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot.parents[1] / "blobs")
    snapshot.mkdir()
    for file in (snapshot.parents[1] / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    load.check_files(snapshot)
    assert load.read_shape(snapshot)[1] == "qwen3"


def write_header(file: pathlib.Path, edit) -> None:
    """Change the header of a safetensors file. Its data remains."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h[NORM].update(shape=[2**40]),
        lambda h: h[NORM].update(shape=[2**62, 2**62]),
        lambda h: h[NORM].update(dtype="F64"),
        lambda h: h[NORM].update(data_offsets=[0, 64]),  # overlaps another tensor
        lambda h: h[NORM].update(data_offsets=[0, 2**60]),
        lambda h: h[NORM].update(data_offsets=[64, 0]),
        lambda h: h[NORM].update(data_offsets=[-8, 56]),
        lambda h: h.update(more={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}),
    ],
)
def test_header_that_does_not_fit_its_file_is_refused(folder, edit):
    write_header(folder / architectures.WEIGHTS_FILE, edit)
    with pytest.raises(ValueError, match="model.safetensors: is not a complete safetensors file"):
        warm_start.run_from_huggingface(folder, folder / "run")


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63, 2**64 - 1])
def test_header_length_beyond_the_file_is_refused(folder, length):
    file = folder / architectures.WEIGHTS_FILE
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(ValueError, match="model.safetensors: is not a complete safetensors file"):
        warm_start.run_from_huggingface(folder, folder / "run")


def test_huge_files_are_not_read(folder, monkeypatch):
    """A sparse file needs no disk."""
    with open(folder / "config.json", "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="config.json is not valid JSON: 1,099,511,627,776 bytes"):
        load.read_shape(folder)
    with open(folder / "tokenizer.json", "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"tokenizer.json has 1,099,511,627,776 bytes, more than"):
        tokenizers.open_tokenizer(f"file:{folder / 'tokenizer.json'}")


def test_deeply_nested_config_is_refused(folder):
    (folder / "config.json").write_text(100_000 * "[")
    with pytest.raises(ValueError, match="config.json is not valid JSON: .*recursion"):
        load.read_shape(folder)


def test_token_id_beyond_memory_is_refused(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["zzz"] = 4_000_000_000
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has a token id above 2.24: set another"):
        tokenizers.open_tokenizer(f"file:{file}")


@pytest.mark.parametrize("fraction", [0.5, 0.9, 1.5, "half"])
def test_odd_number_of_rotated_dimensions_is_refused(tmp_path, fraction):
    """Heads have 6 dimensions. An odd number of them cannot be rotated in pairs."""
    folder = shutil.copytree(STORED_MODELS / "gpt_neox", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["partial_rotary_factor"] = fraction
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="partial_rotary_factor=.* must rotate an even number"):
        load.read_shape(folder)
