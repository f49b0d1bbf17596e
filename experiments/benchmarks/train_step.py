"""Time the train step, alone or interleaved with a baseline: one JSON line per program.

    uv run python -m experiments.benchmarks.train_step
    uv run python -m experiments.benchmarks.train_step --against=torch --torch=path/to/python
    uv run python -m experiments.benchmarks.train_step --size=M --set=model.dtype=bfloat16
    uv run python -m experiments.benchmarks.train_step --set=model.remat=full --against=default
    uv run python -m experiments.benchmarks.train_step --size=M --profile=runs/trace

Models have a byte vocabulary, 256 positions and AdamW. The gated MLP of this repository has
d_ff = 8/3 d_model, rounded up to a multiple of 16. It has as many multiplications as the plain MLP
of the baseline, which is 4 times as wide.

MFU is relative to the peak of the device, see lm/parallel/peak_flops.py. On CPU that is the rate of
a large matrix product, measured in the same process in each round. Model FLOPs count attention over
all positions. On a shared machine, compare the best steps: other processes slowed them least. With
--profile, the JSON line has the share of the time of each part of the step.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from absl import flags

from experiments.benchmarks import interleaved
from experiments.common import cli
from lm.config import field_names, flops, schema, validation

SHAPES = {
    #    d_model n_layers n_heads batch
    "S": (64, 4, 4, 16),
    "M": (256, 4, 4, 16),
    "L": (512, 8, 8, 8),
}
_SIZES = flags.DEFINE_multi_string("size", list(SHAPES), "model size: S, M or L")
_AGAINST = flags.DEFINE_enum(
    "against",
    None,
    ["torch", "default"],
    "baseline to measure as well: PyTorch, or this repository without --set",
)
_TORCH = flags.DEFINE_string("torch", sys.executable, "Python executable that has torch")
_KINDS = flags.DEFINE_multi_string(
    "kind", ["eager", "compiled"], "mode of the PyTorch baseline: eager or compiled"
)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "number of times to measure each program")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "approximate seconds per program and round")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the run, such as model.dtype=bfloat16")
_PROFILE = flags.DEFINE_string("profile", "", "folder for a trace of the step; no timing rounds")
_WORKER = flags.DEFINE_bool(
    "worker", False, "answer timing requests on stdin (internal: set for child processes)"
)


def benchmark_run(size: str, assignments: list[str]) -> schema.Run:
    """Return the run of a size of SHAPES, changed by FIELD=VALUE assignments.

    Raises ValueError for an unknown field or an invalid value.
    """
    d_model, n_layers, n_heads, batch_size = SHAPES[size]
    run = schema.Run(name=f"benchmark-{size}")
    run.model = schema.Model(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads,
        d_head=d_model // n_heads, d_ff=-(-8 * d_model // 3 // 16) * 16,
    )  # fmt: skip
    run.data.seq_len, run.data.batch_size = 256, batch_size
    for assignment in assignments:
        _set_field(run, *assignment.split("=", 1))
    return validation.validate_run(run)


def main() -> int:
    """Print one JSON line per program, or the profile, of each size."""
    if _WORKER.value:
        return serve_timings(benchmark_run(_SIZES.value[0], _SET.value))
    if _PROFILE.value:
        cli.tune_memory()
    for size in _SIZES.value:
        if _PROFILE.value:
            lines = [{"size": size} | profile_step(benchmark_run(size, _SET.value))]
        else:
            lines = measure_size(size)
        for line in lines:
            print(json.dumps(line), flush=True)
    return 0


def measure_size(size: str) -> list[dict]:
    """Return the results of this repository, then of each baseline.

    The lines of baselines have the speedup of this repository in tokens per second, as the median
    ratio of equal rounds and its 95% interval.
    """
    run = benchmark_run(size, _SET.value)
    programs = make_programs(size, run, _AGAINST.value)
    answers = interleaved.time_interleaved(programs, _ROUNDS.value, _SECONDS.value)
    peaks = [answer["peak"] for answer in answers[0]]
    lines, round_seconds = [], []
    for program, program_answers in zip(programs, answers, strict=True):
        medians = [sorted(a["seconds"])[len(a["seconds"]) // 2] for a in program_answers]
        round_seconds.append(medians)
        line = {
            "size": size,
            "program": program.name,
            "first_step_seconds": round(program.first_step_seconds, 2),
        }
        lines.append(line | _summary(run, program_answers, medians, peaks))
    for line, medians in zip(lines[1:], round_seconds[1:], strict=True):
        ratios = [b / a for a, b in zip(round_seconds[0], medians, strict=True)]
        line["speedup"] = [round(x, 2) for x in interleaved.median(ratios)]
        line["best_step_speedup"] = round(line["best_step_ms"] / lines[0]["best_step_ms"], 2)
        line["cpu_ratio"] = round(line["cpu_ms"] / lines[0]["cpu_ms"], 2)
    return lines


def make_programs(size: str, run: schema.Run, against: str | None) -> list[interleaved.Program]:
    """Return this repository and its baselines.

    against: "torch" for PyTorch in each mode of --kind, "default" for this repository without
    --set, None for no baseline.
    """
    default = [sys.executable, "-m", "experiments.benchmarks.train_step", "--worker"]
    default.append(f"--size={size}")
    command = [*default, *(f"--set={assignment}" for assignment in _SET.value)]
    environment = {"GLIBC_TUNABLES": cli.MALLOC}
    programs = [interleaved.Program("this repository", command, environment)]
    if against == "default":
        programs.append(interleaved.Program("default", default, environment))
    if against == "torch":
        shape = json.dumps(dataclasses.asdict(run.model) | dataclasses.asdict(run.data))
        script = str(pathlib.Path(__file__).parent / "torch_train.py")
        for kind in _KINDS.value:
            command = [_TORCH.value, script, shape, kind, run.model.dtype]
            programs.append(interleaved.Program(f"torch {kind}", command))
    return programs


def _summary(
    run: schema.Run, answers: list[dict], round_seconds: list[float], peaks: list[float]
) -> dict:
    """Return time per step, rates and memory of one program.

    round_seconds: median seconds per step of each round. peaks: measured FLOP/s of each round.
    """
    n_tokens = run.data.batch_size * run.data.seq_len
    step_flops = n_tokens * flops.flops_per_token(run.model, run.data.seq_len)["full"]
    step_seconds, low, high = interleaved.median(round_seconds)
    shares = [step_flops / s / peak for s, peak in zip(round_seconds, peaks, strict=True)]
    return {
        "step_ms": round(1e3 * step_seconds, 2),
        "step_ms_interval": [round(1e3 * low, 2), round(1e3 * high, 2)],
        "best_step_ms": round(1e3 * min(min(a["seconds"]) for a in answers), 2),
        "tokens_per_second": round(n_tokens / step_seconds),
        "cpu_ms": round(1e3 * interleaved.median([a["cpu"] for a in answers])[0], 2),
        "gflops_per_second": round(step_flops / step_seconds / 1e9, 1),
        "peak_gflops_per_second": round(interleaved.median(peaks)[0] / 1e9, 1),
        "mfu": [round(x, 3) for x in interleaved.median(shares)],
        "peak_memory_mib": round(answers[-1]["memory"] / 2**20),
    }


def serve_timings(run: schema.Run) -> int:
    """Time steps of a run on request, by the protocol of interleaved.py.

    Each answer also has the peak FLOP/s of the devices, measured after the steps.
    """
    training = compile_training(run)
    from lm.parallel import mesh

    training.call(1)
    print(json.dumps({"now": time.time()}), flush=True)
    call = functools.partial(training.call, training.steps_per_call)
    for line in sys.stdin:
        answer = interleaved.timed(call, int(line), training.steps_per_call)
        mesh.peak_flops_per_second.cache_clear()
        answer["peak"] = mesh.peak_flops_per_second(training.device_mesh, "float32")
        print(json.dumps(answer), flush=True)
    return 0


def profile_step(run: schema.Run, n_calls: int = 2) -> dict:
    """Write a trace of n_calls calls to --profile. Return the share of the time of each part."""
    import jax

    from experiments.benchmarks import trace_breakdown

    training = compile_training(run)
    call = functools.partial(training.call, training.steps_per_call)
    call()
    n_steps = n_calls * training.steps_per_call
    with jax.profiler.trace(_PROFILE.value):
        answer = interleaved.timed(call, n_steps, training.steps_per_call)
    seconds = training.steps_per_call * sum(answer["seconds"])
    shares = trace_breakdown.time_shares(
        _PROFILE.value, training.hlo(), seconds, training.device_mesh.size
    )
    step_ms = round(1e3 * seconds / n_steps, 2)
    return {"step_ms": step_ms} | {part: round(share, 3) for part, share in shares.items()}


class CompiledTraining(NamedTuple):
    """The compiled train step of a run with its state."""

    device_mesh: Any
    hlo: Callable[[], str]  # returns the text of the compiled program
    call: Callable[[int], None]  # trains this number of steps, as lm/training/loop.py does
    steps_per_call: int  # largest number of steps of a call


def compile_training(run: schema.Run) -> CompiledTraining:
    """Compile the train step of a run, and initialize its state, as lm/training/loop.py does.

    Batches are random tokens.
    """
    import jax
    import numpy as np

    from lm.parallel import mesh
    from lm.training import loop, step
    from lm.training.programs import compilation

    mesh.initialize_devices()
    device_mesh = mesh.make_mesh(run.mesh)
    mesh.check_mesh_devices(run, device_mesh)
    program = step.build_train_functions(run, device_mesh)
    size = loop.steps_per_call(run, device_mesh)
    shape = (run.data.batch_size, run.data.seq_len + 1)
    tokens = np.random.default_rng(0).integers(run.model.vocab_size, size=shape, dtype=np.int32)
    with jax.set_mesh(device_mesh):
        batch = mesh.put_batch(device_mesh, {"tokens": tokens})
        lowered = {run.data.batch_size: loop.lower_steps(program, size)}
        compiled, _, init = compilation.compile_all(program, lowered, is_fresh=True)
        steps = cast(jax.stages.Compiled, compiled[run.data.batch_size])
        train_steps, state = loop.make_steps_call(program, steps, size), init(0)

    def call(n_steps: int) -> None:
        nonlocal state
        state, metrics = train_steps(state, [batch] * n_steps)
        jax.block_until_ready(metrics)

    return CompiledTraining(device_mesh, lambda: steps.as_text() or "", call, size)


def _set_field(run: schema.Run, name: str, text: str) -> None:
    """Set the field `name`, such as "model.dtype", to the value of `text`."""
    field_types = schema.field_types(schema.Run)
    if name not in field_types:
        raise ValueError(f"--set={name}: {field_names.suggest_names(name, list(field_types))}")
    *groups, field = name.split(".")
    field_type = field_types[name]
    parent = run
    for group in groups:
        parent = getattr(parent, group)
    is_json = field_type in (bool, dict)
    setattr(parent, field, json.loads(text.lower()) if is_json else field_type(text))


if __name__ == "__main__":
    cli.run_main(main)
