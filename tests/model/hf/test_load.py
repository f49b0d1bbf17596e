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


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_logits_equal_those_of_transformers(name):
    shape, architecture, context = load.read_shape(STORED_MODELS / name)
    assert architecture == name and context == 24
    arrays = load.read_weights(STORED_MODELS / name, shape, name)
    params = random_models.unflatten(
        jax.eval_shape(lambda: transformer.init_params(shape, 0)), arrays
    )
    stored = np.load(STORED_MODELS / name / "expected.npz")
    shape = dataclasses.replace(shape, attention_query_blocks=1)
    for text in ("every", "repeated", "one"):
        actual = jax.jit(lambda ids: transformer.compute_logits(shape, params, ids))(stored[text])
        expected = stored[f"{text}.logits"]
        assert np.abs(expected).max() > 0.3
        np.testing.assert_allclose(actual, expected, atol=2e-6, err_msg=text)


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
            "model_type='mamba' must be one of llama, qwen3, qwen3_moe, gpt2",
        ),
        ({"hidden_act": "relu"}, "hidden_act='relu' must be 'silu'"),
        (
            {"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None},
            "must have the rope_type 'default'",
        ),
        ({"hidden_size": None}, "hidden_size=None must be a positive integer"),
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
