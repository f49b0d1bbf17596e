"""Measure one accelerator in at most ten minutes: one JSON file and a table.

    uv run python -m experiments.benchmarks.accelerator
    uv run python -m experiments.benchmarks.accelerator --skip=torch --results_file=h100.json
    uv run python -m experiments.benchmarks.accelerator --parts=train-1B --parts=kernels

Each part runs in a process of its own with a time limit, so that an error, a lack of memory or a
hang of one part does not end the others. On CPU the sizes are tiny: the numbers then only show that
the parts work. The parts:

train-SIZE    MFU, tokens per second, compile time, and memory against plan; sequence 2048,
              bfloat16, separated documents
kernels       the selected attention kernel against plain attention, forward and backward
resume        the first loss after a restart in another process without its cache of programs
evaluation    scored tokens per second
generation    generated tokens per second
vmapped       runs in one program against runs one after another
torch         training at 1B in PyTorch (compiled, fused attention), if PyTorch is installed

The exit status is 1 if a part failed or exceeded its limit.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from experiments.common import cli, console

# Part -> time limit in seconds. The limits add up to less than the ten minutes of the command.
LIMITS = {
    "device": 20.0,
    "train-125M": 55.0,
    "train-350M": 70.0,
    "train-1B": 100.0,
    "kernels": 40.0,
    "resume-first": 40.0,
    "resume": 40.0,
    "evaluation": 40.0,
    "generation": 45.0,
    "vmapped": 45.0,
    "torch": 100.0,
}
# Columns of the table that a part may have, with their formats.
COLUMNS = {
    "mfu": "{:.1%}",
    "tokens_per_second": "{:,.0f}",
    "step_ms": "{:.2f}",
    "compile_seconds": "{:.1f}",
    "peak_gib": "{:.2f}",
    "planned_gib": "{:.2f}",
    "max_error": "{:.1e}",
    "speedup": "{:.2f}",
    "relative_difference": "{:.1e}",
}
_RESULTS = flags.DEFINE_string("results_file", "accelerator.json", "file for the results")
_SKIP = flags.DEFINE_multi_string("skip", [], f"part to leave out: {', '.join(LIMITS)}")
_PARTS = flags.DEFINE_multi_string("parts", [], "part to measure; the default is all parts")
_MINUTES = flags.DEFINE_float("minutes", 10.0, "time limit of the command in minutes", 0.1, 600)
_TINY = flags.DEFINE_bool("tiny", False, "tiny sizes, also on an accelerator")
_PART = flags.DEFINE_string("part", "", "internal: part that this process measures")
_FOLDER = flags.DEFINE_string("folder", "", "internal: temporary folder of all parts")


def main() -> int:
    """Measure all parts, write the JSON file and print the table. Return the exit status."""
    check_parts([*_SKIP.value, *_PARTS.value])
    if _PART.value:
        from experiments.benchmarks import accelerator_parts

        result = accelerator_parts.measure_part(_PART.value, _FOLDER.value, _TINY.value)
        print(json.dumps(result), flush=True)
        return 0
    names = select_parts(_PARTS.value, _SKIP.value)
    with tempfile.TemporaryDirectory(prefix="accelerator-") as folder:
        results = measure_parts(names, folder, 60 * _MINUTES.value, _TINY.value)
    pathlib.Path(_RESULTS.value).write_text(json.dumps(results, indent=1) + "\n")
    console.table(table_lines(results["parts"]), "Results")
    for name, part in results["parts"].items():
        if "reason" in part:
            console.print_line(f"{name}: {part['reason']}")
    console.print_line(f"total time: {results['seconds']:.0f} seconds")
    console.print_line(f"results: {_RESULTS.value}")
    is_failure = any(part["status"] in ("failed", "timeout") for part in results["parts"].values())
    return int(is_failure)


def check_parts(names: list[str]) -> None:
    """Raise ValueError for the name of a part that does not exist."""
    for name in names:
        if name not in LIMITS:
            raise ValueError(f"part {name} does not exist: the parts are {', '.join(LIMITS)}")


def select_parts(only: list[str], skipped: list[str]) -> list[str]:
    """Return the parts to measure in order. The device comes first, and resume needs its start."""
    wanted = set(only or LIMITS) | {"device"}
    wanted |= {"resume-first"} if "resume" in wanted else set()
    return [name for name in LIMITS if name in wanted and name not in skipped]


def measure_parts(names: list[str], folder: str, seconds: float, is_tiny: bool) -> dict[str, Any]:
    """Measure parts one after another. Return all results as a JSON object.

    folder: temporary folder. seconds: limit of all parts; the limits of the parts increase with it.
    Sizes are tiny on CPU, or if is_tiny. Without a result for the device, no other part runs.
    """
    start = time.monotonic()
    results: dict[str, dict] = {}
    for name in names:
        remaining = seconds - (time.monotonic() - start)
        if remaining <= 1:
            results[name] = {"status": "skipped", "reason": f"no time after {seconds:.0f} seconds"}
            continue
        command = part_command(name, folder, is_tiny)
        limit = min(LIMITS[name] * max(1.0, seconds / sum(LIMITS.values())), remaining)
        results[name] = run_part(command, limit, _environment(folder, name))
        if name == "device" and results[name]["status"] != "ok":
            break
        is_tiny = is_tiny or results[name].get("platform") == "cpu"
    device = results.get("device", {})
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": {key: value for key, value in device.items() if key not in ("status", "seconds")},
        "is_tiny": is_tiny,
        "seconds": time.monotonic() - start,
        "parts": results,
    }


def part_command(name: str, folder: str, is_tiny: bool) -> list[str]:
    """Return the command that measures one part and prints a JSON object as its last line."""
    module = "experiments.benchmarks.accelerator"
    command = [sys.executable, "-m", module, f"--part={name}", f"--folder={folder}"]
    return [*command, "--tiny"] if is_tiny else command


def _environment(folder: str, name: str) -> dict[str, str]:
    """Return the environment of a part. Each part compiles anew, so compile times are complete."""
    cache = pathlib.Path(folder) / "compiled" / name
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "GLIBC_TUNABLES": cli.MALLOC}


def run_part(command: list[str], limit: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run the command of a part. Return its JSON object with status and seconds.

    The status is ok, skipped (the object has a reason), failed or timeout. limit: in seconds.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {
            "status": "timeout",
            "seconds": limit,
            "reason": f"no result in {limit:.0f} seconds",
        }
    seconds = time.monotonic() - start
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        messages = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        return {"status": "failed", "seconds": seconds, "reason": messages[-1][:300]}
    return {"status": "ok", "seconds": seconds} | json.loads(lines[-1])


def table_lines(parts: dict[str, dict]) -> list[dict[str, str]]:
    """Return a table line per part, with the columns that at least one part has."""
    lines = []
    for name, result in parts.items():
        line = {"part": name, "status": result["status"]}
        for column, template in COLUMNS.items():
            value = result.get(column)
            line[column.replace("_", " ")] = "" if value is None else template.format(value)
        lines.append(line)
    filled = [title for title in lines[0] if any(line[title] for line in lines)]
    return [{title: line[title] for title in filled} for line in lines]


if __name__ == "__main__":
    cli.run_main(main)
