import pytest

from lm.sweeps.planning import hardware


def test_a_name_says_how_many_devices_of_what():
    for name, n, shape in (
        ("cpu:8", 8, (8,)),
        ("tpu:v5e:4x4", 16, (4, 4)),
        ("tpu:v5p:8x16x16", 2048, (8, 16, 16)),
        ("gpu:h100:8", 8, (8,)),
        ("gpu:h200:8x16", 128, (8, 16)),
    ):
        target = hardware.parse_target(name)
        assert target.n_devices == n and target.shape == shape
        assert target.peak("bfloat16") == n * target.spec.bfloat16


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tpu:v5x:4x4", "v5"),
        ("gpu:h300:8", "h200"),
        ("tpu:v5e", "tpu:v5e:4x4"),
        ("cpu:eight", "cpu:8"),
        ("tpu:v5e:4", "tpu:v5p:8x16x16"),
        ("gpu:h100:8x0", "gpu:h200:8x16"),
        ("cpu:2x2", "cpu:8"),
        ("abacus", "here"),
    ],
)
def test_what_is_no_machine_is_refused_with_what_is_nearest(name, near):
    with pytest.raises(ValueError, match=near):
        hardware.parse_target(name)


def test_every_chip_belongs_to_a_platform_and_is_of_a_plausible_make():
    named = [chip for chips, _ in hardware.KINDS.values() for chip in chips]
    assert sorted(named) == sorted(hardware.ACCELERATORS)
    for chip in hardware.ACCELERATORS.values():
        assert chip.bfloat16 >= chip.float32 > chip.memory_speed > chip.link > chip.far >= 0
        assert chip.memory > hardware.GIB and chip.source


def test_devices_of_one_node_talk_faster_than_those_of_two():
    target = hardware.parse_target("gpu:h100:8x2")
    inside = [hardware.place(target, i) for i in range(8)]
    across = [hardware.place(target, i) for i in (0, 8)]
    everywhere = [hardware.place(target, i) for i in range(16)]
    assert hardware.link_bandwidth(target, inside) == target.spec.link
    assert hardware.link_bandwidth(target, across) == target.spec.far
    assert (
        hardware.link_bandwidth(target, everywhere) == 8 * target.spec.far
    )  # all cards of a node send


def test_a_group_of_a_torus_uses_the_links_of_the_sides_that_it_spans():
    target = hardware.parse_target("tpu:v5p:8x16x16")
    link = target.spec.link
    line = [hardware.place(target, i) for i in range(16)]
    plane = [hardware.place(target, i) for i in range(256)]
    assert hardware.link_bandwidth(target, line) == 2 * link  # both ways round a ring
    assert hardware.link_bandwidth(target, plane) == 4 * link
    small = hardware.parse_target("tpu:v5e:4x4")  # its sides are lines: rings only come with 16
    assert hardware.link_bandwidth(small, [hardware.place(small, i) for i in range(4)]) == 50e9
