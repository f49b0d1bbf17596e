"""Measure where the memory of training goes: a table in MiB for the sizes of train_step.

    uv run python -m experiments.benchmarks.memory
    uv run python -m experiments.benchmarks.memory --size=S --torch=path/to/python --json_lines

Each size runs in a process of its own: imports, compilation without a cache, initialization, calls
of the train step, and an evaluation batch, in the order of lm/training/loop.py.

The first part of the table is the plan: the bytes of the state on all devices, and the temporaries
of the compiled step. Gradients are as large as the trained weights, and XLA reuses other memory for
a part of them. Logits are those of one chunk of the loss. The second part is the peak of the
process in each stage, as the growth since the end of the imports. The column "after" is the memory
at the end of the stage. With --torch, the last lines compare the peaks with train steps of PyTorch.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.benchmarks import interleaved, train_step
from experiments.common import cli, console

# Flags --size and --torch are those of train_step.
_CALLS = flags.DEFINE_integer("calls", 3, "calls of the train step after the first one", 1)
_JSON = flags.DEFINE_bool("json_lines", False, "print a JSON line per size, no table")
_STAGES = flags.DEFINE_bool("stages", False, "measure in this process (internal: set for children)")
MIB = 2**20
PLAN = ("weights", "moments", "gradients", "logits", "other temporaries", "batches", "outputs")
IMPORT_TORCH = (
    "import torch, pathlib;"
    "print(pathlib.Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
)


def main() -> int:
    """Print the table of each size."""
    if _STAGES.value:
        run = train_step.benchmark_run(flags.FLAGS.size[0], flags.FLAGS.set)
        print(json.dumps(measure_stages(run, _CALLS.value)), flush=True)
        return 0
    for size in flags.FLAGS.size:
        result = measure_size(size)
        if _JSON.value:
            print(json.dumps(result), flush=True)
        else:
            print_table(result)
    return 0


def measure_size(size: str) -> dict:
    """Return the memory of a size, measured in a child process, and that of PyTorch with --torch.

    Raises RuntimeError with the last line of stderr if the child fails.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.memory", "--stages", f"--size={size}"]
    command += [f"--calls={_CALLS.value}", *(f"--set={text}" for text in flags.FLAGS.set)]
    environment = os.environ | {
        "GLIBC_TUNABLES": cli.MALLOC,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    completed = subprocess.run(command, capture_output=True, text=True, env=environment)
    if completed.returncode:
        raise RuntimeError(f"size {size} failed: {completed.stderr.strip().splitlines()[-1:]}")
    result = {"size": size} | json.loads(completed.stdout.splitlines()[-1])
    if flags.FLAGS["torch"].present:
        result["torch"] = measure_torch(size)
    return result


def measure_torch(size: str) -> dict[str, float]:
    """Return the peak memory of the eager PyTorch baseline in MiB: process, above its imports."""
    run, python = train_step.benchmark_run(size, flags.FLAGS.set), flags.FLAGS.torch
    completed = subprocess.run([python, "-c", IMPORT_TORCH], capture_output=True, text=True)
    imports = int(completed.stdout) / 1024
    shape = json.dumps(vars(run.model) | vars(run.data))
    script = str(pathlib.Path(__file__).parent / "torch_train.py")
    command = [python, script, shape, "eager", run.model.dtype]
    with interleaved.Program("PyTorch", command) as program:
        peak = program.time_steps(5)["memory"] / MIB
    return {"imports": imports, "peak": peak, "above imports": peak - imports}


def measure_stages(run: Any, n_calls: int) -> dict:
    """Return {"plan": {class: MiB}, "stages": {stage: {"peak", "after", "cpu"}}, "imports": MiB}.

    n_calls: calls of the step after the first one. cpu: processor seconds of the last of them. All
    memory of stages is above that after the imports.
    """
    import jax
    import numpy as np

    from lm.parallel import mesh
    from lm.training import loop, step
    from lm.training.programs import compilation

    imports = read_memory("VmRSS")
    stages: dict[str, dict[str, float]] = {}

    def measure(name: str, call: Callable[[], Any]) -> Any:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # 5 resets VmHWM: see proc(5)
        began = sum(os.times()[:2])
        result = jax.block_until_ready(call())
        peak, after = read_memory("VmHWM") - imports, read_memory("VmRSS") - imports
        cpu = sum(os.times()[:2]) - began
        peak = max(peak, stages.get(name, {}).get("peak", peak))
        stages[name] = {"peak": peak, "after": after, "cpu": cpu}
        return result

    mesh.initialize_devices()
    device_mesh = mesh.make_mesh(run.mesh)
    size = loop.steps_per_call(run, device_mesh)
    shape = run.data.batch_size, run.data.seq_len + 1
    tokens = np.random.default_rng(0).integers(run.model.vocab_size, size=shape, dtype=np.int32)
    with jax.set_mesh(device_mesh):
        functions = measure("tracing", lambda: step.build_train_functions(run, device_mesh))
        lowered = measure("lowering", lambda: loop.lower_steps(functions, size))
        compiled, compile_score, init = measure(
            "compilation",
            lambda: compilation.compile_all(functions, {run.data.batch_size: lowered}, True),
        )
        program = compiled[run.data.batch_size]
        train_steps = loop.make_steps_call(functions, program, size)
        # Two calls of batches are ready while one is used, as in the training loop.
        batches = [mesh.put_batch(device_mesh, {"tokens": tokens}) for _ in range(3 * size)]
        states = [measure("initialization", lambda: init(run.seed))]
        plan = _plan(run, functions, program, batches)

        def train() -> list[dict]:
            state, metrics = train_steps(states.pop(), batches[:1])
            states.append(state)
            return metrics

        metrics = measure("first call", train)
        for _ in range(n_calls):
            metrics = measure("next calls", train)
        rows = functions.evaluation_batch
        held_out = mesh.put_batch(
            device_mesh, {n: np.ones(x.shape, x.dtype) for n, x in rows.items()}
        )
        measure("evaluation", lambda: compile_score()(states[0]["params"], held_out))
    losses = [float(metric["loss"]) for metric in metrics]
    return {"imports": imports, "plan": plan, "stages": stages, "loss": losses[-1]}


def _plan(run: Any, functions: Any, program: Any, batches: list) -> dict[str, float]:
    """Return {class: MiB} of all devices, of the classes PLAN."""
    import jax

    from lm.model import memory_estimate

    run = memory_estimate.resolve_layout(run, functions.mesh.size, jax.default_backend())
    analysis = program.memory_analysis()
    assert analysis is not None  # XLA plans memory on CPU
    n_devices = functions.mesh.size

    def total(tree: Any) -> float:
        """Return the bytes of all shards of a tree of arrays."""
        return n_devices * sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )

    weights = total(functions.abstract["params"])
    n_weights = sum(leaf.size for leaf in jax.tree.leaves(functions.abstract["params"]))
    gradients = weights * functions.n_learned / n_weights
    n_tokens = run.data.batch_size * run.data.seq_len / run.optim.grad_accumulation_steps
    logits = 4 * n_tokens * run.model.vocab_size / run.model.loss_chunks
    temporaries = n_devices * analysis.temp_size_in_bytes
    outputs = n_devices * (analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    values = (
        *(weights, total(functions.abstract["opt"]), gradients, logits),
        *(temporaries - gradients - logits, total(batches), outputs),
    )
    return {name: value / MIB for name, value in zip(PLAN, values, strict=True)}


def read_memory(field: str) -> float:
    """Return the memory of this process in MiB. field: VmRSS, or its peak VmHWM."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def peak_above_imports(result: dict) -> float:
    """Return the largest peak of all stages in MiB, above the memory after the imports."""
    return max(stage["peak"] for stage in result["stages"].values())


def print_table(result: dict) -> None:
    """Print the plan, the stages and the comparison of a size, one fact per line."""
    console.print_line(f"size {result['size']}: memory in MiB")
    for name, value in result["plan"].items():
        console.print_line(f"  planned {name:20} {value:8.1f}")
    console.print_line(f"  imports                      {result['imports']:8.1f}")
    for name, stage in result["stages"].items():
        line = f"  {name:16} peak {stage['peak']:8.1f}, after {stage['after']:8.1f}"
        console.print_line(f"{line}, {stage['cpu']:.1f} s of CPU")
    above = peak_above_imports(result)
    console.print_line(
        f"  peak of the process {above + result['imports']:.1f}, above imports {above:.1f}"
    )
    if torch := result.get("torch"):
        ratio = (above + result["imports"]) / torch["peak"]
        console.print_line(
            f"  PyTorch {torch['peak']:.1f}, above imports {torch['above imports']:.1f}:"
            f" ratios {ratio:.2f}, {above / torch['above imports']:.2f}"
        )


if __name__ == "__main__":
    cli.run_main(main)
