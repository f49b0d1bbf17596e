"""Compare training with PyTorch: ratios of speed, memory and first step for three sizes.

    uv run python -m experiments.benchmarks.against_pytorch --torch=path/to/python
    uv run python -m experiments.benchmarks.against_pytorch --torch=path/to/python --size=S --runs=1

Each run starts all programs again, and times their steps in alternating rounds as train_step.py.
The memory is that of memory.py. Nothing is taken from the compilation cache of JAX. The baseline is
the better of eager and compiled PyTorch in each quantity: compiled PyTorch has the faster steps,
eager PyTorch the earlier first step and the smaller memory.

A line has the median ratio of the runs, its interquartile range, and the median values. Speed is
the number of tokens per second, so that a larger ratio is better. For the others a smaller ratio is
better. Processor time per step depends less on other work of the machine than speed.
"""

import json
import os
import statistics
from collections.abc import Sequence

from absl import flags

from experiments.benchmarks import interleaved, memory, train_step
from experiments.common import cli, console

# Flags --size, --torch, --kind, --rounds, --seconds and --set are those of train_step, --json_lines
# and --calls those of memory.
_RUNS = flags.DEFINE_integer("runs", 5, "number of runs, each of which starts all programs", 1)
# Quantity -> (unit, limit of the ratio that the project aims at).
QUANTITIES = {
    "speed": ("tokens per second", "at least 1.00"),
    "processor time per step": ("ms", "at most 1.00"),
    "peak of the process": ("MiB", "at most 1.10"),
    "peak above imports": ("MiB", "at most 1.10"),
    "first step": ("s", "at most 1.50 at S, 2.00 at L"),
}


def main() -> int:
    """Print the ratios of each size."""
    if not flags.FLAGS["torch"].present:
        raise ValueError("--torch is missing: set it to the path of a Python that has torch")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of all child processes
    for size in flags.FLAGS.size:
        pairs = [measure_run(size) for _ in range(_RUNS.value)]
        if flags.FLAGS.json_lines:
            ratios = {name: summarize_ratios(name, pairs) for name in QUANTITIES}
            print(json.dumps({"size": size, "ratios": ratios, "runs": pairs}), flush=True)
        else:
            print_ratios(size, pairs)
    return 0


def measure_run(size: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return the QUANTITIES of this repository, and the best of each of PyTorch, in one run."""
    values = flags.FLAGS
    run = train_step.benchmark_run(size, values.set)
    programs = train_step.make_programs(size, run, "torch")
    answers = interleaved.time_interleaved(programs, values.rounds, values.seconds)
    n_tokens = run.data.batch_size * run.data.seq_len
    rows = [
        {
            "speed": n_tokens / statistics.median(s for a in program for s in a["seconds"]),
            "processor time per step": 1e3 * statistics.median(a["cpu"] for a in program),
        }
        for program in answers
    ]
    for row, program in zip(rows, programs, strict=True):
        row["first step"] = program.first_step_seconds
    own, baselines = rows[0], rows[1:]
    best = {name: min(row[name] for row in baselines) for name in own}
    best["speed"] = max(row["speed"] for row in baselines)
    own_memory = memory.measure_size(size)
    torch_memory = own_memory["torch"]
    above = memory.peak_above_imports(own_memory)
    own |= {"peak of the process": above + own_memory["imports"], "peak above imports": above}
    best["peak of the process"] = torch_memory["peak"]
    best["peak above imports"] = torch_memory["above imports"]
    return own, best


def summarize_ratios(
    name: str, pairs: Sequence[tuple[dict[str, float], dict[str, float]]]
) -> tuple[float, float, float]:
    """Return (median, lower quartile, upper quartile) of the ratios of a quantity over the runs."""
    ratios = [own[name] / best[name] for own, best in pairs]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    lower, middle, upper = statistics.quantiles(ratios, method="inclusive")
    return middle, lower, upper


def print_ratios(size: str, pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> None:
    """Print the ratio to PyTorch of each quantity of a size."""
    console.print_line(f"size {size}: ratio to PyTorch [quartiles] of {len(pairs)} runs")
    for name, (unit, target) in QUANTITIES.items():
        middle, lower, upper = summarize_ratios(name, pairs)
        own, best = (statistics.median(pair[i][name] for pair in pairs) for i in (0, 1))
        console.print_line(
            f"  {name:24} {middle:.2f} [{lower:.2f}, {upper:.2f}], {own:,.4g} against"
            f" {best:,.4g} {unit}; target {target}"
        )


if __name__ == "__main__":
    cli.run_main(main)
