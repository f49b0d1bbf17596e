"""Models are imported into a bucket, and exported to one."""

import pytest
from fixtures import commands
from fixtures.hf import random_models

from lm.model.hf import load
from lm.runs import filesystem, records


@pytest.fixture
def model(tmp_path, bucket):
    """Return the folder of a model of transformers. A fake bucket is open."""
    random_models.export_random_model(tmp_path / "model", {})
    return tmp_path


def test_model_is_imported_into_a_bucket_and_exported_to_it(model):
    folder = "gs://bucket/runs/imported"
    command = "import_hf", "--source=model", f"--run={folder}"
    result = commands.run_command(model, *command)
    assert result.returncode == 0, result.stderr
    assert {*model.iterdir()} == {model / "model"}  # no local folder with the name gs:
    (row,) = records.load_runs(folder)
    assert row["status"] == "done" and row["ends_at"] == 1
    result = commands.run_command(model, *command)
    assert result.returncode == 2 and f"--run={folder} is not empty" in result.stderr
    out = "gs://bucket/out"
    result = commands.run_command(
        model, "export", f"--run={folder}", f"--out={out}", f"--allow_path={folder}"
    )
    assert result.returncode == 0, result.stderr
    assert {*model.iterdir()} == {model / "model"}
    for file in filesystem.open_path(out).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    shape, architecture, _ = load.read_shape(model / "model")
    expected = load.read_weights(model / "model", shape, architecture)
    actual = load.read_weights(model, shape, architecture)
    assert random_models.checksums(actual) == random_models.checksums(expected)
