"""How fast a train step is here: one JSON line a size, alone or against PyTorch, in turns.

uv run python -m experiments.benchmarks.train_step                                  # S, M, L
uv run python -m experiments.benchmarks.train_step --against=torch --torch=path/to/python
uv run python -m experiments.benchmarks.train_step --size=M --set=model.dtype=bfloat16
uv run python -m experiments.benchmarks.train_step --size=M --profile=runs/trace    # where the time
goes

Sizes: byte vocabulary, 256 positions, AdamW; our gated MLP has the products of a plain one 4 times
as wide (d_ff = 8/3 d_model, rounded up to 16). Shares are of the matrix-product peak, measured in
the same process in each turn; model FLOPs count attention over all positions. On a shared machine
the best step says most: others have taken nothing from it.
"""

import dataclasses
import json
import pathlib
import sys
import time

from absl import flags

from experiments.benchmarks import interleaved
from experiments.common import cli
from lm.config import flops, schema, validation

SHAPES = {
    #    d_model n_layers n_heads batch
    "S": (64, 4, 4, 16),
    "M": (256, 4, 4, 16),
    "L": (512, 8, 8, 8),
}
_SIZES = flags.DEFINE_multi_string("size", list(SHAPES), "S, M or L")
_AGAINST = flags.DEFINE_enum(
    "against", None, ["torch"], "what else is measured, in turns with ours"
)
_TORCH = flags.DEFINE_string("torch", sys.executable, "a Python that has torch")
_KINDS = flags.DEFINE_multi_string("kind", ["eager", "compiled"], "of PyTorch")
_TURNS = flags.DEFINE_integer("turns", 10, "times that each side is measured")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "that a side's turn takes, about")
_SET = flags.DEFINE_multi_string("set", [], "KNOB=VALUE of the run, such as model.dtype=bfloat16")
_PROFILE = flags.DEFINE_string("profile", "", "a folder for a trace of ours, whose parts are told")
_OURS = flags.DEFINE_bool("ours", False, "be our side, in this process")


