"""Parts of accelerator.py: each function measures one part in this process.

    measure_part("train-1B", folder, is_tiny=False)["mfu"]

A result is a JSON object. Its key "reason" explains a part that was skipped.
"""

import dataclasses
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import accelerator_runs
from lm.config import flops, schema
from lm.data import tokenizers
from lm.evaluation import generation
from lm.model import memory_estimate, transformer
from lm.model.kernels import kernel_parity, kernel_table
from lm.parallel import device_memory, mesh, peak_flops, platform_facts
from lm.runs import records
from lm.training import loop, step, vmapped_runs

GIB = 2**30
WARMUP_CALLS, SECONDS_PER_MEASUREMENT = 3, 8.0
RESUME_STEPS = 12


def measure_part(name: str, folder: str, is_tiny: bool) -> dict[str, Any]:
    """Return the result of a part, see accelerator.py. folder: temporary folder of all parts."""
    mesh.initialize_devices()
    if name.startswith("train-"):
        return measure_training("tiny" if is_tiny else name.removeprefix("train-"))
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "device": describe_device,
        "kernels": lambda: compare_kernels(is_tiny),
        "resume-first": lambda: start_run(folder, is_tiny),
        "resume": lambda: resume_run(folder, is_tiny),
        "evaluation": lambda: measure_evaluation(is_tiny),
        "generation": lambda: measure_generation(is_tiny),
        "vmapped": lambda: compare_vmapped(is_tiny),
        "torch": lambda: measure_torch(is_tiny),
    }
    return measure[name]()


def describe_device() -> dict[str, Any]:
    """Return kind, memory, peak and software versions of the devices."""
    device_mesh = mesh.make_mesh(schema.Mesh())
    kind = mesh.device_kind(device_mesh)
    peak = mesh.peak_flops_per_second(device_mesh, "bfloat16")
    n_bytes = device_memory.available_bytes(device_mesh)
    known = peak_flops.find_peak(kind)
    return {
        "platform": mesh.device_platform(device_mesh),
        "kind": kind,
        "devices": device_mesh.size,
        "memory_gib": n_bytes / GIB if math.isfinite(n_bytes) else None,
        "peak_bfloat16": peak,
        "peak_source": known.source if known else "measured",
        "versions.jax": jax.__version__,
    } | platform_facts.collect_platform_facts(device_mesh)


def time_calls(call: Callable[[], Any], is_tiny: bool) -> float:
    """Return the median seconds of a call that dispatches work to the device.

    Several calls are timed together, so that the device computes while Python dispatches.
    """
    for _ in range(1 if is_tiny else WARMUP_CALLS):
        jax.block_until_ready(call())
    seconds: list[float] = []
    n_calls = 1 if is_tiny else 5
    while len(seconds) < (2 if is_tiny else 3) or (
        not is_tiny and n_calls * sum(seconds) < SECONDS_PER_MEASUREMENT
    ):
        start = time.perf_counter()
        for _ in range(n_calls):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / n_calls)
    return float(np.median(seconds))


def measure_training(size: str) -> dict[str, Any]:
    """Return speed, MFU, compile time and memory of training."""
    run, is_tiny = accelerator_runs.fitting_run(size), size == "tiny"
    device_mesh = mesh.make_mesh(run.mesh)
    functions = step.build_train_functions(run, device_mesh)
    start = time.perf_counter()
    with jax.set_mesh(device_mesh):
        compiled = loop.lower_steps(functions, 1).compile()
        compile_seconds = time.perf_counter() - start
        state = functions.init(0)
        batch = mesh.put_batch(device_mesh, accelerator_runs.random_batch(run))
    train_steps = loop.make_steps_call(functions, compiled, 1)
    losses = []

    def call() -> jax.Array:
        nonlocal state
        state, (metrics,) = train_steps(state, [batch])
        losses.append(metrics["loss"])
        return losses[-1]

    seconds = time_calls(call, is_tiny)
    estimate = memory_estimate.estimate_memory(
        run, device_mesh.size, mesh.device_platform(device_mesh)
    )
    planned = estimate.params + estimate.optimizer + estimate.temporaries
    memory = compiled.memory_analysis()
    assert memory, "the compiler reports no memory"
    return training_speed(run, device_mesh, seconds) | {
        "parameters": flops.run_facts(run)["params.total"],
        "batch_size": run.data.batch_size,
        "compile_seconds": compile_seconds,
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "peak_gib": peak_memory(device_mesh),
        "planned_gib": planned / GIB,
        "compiled_gib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / GIB,
        "kernel": kernel_table.select_kernels(run, device_mesh).attention.name,
    }


