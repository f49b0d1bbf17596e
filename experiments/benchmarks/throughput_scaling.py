"""Throughput and memory against depth, width, row length, batch, vocabulary and devices.

    uv run python -m experiments.benchmarks.throughput_scaling
    uv run python -m experiments.benchmarks.throughput_scaling --draw=LINES

The first command measures all points, prints a JSON line per point and draws the figure. The second
only draws the figure from a file of such lines.

Each point is measured in its own process, and compared with a roofline. The roofline assumes the
FLOP/s of a large matrix product and the memory bandwidth of a large copy, both timed in the same
process. The growth of the process during training is compared with the memory that XLA planned.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from experiments.benchmarks import interleaved
from experiments.common import cli
from lm.config import schema

BASE = {"d_model": 128, "n_layers": 4, "seq_len": 256, "batch_size": 16, "vocab_size": 256}
AXIS_LABELS = {
    "n_layers": "layers",
    "d_model": "width",
    "seq_len": "tokens per row (4096 per step)",
    "batch_size": "rows per step",
    "vocab_size": "vocabulary",
    "devices": "devices",
}
AXIS_VALUES = {
    "n_layers": (1, 2, 4, 8, 16),
    "d_model": (64, 128, 256, 512),
    "seq_len": (64, 256, 1024, 2048),
    "batch_size": (2, 8, 16, 64),
    "vocab_size": (256, 2048, 16384),
    "devices": (1, 2, 4, 8),
}
_POINT = flags.DEFINE_string(
    "point", "", "JSON of a point to measure in this process (internal: set for child processes)"
)
_SECONDS = flags.DEFINE_float("point_seconds", 1.5, "approximate seconds to measure each point")
_DRAW = flags.DEFINE_string("draw", "", "file of JSON lines to draw, without measuring")
_OUT = flags.DEFINE_string(
    "figure", "notebooks/figures/cost", "path of the figure without .png and .svg"
)


def main() -> int:
    """Measure all points, or read them from --draw, and draw the figure."""
    if _POINT.value:
        print(json.dumps(measure_point(json.loads(_POINT.value))), flush=True)
        return 0
    if _DRAW.value:
        text = pathlib.Path(_DRAW.value).read_text()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    else:
        lines = [
            _measure_in_process(axis, value)
            for axis, values in AXIS_VALUES.items()
            for value in values
        ]
    for path in draw(lines):
        print(path)
    return 0


def _measure_in_process(axis: str, value: int) -> dict:
    """Measure BASE with one changed value in a new process. Return and print its line.

    Raises ValueError if the process fails.
    """
    n_cores = len(os.sched_getaffinity(0))
    point = BASE | {"devices": 1 << (n_cores.bit_length() - 1), "axis": axis, axis: value}
    if axis == "seq_len":
        point["batch_size"] = 4096 // value
    environment = {"JAX_NUM_CPU_DEVICES": str(point["devices"]), "GLIBC_TUNABLES": cli.MALLOC}
    command = [
        *(sys.executable, "-m", "experiments.benchmarks.throughput_scaling"),
        *(f"--point={json.dumps(point)}", f"--point_seconds={_SECONDS.value}"),
    ]
    result = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        raise ValueError(
            f"{axis}={value} could not be measured: see the error of its process above"
        )
    line = result.stdout.splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


def measure_point(point: dict) -> dict:
    """Return the point with its throughput and memory, measured and predicted.

    tokens_per_second: median, low and high of the 95% interval. at_best: tokens per second of the
    roofline. grown_mib: growth of the process. planned_mib: memory planned by XLA.
    """
    from lm.parallel import mesh

    run = _run_of_point(point)
    training = _compile_and_warm_up(run, point["devices"])
    start = time.perf_counter()
    training.call()
    call_seconds = time.perf_counter() - start
    n_steps = training.steps_per_call * max(5, round(_SECONDS.value / call_seconds))
    timing = interleaved.timed(training.call, n_steps, training.steps_per_call)
    step_seconds, low, high = interleaved.median(timing["seconds"])
    peak = mesh.peak_flops_per_second(training.device_mesh, "float32")
    n_tokens = run.data.batch_size * run.data.seq_len
    return point | {
        "tokens_per_second": [round(n_tokens / s) for s in (step_seconds, high, low)],
        "at_best": round(n_tokens / _roofline_seconds(run, training.device_mesh, peak)),
        "peak_gflops_per_second": round(peak / 1e9),
        "grown_mib": round(training.grown_bytes / 2**20, 1),
        "planned_mib": round(training.planned_bytes / 2**20, 1),
    }


def _run_of_point(point: dict) -> schema.Run:
    """Return the run of a point."""
    d_model = point["d_model"]
    run = schema.Run(name="cost")
    run.model = schema.Model(
        d_model=d_model, n_layers=point["n_layers"], n_heads=4, n_kv_heads=4, d_head=d_model // 4,
        d_ff=-(-8 * d_model // 3 // 16) * 16, vocab_size=point["vocab_size"],
    )  # fmt: skip
    run.data.seq_len, run.data.batch_size = point["seq_len"], point["batch_size"]
    run.mesh.data = min(point["devices"], point["batch_size"])
    return run


class _Training(NamedTuple):
    """A compiled train step after its first calls, and its memory on all devices."""

    device_mesh: Any
    call: Callable[[], None]  # trains steps_per_call steps
    steps_per_call: int
    grown_bytes: int  # growth of the peak memory of the process since before initialization
    planned_bytes: int  # memory that XLA planned


def _compile_and_warm_up(run: schema.Run, n_devices: int) -> _Training:
    """Compile the train step of a run, initialize its state and train two calls."""
    import jax
    import numpy as np

    from lm.parallel import mesh
    from lm.training import loop, step

    mesh.initialize_devices()
    device_mesh = mesh.make_mesh(run.mesh, jax.devices()[: run.mesh.data])
    program = step.build_train_functions(run, device_mesh)
    size = loop.steps_per_call(run, device_mesh)
    tokens = np.zeros((run.data.batch_size, run.data.seq_len + 1), np.int32)
    with jax.set_mesh(device_mesh):
        compiled = loop.lower_steps(program, size).compile()
        init = program.init.lower(0).compile()
        train_steps = loop.make_steps_call(program, compiled, size)
        _peak_bytes()
        batch, bytes_before = mesh.put_batch(device_mesh, {"tokens": tokens}), _peak_bytes()
        state = init(0)

        def call() -> None:
            nonlocal state
            state, metrics = train_steps(state, [batch] * size)
            jax.block_until_ready(metrics)

        for _ in range(2):
            call()
        grown_bytes = _peak_bytes() - bytes_before
    plan = compiled.memory_analysis()
    assert plan is not None  # XLA plans memory on CPU
    planned_bytes = plan.argument_size_in_bytes + plan.temp_size_in_bytes
    planned_bytes += plan.output_size_in_bytes - plan.alias_size_in_bytes
    return _Training(device_mesh, call, size, grown_bytes, planned_bytes * device_mesh.size)


def _roofline_seconds(run: schema.Run, device_mesh, peak: float) -> float:
    """Return the lowest seconds of a step at `peak` FLOP/s and the measured memory bandwidth."""
    from lm.model import memory_estimate
    from lm.sweeps.planning import hardware, roofline

    target = hardware.parse_target(f"cpu:{device_mesh.size}")
    spec = dataclasses.replace(
        target.spec,
        float32=peak / device_mesh.size,
        memory_speed=_copy_bandwidth(device_mesh) / device_mesh.size,
    )
    target = dataclasses.replace(target, spec=spec)
    estimate = roofline.estimate_step(run, target, memory_estimate.list_weights(run.model))
    return max(estimate.compute_seconds, estimate.memory_seconds)


def _peak_bytes() -> int:
    """Return the peak memory of this process since the last call, and reset the peak."""
    peak_kib = pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # 5 resets VmHWM: see proc(5)
    return int(peak_kib) * 1024


def _copy_bandwidth(device_mesh) -> float:
    """Return bytes per second, read and written, of all devices for a large array."""
    import jax

    from lm.parallel import mesh

    sharding = mesh.named_sharding(device_mesh, "batch")
    x = jax.jit(lambda: jax.numpy.zeros(2**25), out_shardings=sharding)()
    negative = jax.jit(lambda x: -x)
    seconds = min(interleaved.timed(lambda: negative(x).block_until_ready(), 5)["seconds"])
    return 2 * x.nbytes / seconds


def draw(lines: list[dict]) -> list[pathlib.Path]:
    """Draw tokens per second against each axis, with intervals and roofline. Return the files."""
    from lm.reports.plots import style

    figure, panels = style.new_panels(
        "Tokens per second on this machine", len(AXIS_VALUES), columns=3
    )
    color, roofline_color = style.categorical_colors(n=2)[1], style.LIGHT["muted"]
    for axes, (axis, label) in zip(panels, AXIS_LABELS.items(), strict=True):
        points = sorted(
            (line for line in lines if line["axis"] == axis), key=lambda line: line[axis]
        )
        x = [line[axis] for line in points]
        y, low, high = zip(*(line["tokens_per_second"] for line in points), strict=True)
        roofline = [line["at_best"] for line in points]
        axes.plot(x, roofline, "--", color=roofline_color, label="roofline")
        axes.vlines(x, low, high, color=color, linewidth=3, alpha=0.5)
        axes.plot(x, y, "o-", color=color, markersize=4, label="measured")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        style.log_y(axes, style.format_si)
        axes.set_xlabel(label, size=8.5)
    for axes in panels[::3]:
        axes.set_ylabel("tokens/s", size=8.5)
    rates = [line["peak_gflops_per_second"] for line in lines]
    shape = ", ".join(f"{key}={value}" for key, value in BASE.items())
    caption = f"Other values: {shape}. Large products ran at {min(rates)} to {max(rates)} GFLOP/s."
    growth = [line["grown_mib"] / line["planned_mib"] for line in lines if "grown_mib" in line]
    memory = f"Processes grew by {min(growth):.2f} to {max(growth):.2f} of the planned memory."
    style.finish_figure(figure, panels[0], [caption, memory, f"n = {len(lines)} processes."])
    return style.save_figure(figure, _OUT.value, {"lines": lines})


if __name__ == "__main__":
    cli.run_main(main)
