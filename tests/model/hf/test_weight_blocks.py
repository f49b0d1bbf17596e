"""Tests of weights that are assembled on a mesh, one matrix at a time."""

import gc
import pathlib
import tracemalloc

import jax
import numpy as np
import pytest
from fixtures.hf import random_models

from lm.config import schema
from lm.model.hf import load, weight_blocks
from lm.parallel import mesh

STORED_MODELS = pathlib.Path(__file__).parents[2] / "fixtures" / "hf"
NUMPY_DOMAIN = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)


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
    """The largest sum of NumPy arrays is that of a stored tensor and its copy in float32."""
    fields = {"n_layers": 12, "d_model": 32, "d_ff": 256, "vocab_size": 256}
    random_models.export_random_model(tmp_path / "out", fields)
    shape, architecture, _ = load.read_shape(tmp_path / "out")
    device_mesh = mesh.make_mesh(schema.Mesh(fsdp=4))
    shardings = load.mesh_shardings(shape, device_mesh, mesh.DEFAULT_RULES)
    host_bytes = []

    def write(self, *arguments):
        statistics = (
            tracemalloc.take_snapshot().filter_traces([NUMPY_DOMAIN]).statistics("filename")
        )
        host_bytes.append(sum(statistic.size for statistic in statistics))
        original(self, *arguments)

    original = weight_blocks.WeightBlocks.write
    monkeypatch.setattr(weight_blocks.WeightBlocks, "write", write)
    gc.collect()
    tracemalloc.start()
    try:
        weights = load.read_weights(tmp_path / "out", shape, architecture, shardings)
    finally:
        tracemalloc.stop()
    largest_tensor = 4 * 32 * 256
    n_bytes = sum(weight.nbytes for weight in weights.values())
    assert n_bytes > 30 * largest_tensor
    assert max(host_bytes) <= 3 * largest_tensor
    assert all(isinstance(weight, jax.Array) for weight in weights.values())
