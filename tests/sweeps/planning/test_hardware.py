"""Names of targets, data of accelerators and the bandwidth of device groups."""

import re

import pytest

from lm.sweeps.planning import hardware


def test_target_name_gives_number_and_shape_of_devices():
    for name, n, n_slices, shape in (
        ("cpu:8", 8, 1, (8,)),
        ("tpu:v5e:4x4", 16, 1, (4, 4)),
        ("tpu:v5e:2x4x4", 32, 2, (4, 4)),
        ("tpu:v5p:8x16x16", 2048, 1, (8, 16, 16)),
        ("tpu:v5p:2x8x16x16", 4096, 2, (8, 16, 16)),
        ("gpu:h100:8", 8, 1, (8,)),
        ("gpu:h100", 1, 1, (1,)),
        ("GPU:H200:2", 2, 1, (2,)),
        ("cpu", 1, 1, (1,)),
        ("gpu:h100:2x8", 16, 2, (8,)),
    ):
        target = hardware.parse_target(name)
        assert (target.n_devices, target.n_slices, target.shape) == (n, n_slices, shape)
        assert target.peak("bfloat16") == n * target.spec.bfloat16


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("tpu:v5x:4x4", "v5"),
        ("gpu:h300:8", "h200"),
        ("tpu:v5e", "tpu:v5e:4x4"),
        ("cpu:eight", "cpu:8"),
        ("tpu:v5e:4", "tpu:v5e:4x4"),
        ("gpu:h100:8x0", "gpu:h100:8"),
        ("cpu:2x2", "cpu:8"),
        ("abacus", "cpu:DEVICES, tpu:v4|v5e"),
        ("gpu", "gpu:a100|h100|h200|b200:[NODESx]DEVICES"),
        ("gpu:8", "gpu:a100|h100|h200|b200:[NODESx]DEVICES"),
        ("gpu:h100:8:2", "gpu:a100|h100|h200|b200:[NODESx]DEVICES"),
        ("gpu:h200:8x16", "[NODES x] devices per node, at most 8, as in gpu:h200:16x8"),
        ("gpu:h100:2x2x2", "gpu:h100:8"),
        ("tpu:v5e:2x2x4x4", "[SLICES x] the 2 sides of a slice, as in tpu:v5e:4x4"),
        ("tpu:v6e:0x4x4", "tpu:v5e:4x4"),
        ("gpu:h100:", "gpu:h100:8"),
        ("gpu:h100:²", "gpu:h100:8"),
        ("tpu:v4:8", "tpu:v5p:2x8x16x16"),
        ("", "cpu:DEVICES"),
    ],
)
def test_unknown_target_is_refused_with_a_suggestion(name, suggestion):
    with pytest.raises(ValueError, match=re.escape(suggestion)):
        hardware.parse_target(name)


def test_each_chip_has_a_platform_and_plausible_data():
    chips = [chip for platform_chips in hardware.PLATFORMS.values() for chip in platform_chips]
    assert sorted(chips) == sorted(hardware.ACCELERATORS)
    for chip in hardware.ACCELERATORS.values():
        assert chip.bfloat16 >= chip.float32 > chip.memory_speed
        assert chip.memory_speed > chip.link_speed > chip.slow_speed > 0
        assert chip.memory_bytes > hardware.GIB and chip.source


def test_gpus_of_one_node_have_more_bandwidth_than_of_two():
    """All cards of a node send at the same time: a group of two full nodes has eight links."""
    target = hardware.parse_target("gpu:h100:2x8")
    one_node = [hardware.device_coordinates(target, i) for i in range(8)]
    two_nodes = [hardware.device_coordinates(target, i) for i in (0, 8)]
    all_devices = [hardware.device_coordinates(target, i) for i in range(16)]
    assert hardware.link_bandwidth(target, one_node) == target.spec.link_speed
    assert hardware.link_bandwidth(target, two_nodes) == target.spec.slow_speed
    assert hardware.link_bandwidth(target, all_devices) == 8 * target.spec.slow_speed


def test_group_over_slices_has_the_data_center_network():
    target = hardware.parse_target("tpu:v5p:2x4x4x4")
    same_position = [hardware.device_coordinates(target, i) for i in (5, 64 + 5)]
    one_slice = [hardware.device_coordinates(target, i) for i in range(64, 128)]
    assert hardware.link_bandwidth(target, same_position) == target.spec.slow_speed == 6.25e9
    assert hardware.link_bandwidth(target, one_slice) == 6 * target.spec.link_speed


def test_torus_group_uses_the_links_of_the_sides_it_spans():
    """A ring has two links per device. The sides of a 4x4 slice are lines, with one link."""
    target = hardware.parse_target("tpu:v5p:8x16x16")
    link_speed = target.spec.link_speed
    side = [hardware.device_coordinates(target, i) for i in range(16)]
    plane = [hardware.device_coordinates(target, i) for i in range(256)]
    assert hardware.link_bandwidth(target, side) == 2 * link_speed
    assert hardware.link_bandwidth(target, plane) == 4 * link_speed
    small = hardware.parse_target("tpu:v5e:4x4")
    small_side = [hardware.device_coordinates(small, i) for i in range(4)]
    assert hardware.link_bandwidth(small, small_side) == 50e9
