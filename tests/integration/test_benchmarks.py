import json
import sys

import jax
import pytest

from experiments.benchmarks import interleaved, throughput_scaling, trace_breakdown, train_step
from lm.parallel import mesh
from lm.reports.plots import style
from lm.training import step

PROGRAM = """
import json, sys
print("not an answer"); print(json.dumps({"now": 0.0}), flush=True)
for line in sys.stdin:
    if line == "7\\n": sys.exit("no seventh")
    print(json.dumps({"seconds": [float(line)]}), flush=True)
"""


@pytest.mark.parametrize("size", train_step.SHAPES)
def test_gated_mlp_has_the_size_of_the_baseline_mlp(size):
    """The plain MLP of the baseline is 4 times as wide as the model."""
    model = train_step.benchmark_run(size, []).model
    assert 1 <= 3 * model.d_model * model.d_ff / (8 * model.d_model**2) < 1.04


def test_fields_are_set_by_their_type_and_validated():
    run = train_step.benchmark_run(
        "S", ["model.dtype=bfloat16", "optim.clip_norm=0", "data.attend_across_documents=false"]
    )
    assert (run.model.dtype, run.optim.clip_norm, run.data.attend_across_documents) == (
        "bfloat16",
        0.0,
        False,
    )
    with pytest.raises(ValueError, match="model.unrolll does not exist"):
        train_step.benchmark_run("S", ["model.unrolll=2"])
    with pytest.raises(ValueError, match="model.scan_unroll=0 must be at least 1"):
        train_step.benchmark_run("S", ["model.scan_unroll=0"])


def test_program_answers_and_reports_why_it_ended():
    with interleaved.Program("baseline", [sys.executable, "-c", PROGRAM]) as program:
        assert program.time_steps(3) == {"seconds": [3.0]}
        with pytest.raises(RuntimeError, match="baseline ended: no seventh"):
            program.time_steps(7)


def test_median_interval_contains_the_median_and_narrows():
    small, large = interleaved.median(range(8)), interleaved.median(list(range(8)) * 50)
    assert small[1] < small[0] < small[2] and small[0] == large[0] == 3.5
    assert large[2] - large[1] < small[2] - small[1]


def test_trace_breakdown_recognizes_every_part_of_a_step(tiny):
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    with jax.set_mesh(program.mesh):
        lowered = program.step.lower(program.abstract, program.batch, program.inputs)
    # Before XLA: a compiled program may come from a cache that was filled under other names.
    text = lowered.as_text(dialect="hlo", debug_info=True)
    parts = set(trace_breakdown.operation_parts(text).values())
    assert parts >= {"matmul", "attention", "optimizer", "softmax and loss"}, json.dumps([*parts])


def test_figure_has_a_panel_per_axis_and_stores_its_lines(tmp_path, monkeypatch):
    lines = [
        throughput_scaling.BASE
        | {"devices": 2, "axis": axis, axis: value, "tokens_per_second": [9e4 / value] * 3}
        | {"at_best": 2e5 / value, "peak_gflops_per_second": 400}
        | {"grown_mib": 95.0, "planned_mib": 100.0}
        for axis, values in throughput_scaling.AXIS_VALUES.items()
        for value in values
    ]
    monkeypatch.setattr(throughput_scaling, "_OUT", type("", (), {"value": tmp_path / "cost"}))
    png, svg = throughput_scaling.draw(lines)
    text = svg.read_text()
    assert style.read_figure_metadata(png) == {"lines": lines}
    for label in (*throughput_scaling.AXIS_LABELS.values(), "0.95 to 0.95 of the planned memory"):
        assert f"<!-- {label}" in text or label in text, label
