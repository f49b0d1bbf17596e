"""Trained models that are loaded from their run directories."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.data.tokenization import token_healing
from lm.evaluation import generation, scoring
from lm.runs import json_files, records
from lm.training import checkpoints, loaded_model
from lm.training.checkpointing import checkpoint_manifest

SAMPLING = {"max_tokens": 8, "temperature": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def model(finished_run) -> loaded_model.LoadedModel:
    return loaded_model.load_model(records.run_dir(finished_run))


def generate(model: loaded_model.LoadedModel, prompts: list[str]) -> list[generation.Generated]:
    """Continue prompts by the function that LoadedModel.generate wraps."""
    prompt_ids = [token_healing.encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    sampling = generation.SamplingParams(**SAMPLING)
    return generation.generate(
        model.run, model.device_mesh, model.weights, prompt_ids, model.tokenizer, sampling
    )


def score(
    model: loaded_model.LoadedModel, prompt: str, answers: list[str]
) -> list[scoring.ScoredAnswer]:
    """Score answers by the function that LoadedModel.score wraps."""
    pairs = token_healing.encode_pairs(model.tokenizer, [(prompt, answer) for answer in answers])
    return scoring.score_pairs(model.run, model.device_mesh, model.weights, pairs)


def test_generate_equals_the_generation_module(model):
    assert model.generate("The quick", **SAMPLING) == generate(model, ["The quick"])[0]


def test_generate_continues_each_prompt_of_a_list(model):
    prompts = ["The quick", "", "brown fox"]
    results = model.generate(prompts, **SAMPLING)
    assert results == generate(model, prompts)
    assert all(0 < len(result.tokens) <= SAMPLING["max_tokens"] for result in results)


def test_generate_rejects_a_negative_temperature(model):
    with pytest.raises(ValueError, match="temperature"):
        model.generate("The", temperature=-1.0)


def test_score_equals_the_scoring_module(model):
    scored, expected = model.score("The quick", " brown"), score(model, "The quick", [" brown"])[0]
    np.testing.assert_array_equal(scored.nats, expected.nats)
    assert scored.nats.shape == (6,) and scored.is_greedy == expected.is_greedy


def test_score_accepts_a_list_of_answers(model):
    answers = [" brown", " zebra", " fox"]
    results = model.score("The quick", answers)
    for scored, expected in zip(results, score(model, "The quick", answers), strict=True):
        np.testing.assert_array_equal(scored.nats, expected.nats)
    assert results[0].nats.sum() < results[1].nats.sum()  # the text contains "quick brown"


def test_params_are_the_weights_by_path(model):
    assert len(model.params) == len(jax.tree.leaves(model.weights))
    assert model.params["embed"] is model.weights["embed"]
    assert model.params["blocks/mlp/up"] is model.weights["blocks"]["mlp"]["up"]


def test_open_weights_reads_the_same_weights(model, finished_run):
    with loaded_model.open_weights(finished_run) as (read_weight, step):
        assert step == 12
        for path in ("embed", "blocks/mlp/up"):
            np.testing.assert_array_equal(read_weight(path), model.params[path])


def test_repr_names_the_run_step_and_parameters(model):
    n_params = sum(leaf.size for leaf in jax.tree.leaves(model.weights))
    assert repr(model) == f"LoadedModel('tiny', step=12, parameters={n_params:,})"


def test_load_model_accepts_a_string_and_an_older_step(finished_run):
    model = loaded_model.load_model(str(records.run_dir(finished_run)), 8)
    assert model.step == 8 and model.tokenizer.vocab_size == 256


def test_restore_model_returns_only_the_requested_parts(finished_run):
    functions, state = loaded_model.restore_model(finished_run, 8, ("step",))
    assert list(state) == ["step"] and int(state["step"]) == 8
    assert functions.n_runs == 1


def change_config(file, group: str, **fields) -> None:
    """Change fields of a stored config."""
    content = json_files.read_record(file)
    json_files.write_record(file, content | {group: content[group] | fields})


def test_run_for_more_devices_is_loaded_on_this_machine(finished_copy, model):
    config = records.run_dir(finished_copy) / "config.json"
    change_config(config, "mesh", fsdp=8)
    assert records.read_config(config.parent).mesh.fsdp == 8
    other = loaded_model.load_model(config.parent)
    assert other.device_mesh.size == jax.device_count()
    np.testing.assert_array_equal(other.params["embed"], model.params["embed"])


def test_renamed_run_is_loaded(finished_copy, model):
    folder = records.run_dir(finished_copy)
    renamed = folder.rename(folder.with_name(f"my-{folder.name}"))
    other = loaded_model.load_model(renamed)
    np.testing.assert_array_equal(other.params["embed"], model.params["embed"])


def test_deterministic_run_is_loaded(finished_copy, model):
    """The mesh of the loaded model has no deterministic shards, and does not split weights."""
    config = records.run_dir(finished_copy) / "config.json"
    change_config(config, "mesh", deterministic_shards=4)
    run = records.read_config(config.parent)
    with checkpoints.CheckpointStore(finished_copy, read_only=True) as store:
        assert store.fields["mesh.deterministic_shards"] == 4
    assert loaded_model.fit_to_devices(run).mesh == schema.Mesh(rules={"embed": []})


def test_config_may_change_before_a_restore(finished_run, model):
    """Only a command that trains needs the config of the checkpoint."""
    data = dataclasses.replace(finished_run.data, sources={"docs": 1.0}, seq_len=16)
    run = dataclasses.replace(finished_run, data=data, mesh=schema.Mesh())
    _, state = loaded_model.restore_model(run)
    np.testing.assert_array_equal(state["params"]["embed"], model.params["embed"])


def test_batch_size_is_a_multiple_of_the_devices(finished_run):
    data = dataclasses.replace(finished_run.data, batch_size=6)
    run = loaded_model.fit_to_devices(dataclasses.replace(finished_run, data=data), True)
    assert run.data.batch_size % jax.device_count() == 0


def test_model_without_its_tokenizer_file_is_refused(finished_copy):
    config = records.run_dir(finished_copy) / "config.json"
    change_config(config, "data", tokenizer="bpe:300")
    with pytest.raises(ValueError, match="has no tokenizer.json"):
        loaded_model.load_model(config.parent)


def test_missing_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a run directory") as raised:
        loaded_model.load_model(tmp_path / "nowhere")
    assert "\n" not in str(raised.value)


def test_missing_step_is_refused_in_one_line(finished_run):
    message = r"has no step 5: it has \[8, 12\]"
    with pytest.raises(checkpoint_manifest.CheckpointError, match=message) as raised:
        loaded_model.load_model(records.run_dir(finished_run), 5)
    assert "\n" not in str(raised.value)


def test_devices_are_initialized_after_other_jax_use(tmp_path):
    """The number of devices, which are in use, and the cache folder of the caller do not change."""
    script = (
        "import sys, jax; from lm.parallel import mesh\n"
        "jax.config.update('jax_compilation_cache_dir', sys.argv[1])\n"
        "n_devices = jax.device_count()\n"
        "mesh.initialize_devices()\n"
        "assert jax.device_count() == n_devices\n"
        "assert jax.config.values['jax_compilation_cache_dir'] == sys.argv[1]\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "cache"], check=True, timeout=60)
