import json
import sys

import jax
import pytest

from experiments.benchmarks import interleaved, throughput_scaling, trace_breakdown, train_step
from lm.parallel import mesh
from lm.reports.plots import style
from lm.training import step

ANSWERS = """
import json, sys
print("not an answer"); print(json.dumps({"now": 0.0}), flush=True)
for line in sys.stdin:
    if line == "7\\n": sys.exit("no seventh")
    print(json.dumps({"seconds": [float(line)]}), flush=True)
"""


@pytest.mark.parametrize("size", train_step.SHAPES)
def test_our_mlp_has_the_products_of_a_plain_one_four_times_as_wide(size):
    model = train_step.reference(size, []).model
    assert 1 <= 3 * model.d_model * model.d_ff / (8 * model.d_model**2) < 1.04


def test_knobs_are_set_by_their_type_and_checked():
    run = train_step.reference(
        "S", ["model.dtype=bfloat16", "optim.clip_norm=0", "data.attend_across_documents=false"]
    )
    assert (run.model.dtype, run.optim.clip_norm, run.data.attend_across_documents) == (
        "bfloat16",
        0.0,
        False,
    )
    with pytest.raises(ValueError, match="model.unrolll does not exist"):
        train_step.reference("S", ["model.unrolll=2"])
    with pytest.raises(ValueError, match="model.scan_unroll=0 must be at least 1"):
        train_step.reference("S", ["model.scan_unroll=0"])


def test_a_side_answers_and_says_why_it_ended():
    with interleaved.Side("other", [sys.executable, "-c", ANSWERS]) as side:
        assert side.ask(3) == {"seconds": [3.0]}
        with pytest.raises(RuntimeError, match="other ended: no seventh"):
            side.ask(7)


def test_the_interval_of_a_median_holds_it_and_narrows():
    few, many = interleaved.median(range(8)), interleaved.median(list(range(8)) * 50)
    assert few[1] < few[0] < few[2] and few[0] == many[0] == 3.5
    assert many[2] - many[1] < few[2] - few[1]


def test_every_part_of_a_step_is_found_in_its_program(tiny):
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.abstract, program.batch, program.inputs)
    # Before XLA: a compiled program may come from a cache that was filled under other names.
    text = lowered.as_text(dialect="hlo", debug_info=True)
    found = set(trace_breakdown.parts_of(text).values())
    assert found >= {"matmul", "attention", "optimizer", "softmax and loss"}, json.dumps([*found])


def test_the_figure_of_costs_has_a_panel_a_knob_and_carries_its_lines(tmp_path, monkeypatch):
    lines = [
        throughput_scaling.BASE
        | {"devices": 2, "axis": axis, axis: size, "tokens_per_second": [9e4 / size] * 3}
        | {"at_best": 2e5 / size, "peak_gflops_per_second": 400}
        | {"grown_mib": 95.0, "planned_mib": 100.0}
        for axis, sizes in throughput_scaling.POINTS.items()
        for size in sizes
    ]
    monkeypatch.setattr(throughput_scaling, "_OUT", type("", (), {"value": tmp_path / "cost"}))
    png, svg = throughput_scaling.draw(lines)
    text = svg.read_text()
    assert style.read_figure_metadata(png) == {"lines": lines}
    for words in (*throughput_scaling.WORDS.values(), "0.95 to 0.95 of the plan"):
        assert f"<!-- {words}" in text or words in text, words
