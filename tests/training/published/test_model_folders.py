"""Tests of the folders of published models: local, in the cache of the Hub, and absent."""

import pytest
from fixtures.hf import random_models

from lm.training.published import model_folders


@pytest.fixture
def folder(tmp_path):
    random_models.export_random_model(tmp_path / "pythia-tiny", random_models.VARIANTS["gpt_neox"])
    return tmp_path / "pythia-tiny"


def test_shape_and_tokenizer_are_read_without_weights(folder):
    (folder / "model.safetensors").unlink()
    model = model_folders.read_model(f"{folder}/")
    assert (model.name, model.architecture, model.context) == ("pythia-tiny", "gpt_neox", 32)
    assert model.tokenizer == f"file:{folder}/tokenizer.json"
    assert model.shape.n_layers == 2


def test_hub_names_are_found_in_the_local_cache(folder, tmp_path, monkeypatch):
    """The cache has a folder of files by content, and links to them per commit."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / "models--Owner--pythia-tiny"
    snapshot = repository / "snapshots" / "0123abc"
    for path in (repository / "refs", repository / "blobs", snapshot):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "refs" / "step3000").write_text("0123abc")
    for file in folder.iterdir():
        file.rename(repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(repository / "blobs" / file.name)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", _in_cache(huggingface_hub, tmp_path / "hub")
    )
    model = model_folders.read_model("Owner/pythia-tiny")
    assert (model.name, model.folder) == ("pythia-tiny", snapshot)
    assert model_folders.read_model("Owner/pythia-tiny@step3000").name == "pythia-tiny-step3000"
    with pytest.raises(ValueError, match="hf download Owner/absent --revision=v1$"):
        model_folders.find_model_folder("Owner/absent@v1")


def _in_cache(huggingface_hub, cache):
    """Return snapshot_download for another cache, whose default is read at the import."""
    original = huggingface_hub.snapshot_download
    return lambda *arguments, **options: original(*arguments, cache_dir=cache, **options)


def test_absent_folders_and_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="/no/folder/here does not exist"):
        model_folders.find_model_folder("/no/folder/here")
    (tmp_path / "facts.json").write_text("{}")
    with pytest.raises(ValueError, match=f"is a run: evaluate it with --run={tmp_path}"):
        model_folders.find_model_folder(str(tmp_path))
