"""How fast text is generated here, against plain PyTorch loops with and without a cache.

uv run python -m experiments.benchmarks.generation_speed                  # extra: torch; ours alone
without
uv run python -m experiments.benchmarks.generation_speed --torch=path/to/python

In turns, each in a process of its own, compilation not counted: the best of all turns.
"""

import os
import pathlib
import subprocess
import sys
import time

from absl import flags

from experiments.common import cli, console

_ROWS = flags.DEFINE_multi_integer("rows", [1, 16], "prompts at a time")
_TOKENS = flags.DEFINE_integer("tokens", 200, "tokens said after each")
_TURNS = flags.DEFINE_integer("turns", 3, "times that each is measured")
_TORCH = flags.DEFINE_string("torch", sys.executable, "a Python that has torch")
_DEVICES = flags.DEFINE_multi_integer("devices", [1, 2], "CPU devices of ours")
_OURS = flags.DEFINE_bool("ours", False, "measure ours, in this process")


def main() -> int:
    if _OURS.value:
        print(ours(_ROWS.value[0], _TOKENS.value))
        return 0
    loop = [_TORCH.value, str(pathlib.Path(__file__).parent / "torch_loop.py")]
    mine = [sys.executable, "-m", "experiments.benchmarks.generation_speed", "--ours"]
    lines = []
    for rows in _ROWS.value:
        sides = {
            f"ours, {n} device{'s'[: n > 1]}": (
                [*mine, f"--rows={rows}", f"--tokens={_TOKENS.value}"],
                {"JAX_NUM_CPU_DEVICES": str(n), "GLIBC_TUNABLES": cli.MALLOC},
            )
            for n in _DEVICES.value
        }
        for kind in ("cached", "uncached"):
            sides[f"PyTorch, {kind}"] = ([*loop, str(rows), str(_TOKENS.value), kind], {})
        best = dict.fromkeys(sides, float("inf"))
        for _ in range(_TURNS.value):
            for name, (command, environment) in sides.items():
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | environment
                )
                if done.returncode == 0:
                    best[name] = min(best[name], float(done.stdout.split()[-1]))
        fastest = min(seconds for name, seconds in best.items() if name.startswith("ours"))
        for name, seconds in best.items():
            if seconds < float("inf"):
                step = f"{1000 * seconds / _TOKENS.value:.3f}"
                line = {"prompts": str(rows), "with": name, "ms a step": step}
                lines.append(line | {"times the best of ours": f"{seconds / fastest:.2f}"})
    console.table(lines, title=f"{_TOKENS.value} tokens, greedy, 3.5 M parameters, float32")
    return 0


def ours(rows: int, n: int) -> float:
    """Seconds of the best of 3 calls of generation.generate, from ids to ids and text."""
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

    class Endless(tokenizers.ByteTokenizer):
        end = 256  # which nothing says

    device_mesh, seconds = mesh.make_mesh(run.mesh), []
    everywhere = mesh.named_sharding(device_mesh)
    params = jax.jit(lambda: transformer.init_params(run.model, 0), out_shardings=everywhere)()
    prompts, sampling = [[1]] * rows, generation.SamplingParams(max_tokens=n)
    for _ in range(4):
        start = time.perf_counter()
        found = generation.generate(run, device_mesh, params, prompts, Endless(), sampling)
        seconds.append(time.perf_counter() - start)
    assert all(len(one.tokens) == n for one in found)
    return min(seconds)


if __name__ == "__main__":
    cli.run_main(main)
