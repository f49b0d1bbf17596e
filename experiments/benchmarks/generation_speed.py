"""Time text generation, against plain PyTorch loops with and without a key-value cache.

    uv run python -m experiments.benchmarks.generation_speed
    uv run python -m experiments.benchmarks.generation_speed --torch=path/to/python

Programs run in interleaved rounds, each in its own process, without counting compilation. The table
shows the best round of each. Without torch (extra: torch), only this repository is measured.
"""

import os
import pathlib
import subprocess
import sys
import time

from absl import flags

from experiments.common import cli, console

_ROWS = flags.DEFINE_multi_integer("rows", [1, 16], "number of prompts per batch")
_TOKENS = flags.DEFINE_integer("tokens", 200, "number of tokens to generate after each prompt")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "number of times to measure each program")
_TORCH = flags.DEFINE_string("torch", sys.executable, "Python executable that has torch")
_DEVICES = flags.DEFINE_multi_integer("devices", [1, 2], "number of CPU devices of this repository")
_WORKER = flags.DEFINE_bool(
    "worker", False, "measure this repository in this process (internal: set for child processes)"
)

Programs = dict[str, tuple[list[str], dict[str, str]]]  # name -> (command, environment)


def main() -> int:
    """Measure all programs and print a table of milliseconds per token."""
    if _WORKER.value:
        print(measure_generation(_ROWS.value[0], _TOKENS.value))
        return 0
    lines = []
    for n_rows in _ROWS.value:
        best_seconds = _time_programs(_programs(n_rows))
        repository_seconds = min(
            seconds for name, seconds in best_seconds.items() if name.startswith("this repository")
        )
        lines += [
            {
                "prompts": str(n_rows),
                "program": name,
                "ms per token": f"{1000 * seconds / _TOKENS.value:.3f}",
                "relative to this repository": f"{seconds / repository_seconds:.2f}",
            }
            for name, seconds in best_seconds.items()
            if seconds < float("inf")
        ]
    console.table(lines, title=f"{_TOKENS.value} tokens, greedy, 3.5 M parameters, float32")
    return 0


def _programs(n_rows: int) -> Programs:
    """Return the command and environment of each program for batches of n_rows prompts."""
    module = "experiments.benchmarks.generation_speed"
    shape = [f"--rows={n_rows}", f"--tokens={_TOKENS.value}"]
    programs: Programs = {}
    for n in _DEVICES.value:
        environment = {"JAX_NUM_CPU_DEVICES": str(n), "GLIBC_TUNABLES": cli.MALLOC}
        name = f"this repository, {n} device{'s'[: n > 1]}"
        programs[name] = ([sys.executable, "-m", module, "--worker", *shape], environment)
    script = str(pathlib.Path(__file__).parent / "torch_generate.py")
    for kind in ("cached", "uncached"):
        command = [_TORCH.value, script, str(n_rows), str(_TOKENS.value), kind]
        programs[f"PyTorch, {kind}"] = (command, {})
    return programs


def _time_programs(programs: Programs) -> dict[str, float]:
    """Return the seconds of each program in its best round; inf if it never succeeds."""
    best_seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(_ROUNDS.value):
        for name, (command, environment) in programs.items():
            result = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | environment
            )
            if result.returncode == 0:
                seconds = float(result.stdout.split()[-1])
                best_seconds[name] = min(best_seconds[name], seconds)
    return best_seconds


def measure_generation(n_rows: int, n_tokens: int) -> float:
    """Return the seconds of the fastest of 4 calls of generation.generate.

    A call converts token ids to token ids and text. The first call includes compilation.
    """
    import jax

    from lm.config import schema
    from lm.data import tokenizers
    from lm.evaluation import generation
    from lm.model import transformer
    from lm.parallel import mesh

    mesh.initialize_devices()
    run = schema.Run()
    run.model = schema.Model(
        vocab_size=256, d_model=256, n_layers=4, n_heads=4, n_kv_heads=4, d_head=64, d_ff=768
    )
    run.data.seq_len = 256

    class EndlessTokenizer(tokenizers.ByteTokenizer):
        """Byte tokenizer whose end token is outside the vocabulary, so generation never stops."""

        end = 256

    device_mesh, seconds = mesh.make_mesh(run.mesh), []
    replicated = mesh.named_sharding(device_mesh)
    params = jax.jit(lambda: transformer.init_params(run.model, 0), out_shardings=replicated)()
    prompts, sampling = [[1]] * n_rows, generation.SamplingParams(max_tokens=n_tokens)
    tokenizer = EndlessTokenizer()
    for _ in range(4):
        start = time.perf_counter()
        answers = generation.generate(run, device_mesh, params, prompts, tokenizer, sampling)
        seconds.append(time.perf_counter() - start)
        assert all(len(answer.tokens) == n_tokens for answer in answers)
    return min(seconds)


if __name__ == "__main__":
    cli.run_main(main)