def training_speed(
    run: schema.Run, device_mesh: jax.sharding.Mesh, seconds: float
) -> dict[str, float]:
    """Return step time, tokens per second and MFU. seconds: of one step."""
    tokens_per_second = run.data.batch_size * run.data.seq_len / seconds
    n_flops = flops.flops_per_token(run.model, run.data.seq_len)["full"]
    peak = mesh.peak_flops_per_second(device_mesh, run.model.dtype)
    return {
        "step_ms": 1000 * seconds,
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * n_flops / peak,
    }


def peak_memory(device_mesh: jax.sharding.Mesh) -> float | None:
    """Return the largest memory in use on a device so far in GiB, None if it is not reported."""
    stats = device_mesh.devices.flat[0].memory_stats() or {}
    n_bytes = stats.get("peak_bytes_in_use")
    return None if n_bytes is None else n_bytes / GIB


def compare_kernels(is_tiny: bool) -> dict[str, Any]:
    """Return the largest error of each kernel of the platform, forward and backward.

    See lm/model/kernels/kernel_parity.py. A tiny part compares the experts' kernel "tiles" only.
    """
    has_tokamax = importlib.util.find_spec("tokamax") is not None
    cases = kernel_parity.parity_cases(jax.default_backend(), has_tokamax)
    if is_tiny:
        case = kernel_parity.ParityCase("experts", "tiles", "float32", n_rows=2, seq_len=64)
        cases = [dataclasses.replace(case, n_experts=4, d_model=16, d_expert=16)]
    rows = [kernel_parity.check_kernel_parity(case) for case in cases]
    failures = [
        f"{row['operation']} {row['kernel']} d_head={row['d_head']}"
        f" segments={row['has_segments']}: {row['failure'] or row['errors']}"
        for row in rows
        if not row["is_equal"]
    ]
    return {
        "kernel": ", ".join(dict.fromkeys(row["kernel"] for row in rows)),
        "max_error": max((max(row["errors"].values(), default=0.0) for row in rows), default=0.0),
        "failures": failures,
        "cases": rows,
    }


def _resume_run(folder: str, is_tiny: bool) -> schema.Run:
    """Return the run of the parts resume-first and resume, on text that is written here."""
    text = pathlib.Path(folder) / "text"
    text.mkdir(exist_ok=True)
    for number in range(40):
        line = f"document {number} counts: {' '.join(str(number * i) for i in range(200))}\n"
        (text / f"{number}.txt").write_text(line * (1 if is_tiny else 60))
    run = accelerator_runs.benchmark_run("tiny" if is_tiny else "125M", 8)
    run.name, run.dir, run.steps = "resume", str(pathlib.Path(folder) / "runs"), RESUME_STEPS
    run.model.vocab_size = 256
    run.data.sources, run.data.cache_dir = {f"text:{text}": 1.0}, str(pathlib.Path(folder) / "data")
    run.eval.n_sequences, run.eval.n_completions = 8, 0
    return run


def start_run(folder: str, is_tiny: bool) -> dict[str, Any]:
    """Train the run of the resume check to its end."""
    run = _resume_run(folder, is_tiny)
    loop.train(run)
    return {"last_loss": records.load_metrics(records.run_dir(run))[-1]["loss"]}


def resume_run(folder: str, is_tiny: bool) -> dict[str, Any]:
    """Restore the first checkpoint, train to the end, and compare the losses."""
    run = _resume_run(folder, is_tiny)
    path = records.run_dir(run)
    expected = {row["step"]: row["loss"] for row in records.load_metrics(path)}
    newest = path / "checkpoints" / str(RESUME_STEPS)
    newest.rename(path / "checkpoint-of-the-end")
    records.write_facts(path, status="lost")
    loop.train(run)
    losses = {row["step"]: row["loss"] for row in records.load_metrics(path)}
    differences = [abs(losses[n] - expected[n]) / abs(expected[n]) for n in expected]
    events = [row["words"] for row in records.load_events(path) if row["event"] == "inexact resume"]
    return {
        "relative_difference": max(differences),
        "is_identical": losses == expected,
        "events": events,
        "resumed_from": records.read_facts(path)["resumed_from"],
    }