def reference(size: str, knobs: list[str]) -> schema.Run:
    """The run of a size, with KNOB=VALUE in place of its own."""
    d, layers, heads, batch = SHAPES[size]
    run = schema.Run(name=f"benchmark-{size}")
    run.model = schema.Model(
        d_model=d, n_layers=layers, n_heads=heads, n_kv_heads=heads, d_head=d // heads,
        d_ff=-(-8 * d // 3 // 16) * 16,
    )  # fmt: skip
    run.data.seq_len, run.data.batch_size = 256, batch
    for knob in knobs:
        _put(run, *knob.split("=", 1))
    return validation.validate_run(run)


def main() -> int:
    if _OURS.value:
        return ours(reference(_SIZES.value[0], _SET.value))
    if _PROFILE.value:
        cli.tune_memory()
        for size in _SIZES.value:
            print(json.dumps({"size": size} | profiled(reference(size, _SET.value))), flush=True)
        return 0
    for size in _SIZES.value:
        for line in measured(size):
            print(json.dumps(line), flush=True)
    return 0


def measured(size: str) -> list[dict]:
    """A line a side; of ours the ratio of tokens/s to each of the others, in the same turns."""
    run = reference(size, _SET.value)
    mine = [sys.executable, "-m", "experiments.benchmarks.train_step", "--ours", f"--size={size}"]
    mine += [f"--set={knob}" for knob in _SET.value]
    sides = [interleaved.Side("ours", mine, {"GLIBC_TUNABLES": cli.MALLOC})]
    if _AGAINST.value:
        shape = dataclasses.asdict(run.model) | dataclasses.asdict(run.data)
        loop = str(pathlib.Path(__file__).parent / "torch_train.py")
        for kind in _KINDS.value:
            command = [_TORCH.value, loop, json.dumps(shape), kind, run.model.dtype]
            sides.append(interleaved.Side(f"torch {kind}", command))
    found = interleaved.in_turns(sides, _TURNS.value, _SECONDS.value)
    tokens = run.data.batch_size * run.data.seq_len
    per_token = flops.flops_per_token(run.model, run.data.seq_len)["full"]
    peaks = [answer["peak"] for answer in found[0]]
    lines = []
    for side, answers in zip(sides, found, strict=True):
        medians = [sorted(a["seconds"])[len(a["seconds"]) // 2] for a in answers]
        step_index, low, high = interleaved.median(medians)
        share = [tokens * per_token / s / peak for s, peak in zip(medians, peaks, strict=True)]
        line = {
            "size": size,
            "side": side.name,
            "first_step_seconds": round(side.first, 2),
            "step_ms": round(1e3 * step_index, 2),
            "step_ms_interval": [round(1e3 * low, 2), round(1e3 * high, 2)],
            "best_step_ms": round(1e3 * min(min(a["seconds"]) for a in answers), 2),
            "tokens_per_second": round(tokens / step_index),
            "cpu_ms": round(1e3 * interleaved.median([a["cpu"] for a in answers])[0], 2),
            "gflops_per_second": round(tokens * per_token / step_index / 1e9, 1),
            "peak_gflops_per_second": round(interleaved.median(peaks)[0] / 1e9, 1),
            "share_of_peak": [round(x, 3) for x in interleaved.median(share)],
            "peak_memory_mib": round(answers[-1]["memory"] / 2**20),
        }
        lines.append(line | {"seconds": medians})
    for line in lines[1:]:
        ratio = [b / a for a, b in zip(lines[0]["seconds"], line["seconds"], strict=True)]
        line["ours_is_faster"] = [round(x, 2) for x in interleaved.median(ratio)]
        line["ours_is_faster_at_best"] = round(line["best_step_ms"] / lines[0]["best_step_ms"], 2)
        line["ours_takes_less_cpu"] = round(line["cpu_ms"] / lines[0]["cpu_ms"], 2)
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def ours(run: schema.Run) -> int:
    """Our side: answers on stdout as interleaved.Side asks."""
    device_mesh, _, once, size = built(run)
    from lm.parallel import mesh

    once()
    print(json.dumps({"now": time.time()}), flush=True)
    for line in sys.stdin:
        answer = interleaved.timed(once, int(line), size)
        mesh.peak_flops_per_second.cache_clear()
        answer["peak"] = mesh.peak_flops_per_second(device_mesh, "float32")
        print(json.dumps(answer), flush=True)
    return 0


def profiled(run: schema.Run, n: int = 2) -> dict:
    """Shares of the time of n calls, whose trace is written into --profile."""
    import jax

    from experiments.benchmarks import trace_breakdown

    device_mesh, text, once, size = built(run)
    once()
    with jax.profiler.trace(_PROFILE.value):
        seconds = size * sum(interleaved.timed(once, n * size, size)["seconds"])
    found = trace_breakdown.shares(_PROFILE.value, text, seconds, device_mesh.size)
    step_ms = round(1e3 * seconds / n / size, 2)
    return {"step_ms": step_ms} | {k: round(v, 3) for k, v in found.items()}


def built(run: schema.Run):
    """(mesh, text of the program, a call of it as of lm/training/loop.py, steps that the call
    does)."""
    import jax
    import numpy as np

    from lm.parallel import mesh
    from lm.training import loop, step

    mesh.initialize_devices()
    device_mesh = mesh.make_mesh(run.mesh)
    mesh.check_mesh_devices(run, device_mesh)
    program = step.build_train_functions(run, device_mesh)
    size = loop.steps_per_call(run, device_mesh)
    shape = (run.data.batch_size, run.data.seq_len + 1)
    tokens = np.random.default_rng(0).integers(run.model.vocab_size, size=shape, dtype=np.int32)
    with jax.set_mesh(device_mesh):
        batch = mesh.put_batch(device_mesh, {"tokens": tokens})
        compiled = loop.lower_steps(program, size).compile()
        step_index, state = loop.make_steps_call(program, compiled, size), program.init(0)

    def once() -> None:
        nonlocal state
        state, metrics = step_index(state, [batch] * size)
        jax.block_until_ready(metrics)

    return device_mesh, compiled.as_text() or "", once, size


def _put(run: schema.Run, name: str, text: str) -> None:
    kinds = schema.field_types(schema.Run)
    if name not in kinds:
        raise ValueError(f"--set={name}: {schema.suggest_names(name, list(kinds))}")
    *groups, knob = name.split(".")
    kind = kinds[name]
    group = run
    for one in groups:
        group = getattr(group, one)
    setattr(group, knob, json.loads(text.lower()) if kind in (bool, dict) else kind(text))


if __name__ == "__main__":
    cli.run_main(main)
