"""Tests of weights that are assembled on a mesh, one matrix at a time."""

import pathlib
import weakref

import jax
import numpy as np
import pytest
from fixtures.hf import random_models

from lm.config import schema
from lm.model.hf import load, weight_blocks
from lm.parallel import mesh

STORED_MODELS = pathlib.Path(__file__).parents[2] / "fixtures" / "hf"


def test_weights_of_fused_tensors_are_divided_over_the_mesh():
    """Each device has its block only, and the blocks equal the weights in host memory."""
    folder = STORED_MODELS / "phi3"
    shape, architecture, _ = load.read_shape(folder)
    device_mesh = mesh.make_mesh(schema.Mesh(fsdp=2, tensor=2))
    shardings = load.mesh_shardings(shape, device_mesh, mesh.DEFAULT_RULES)
    actual = load.read_weights(folder, shape, architecture, shardings)
    expected = load.read_weights(folder, shape, architecture)
    assert actual.keys() == expected.keys()
    for path, array in actual.items():
        assert array.sharding == shardings[path]
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    up = actual["blocks/mlp/up"]
    assert up.addressable_shards[0].data.size == up.size // 4


@pytest.mark.parametrize("fields", [{"expert": 2, "fsdp": 2}, {"tensor": 4}])
def test_matrices_of_divided_experts_reach_their_devices(fields):
    device_mesh = mesh.make_mesh(schema.Mesh(**fields))
    names = ("layers", "experts", "embed", "mlp")
    sharding = mesh.named_sharding(device_mesh, *names)
    expected = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
    weights = weight_blocks.WeightBlocks({"up": expected.shape}, {"up": sharding})
    for index in np.ndindex(2, 4):
        weights.write("up", index, expected[index])
    array = weights.arrays()["up"]
    assert array.sharding == sharding
    np.testing.assert_array_equal(array, expected)


def test_host_has_one_tensor_of_the_model_at_a_time(tmp_path, monkeypatch):
    """A matrix is freed before the next one is read, unless the devices use its memory."""
    random_models.export_random_model(tmp_path / "out", {"n_layers": 6})
    shape, architecture, _ = load.read_shape(tmp_path / "out")
    device_mesh = mesh.make_mesh(schema.Mesh(fsdp=4))
    shardings = load.mesh_shardings(shape, device_mesh, mesh.DEFAULT_RULES)
    matrices, n_bytes = [], []

    def read(self) -> np.ndarray:
        n_bytes.append(sum(matrix.nbytes for ref in matrices if (matrix := ref()) is not None))
        return original_read(self)

    def write(self, path, index, matrix) -> None:
        matrices.append(weakref.ref(matrix))
        original_write(self, path, index, matrix)

    original_read, original_write = load._StoredTensor.read, weight_blocks.WeightBlocks.write
    monkeypatch.setattr(load._StoredTensor, "read", read)
    monkeypatch.setattr(weight_blocks.WeightBlocks, "write", write)
    weights = load.read_weights(tmp_path / "out", shape, architecture, shardings)
    largest_tensor = 4 * 256 * 16  # the embedding
    assert sum(weight.nbytes for weight in weights.values()) > 4 * largest_tensor
    assert len(n_bytes) > 50 and max(n_bytes) <= largest_tensor
    assert all(isinstance(weight, jax.Array) for weight in weights.values())
