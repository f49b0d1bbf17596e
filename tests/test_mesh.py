import jax
import numpy as np
import pytest

from lm import config, mesh, model


def test_minus_one_takes_the_devices_that_are_left():
    shape = {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 1}
    assert mesh.make(config.Mesh(fsdp=2)).shape == shape


def test_a_mesh_that_does_not_multiply_is_refused():
    with pytest.raises(ValueError, match="mesh.data=3 x mesh.fsdp=1 .* number of devices, 4"):
        mesh.make(config.Mesh(data=3))


def test_a_batch_that_does_not_divide_is_refused():
    run = config.Run()
    run.data.batch_size = 6
    with pytest.raises(ValueError, match="data.batch_size=6 must be a multiple of the 4 devices"):
        mesh.check(run, mesh.make(run.mesh))


def test_every_axis_name_of_the_model_has_a_rule():
    names = jax.tree.leaves(model.axes(config.Model()))
    assert set(names) <= set(mesh.RULES)
    split = {axis for rule in mesh.RULES.values() if rule for axis in np.atleast_1d(rule)}
    assert split == set(mesh.AXES)


def test_placed_rows_are_the_rows_and_are_split():
    device_mesh = mesh.make(config.Mesh(data=2, fsdp=2))
    rows = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    placed = mesh.place(device_mesh, {"rows": rows[mesh.rows_here(8)]})["rows"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 5)}


def test_the_peak_is_a_rate_of_all_devices():
    one = mesh.make(config.Mesh(), jax.devices()[:1])
    assert 1e8 < mesh.peak_flops_per_second(one, "float32", size=256) < 1e16
    assert mesh.platform(one) == "cpu" and mesh.describe(one).startswith("1 cpu device")