def measure_evaluation(is_tiny: bool) -> dict[str, Any]:
    """Return the speed of scoring held-out rows."""
    run = accelerator_runs.benchmark_run("tiny" if is_tiny else "350M", 8 if is_tiny else 16)
    device_mesh = mesh.make_mesh(run.mesh)
    functions = step.build_train_functions(run, device_mesh)
    with jax.set_mesh(device_mesh):
        params = functions.init(0)["params"]
        batch = mesh.put_batch(device_mesh, accelerator_runs.random_batch(run))
        start = time.perf_counter()
        score = functions.score.lower(params, batch).compile()
        compile_seconds = time.perf_counter() - start
        seconds = time_calls(lambda: score(params, batch), is_tiny)
    return {
        "tokens_per_second": run.data.batch_size * run.data.seq_len / seconds,
        "step_ms": 1000 * seconds,
        "compile_seconds": compile_seconds,
        "peak_gib": peak_memory(device_mesh),
    }


class EndlessTokenizer(tokenizers.ByteTokenizer):
    """Byte tokenizer whose end token is outside of the vocabulary, so that no answer ends early."""

    end = 256


def measure_generation(is_tiny: bool) -> dict[str, Any]:
    """Return the speed of greedy generation for a batch of prompts."""
    run = accelerator_runs.benchmark_run("tiny" if is_tiny else "350M", 8)
    run.data.attend_across_documents = True
    run.data.seq_len = 32 if is_tiny else 512
    n_prompts, n_tokens = (2, 8) if is_tiny else (16, 200)
    device_mesh = mesh.make_mesh(run.mesh)
    params = jax.jit(
        lambda: transformer.init_params(run.model, 0),
        out_shardings=mesh.named_sharding(device_mesh),
    )()
    prompts, sampling = [[1] * 8] * n_prompts, generation.SamplingParams(max_tokens=n_tokens)
    seconds = []
    for _ in range(2 if is_tiny else 3):
        start = time.perf_counter()
        generation.generate(run, device_mesh, params, prompts, EndlessTokenizer(), sampling)
        seconds.append(time.perf_counter() - start)
    return {
        "tokens_per_second": n_prompts * n_tokens / min(seconds),
        "compile_seconds": seconds[0] - min(seconds),
        "peak_gib": peak_memory(device_mesh),
    }


def compare_vmapped(is_tiny: bool) -> dict[str, Any]:
    """Return the speed of a program that trains several small runs, relative to single runs."""
    n_runs = 2 if is_tiny else 8
    run = accelerator_runs.benchmark_run("tiny", 8)
    if not is_tiny:
        run.model = dataclasses.replace(
            run.model, d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, d_head=32, d_ff=384
        )
        run.data.seq_len = 256
    device_mesh = mesh.make_mesh(run.mesh)
    single = step.build_train_functions(run, device_mesh)
    runs = [dataclasses.replace(run, name=str(seed), seed=seed) for seed in range(n_runs)]
    batch = mesh.put_batch(device_mesh, accelerator_runs.random_batch(run))
    seconds = []
    for functions in (single, vmapped_runs.vmap_train_functions(single, runs)):
        with jax.set_mesh(device_mesh):
            compiled = loop.lower_steps(functions, 1).compile()
            state = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
                functions.abstract,
            )
        train_steps = loop.make_steps_call(functions, compiled, 1)
        batches = [batch] * n_runs if functions.n_runs > 1 else batch
        seconds.append(time_calls(_stepper(train_steps, state, batches), is_tiny))
    return {
        "runs": n_runs,
        "speedup": n_runs * seconds[0] / seconds[1],
        "step_ms": 1000 * seconds[1],
        "single_step_ms": 1000 * seconds[0],
    }


def _stepper(train_steps: Callable, state: dict, batches: Any) -> Callable[[], Any]:
    """Return a function that trains one step and returns its metrics."""

    def call() -> Any:
        nonlocal state
        state, metrics = train_steps(state, [batches])
        return metrics

    return call


def measure_torch(is_tiny: bool) -> dict[str, Any]:
    """Return the training speed of PyTorch at the size 1B, or the reason why it is skipped.

    This process must not use a device, because JAX would reserve the memory of the GPU.
    """
    if importlib.util.find_spec("torch") is None:
        return {"status": "skipped", "reason": "PyTorch is not installed"}
    run = accelerator_runs.benchmark_run("tiny" if is_tiny else "1B", 1)
    script = pathlib.Path(__file__).parent / "torch_accelerator.py"
    shape = json.dumps(dataclasses.asdict(run.model) | dataclasses.asdict(run.data))
    seconds = 0.1 if is_tiny else SECONDS_PER_MEASUREMENT
    done = subprocess.run(
        [sys.executable, str(script), shape, str(seconds)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])
    result = json.loads(done.stdout.splitlines()[-1])
    peak = peak_flops.find_peak(result["device"])
    n_flops = flops.flops_per_token(run.model, run.data.seq_len)["full"]
    mfu = result["tokens_per_second"] * n_flops / peak.bfloat16 if peak else None
    return result | {"mfu": mfu}
