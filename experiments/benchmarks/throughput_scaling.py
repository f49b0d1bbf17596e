"""How tokens/s and memory follow depth, width, rows, batch, vocabulary and devices: one figure.

uv run python -m experiments.benchmarks.throughput_scaling                # a line of JSON a point,
the figure
uv run python -m experiments.benchmarks.throughput_scaling --draw=LINES   # the figure of lines made
before

Each point is a process of its own. Beside what was measured stands the roofline: products at the
rate of a large one, which is timed in the same process, and arrays at the rate of a large copy.
Memory is how much the process grew while it trained, beside what the plan says.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from absl import flags

from experiments.benchmarks import interleaved
from experiments.common import cli

BASE = {"d_model": 128, "n_layers": 4, "seq_len": 256, "batch_size": 16, "vocab_size": 256}
WORDS = {
    "n_layers": "layers",
    "d_model": "width",
    "seq_len": "tokens a row (4096 a step)",
    "batch_size": "rows a step",
    "vocab_size": "vocabulary",
    "devices": "devices",
}
POINTS = {
    "n_layers": (1, 2, 4, 8, 16),
    "d_model": (64, 128, 256, 512),
    "seq_len": (64, 256, 1024, 2048),
    "batch_size": (2, 8, 16, 64),
    "vocab_size": (256, 2048, 16384),
    "devices": (1, 2, 4, 8),
}
_POINT = flags.DEFINE_string("point", "", "JSON of a point, which this process measures")
_SECONDS = flags.DEFINE_float("point_seconds", 1.5, "that a point is measured, about")
_DRAW = flags.DEFINE_string("draw", "", "a file of lines made before: only draws them")
_OUT = flags.DEFINE_string("figure", "notebooks/figures/cost", "the figure, as .png and .svg")


def main() -> int:
    if _POINT.value:
        print(json.dumps(measured(json.loads(_POINT.value))), flush=True)
        return 0
    if _DRAW.value:
        text = pathlib.Path(_DRAW.value).read_text()
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    else:
        found = [_asked(axis, size) for axis, sizes in POINTS.items() for size in sizes]
    print(*draw(found))
    return 0


def _asked(axis: str, size: int) -> dict:
    """A point's line, from a process that has its devices."""
    cores = len(os.sched_getaffinity(0))
    point = BASE | {"devices": 1 << (cores.bit_length() - 1), "axis": axis, axis: size}
    if axis == "seq_len":
        point["batch_size"] = 4096 // size
    environment = {"JAX_NUM_CPU_DEVICES": str(point["devices"]), "GLIBC_TUNABLES": cli.MALLOC}
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.throughput_scaling",
        f"--point={json.dumps(point)}",
    ]
    command.append(f"--point_seconds={_SECONDS.value}")
    said = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    if said.returncode:
        raise ValueError(f"{axis}={size} could not be measured: its process says why")
    line = said.stdout.splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


def measured(point: dict) -> dict:
    """The point, with tokens/s, those of the roofline, and bytes that were measured and planned."""
    import jax
    import numpy as np

    from lm.config import schema
    from lm.parallel import mesh
    from lm.sweeps.planning import hardware, roofline
    from lm.training import loop, step

    d = point["d_model"]
    run = schema.Run(name="cost")
    run.model = schema.Model(
        d_model=d, n_layers=point["n_layers"], n_heads=4, n_kv_heads=4, d_head=d // 4,
        d_ff=-(-8 * d // 3 // 16) * 16, vocab_size=point["vocab_size"],
    )  # fmt: skip
    run.data.seq_len, run.data.batch_size = point["seq_len"], point["batch_size"]
    run.mesh.data = min(point["devices"], point["batch_size"])
    mesh.initialize_devices()
    device_mesh = mesh.make_mesh(run.mesh, jax.devices()[: run.mesh.data])
    program = step.build_train_functions(run, device_mesh)
    size = loop.steps_per_call(run, device_mesh)
    tokens = np.zeros((run.data.batch_size, run.data.seq_len + 1), np.int32)
    with jax.set_mesh(device_mesh):
        compiled = loop.lower_steps(program, size).compile()
        init = program.init.lower(0).compile()
        step_index = loop.make_steps_call(program, compiled, size)
        _most()
        batch, before = mesh.put_batch(device_mesh, {"tokens": tokens}), _most()
        state = init(0)

        def once() -> None:
            nonlocal state
            state, metrics = step_index(state, [batch] * size)
            jax.block_until_ready(metrics)

        for _ in range(2):
            once()
        grown = _most() - before
    began = time.perf_counter()
    once()
    n = size * max(5, round(_SECONDS.value / (time.perf_counter() - began)))
    taken, low, high = interleaved.median(interleaved.timed(once, n, size)["seconds"])
    peak = mesh.peak_flops_per_second(device_mesh, "float32")
    target = hardware.parse_target(f"cpu:{device_mesh.size}")
    one = dataclasses.replace(
        target.spec,
        float32=peak / device_mesh.size,
        memory_speed=_copy_speed(jax, device_mesh) / device_mesh.size,
    )
    target = dataclasses.replace(target, spec=one)
    best = roofline.estimate_step(run, target, roofline.list_weights(run.model))
    asked, of_all = compiled.memory_analysis(), tokens[:, 1:].size
    assert asked is not None  # on CPU XLA says what it will hold
    planned = asked.argument_size_in_bytes + asked.temp_size_in_bytes
    planned += asked.output_size_in_bytes - asked.alias_size_in_bytes
    return point | {
        "tokens_per_second": [round(of_all / s) for s in (taken, high, low)],
        "at_best": round(of_all / max(best.compute_seconds, best.memory_seconds)),
        "peak_gflops_per_second": round(peak / 1e9),
        "grown_mib": round(grown / 2**20, 1),
        "planned_mib": round(planned * device_mesh.size / 2**20, 1),
    }


def _most() -> int:
    """Bytes of memory that this process held at most since it last asked."""
    held = pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # from now on
    return int(held) * 1024


def _copy_speed(jax, device_mesh) -> float:
    """Bytes/s of all devices together that a large array is read and written with."""
    from lm.parallel import mesh

    split = mesh.named_sharding(device_mesh, "batch")
    x = jax.jit(lambda: jax.numpy.zeros(2**25), out_shardings=split)()
    negative = jax.jit(lambda x: -x)
    seconds = min(interleaved.timed(lambda: negative(x).block_until_ready(), 5)["seconds"])
    return 2 * x.nbytes / seconds


def draw(lines: list[dict]) -> list[pathlib.Path]:
    """A panel a knob: tokens/s with their interval, and the roofline; the two files."""
    from lm.reports.plots import style

    figure, panels = style.new_panels("Tokens a second on this machine", len(POINTS), columns=3)
    mark, best = style.categorical_colors(n=2)[1], style.LIGHT["muted"]
    for axes, (axis, word) in zip(panels, WORDS.items(), strict=True):
        mine = sorted((line for line in lines if line["axis"] == axis), key=lambda one: one[axis])
        x = [line[axis] for line in mine]
        y, low, high = zip(*(line["tokens_per_second"] for line in mine), strict=True)
        axes.plot(x, [line["at_best"] for line in mine], "--", color=best, label="roofline")
        axes.vlines(x, low, high, color=mark, linewidth=3, alpha=0.5)
        axes.plot(x, y, "o-", color=mark, markersize=4, label="measured")
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        style.log_y(axes, style.format_si)
        axes.set_xlabel(word, size=8.5)
    for axes in panels[::3]:
        axes.set_ylabel("tokens/s", size=8.5)
    rates = [line["peak_gflops_per_second"] for line in lines]
    shape = ", ".join(f"{key}={value}" for key, value in BASE.items())
    caption = f"Else {shape}. Large products ran at {min(rates)} to {max(rates)} GFLOP/s meanwhile."
    grown = [one["grown_mib"] / one["planned_mib"] for one in lines if "grown_mib" in one]
    memory = f"Processes grew by {min(grown):.2f} to {max(grown):.2f} of the plan's bytes."
    style.finish_figure(figure, panels[0], [caption, memory, f"n = {len(lines)} processes."])
    return style.save_figure(figure, _OUT.value, {"lines": lines})


if __name__ == "__main__":
    cli.run_main(main)
