"""Measure how time and memory grow: a line per quantity with its exponent.

    uv run python -m experiments.benchmarks.growth
    uv run python -m experiments.benchmarks.growth --axis=runs --largest=1000 --report
    uv run python -m experiments.benchmarks.growth --axis=documents --largest=100000

Axes: number of runs of a sweep (load_runs, a power law, with --report also the report), documents
(preparation with byte tokens), rows of a batch, tokens per row, vocabulary and width of a model
(memory of the compiled train step). Times are processor seconds. The exponent is the slope of the
logarithms between the last two values, where constant costs matter least. "expected" is that of the
arithmetic: 1 for runs and documents, and the slope of memory_estimate.py for a model. A line whose
exponent exceeds the expected one by more than 0.1 is marked.
"""

import json
import math
import pathlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments.common import cli, console
from lm.config import schema

_AXES = flags.DEFINE_multi_enum(
    "axis",
    ["runs", "documents", "rows", "tokens", "vocabulary", "width"],
    ["runs", "documents", "rows", "tokens", "vocabulary", "width"],
    "quantity that grows; may be repeated",
)
_LARGEST = flags.DEFINE_integer("largest", 1000, "largest number of runs or documents", 10)
_REPORT = flags.DEFINE_bool("report", False, "also write the report of each number of runs")
_TEMPLATE = flags.DEFINE_string(
    "template", "notebooks/data/real_ladder", "folder of a sweep whose runs are copied"
)
MAX_EXCESS = 0.1  # of a measured exponent over the expected one
MIB = 2**20
WORDS = "the quick brown fox jumps over a lazy dog while others watch from far away".split()
# Axis of a model -> field that grows, and its values.
MODEL_AXES = {
    "rows": ("data.batch_size", (4, 8, 16, 32)),
    "tokens": ("data.seq_len", (128, 256, 512, 1024)),
    "vocabulary": ("model.vocab_size", (1024, 4096, 16384, 65536)),
    "width": ("model.d_model", (64, 128, 256, 512)),
}


class Growth(NamedTuple):
    """Measurements of a quantity at several values of an axis."""

    axis: str
    quantity: str
    xs: Sequence[float]
    ys: Sequence[float]
    expected: float = 1.0

    @property
    def exponent(self) -> float:
        """Return the slope of the logarithms between the last two values."""
        return slope(self.xs, self.ys)

    @property
    def is_too_fast(self) -> bool:
        """Return True if the quantity grows faster than the arithmetic predicts."""
        return self.exponent > self.expected + MAX_EXCESS


def main() -> int:
    for axis in _AXES.value:
        for growth in measure_axis(axis):
            console.print_line(describe_growth(growth))
    return 0


def measure_axis(axis: str) -> list[Growth]:
    """Return the measurements of an axis."""
    with tempfile.TemporaryDirectory() as folder:
        if axis == "runs":
            return measure_runs(pathlib.Path(folder), _TEMPLATE.value, powers(_LARGEST.value))
        if axis == "documents":
            return measure_documents(pathlib.Path(folder), powers(_LARGEST.value))
        return measure_model(axis, *MODEL_AXES[axis])


def powers(largest: int) -> list[int]:
    """Return the powers of ten from 10, and the largest value."""
    values = [10**n for n in range(1, 9) if 10**n < largest]
    return [*values, largest]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of the logarithms between the last two points, NaN without two points."""
    if len(xs) < 2 or min(ys[-2:]) <= 0:
        return math.nan
    return math.log(ys[-1] / ys[-2]) / math.log(xs[-1] / xs[-2])


def describe_growth(growth: Growth) -> str:
    """Return the line of a quantity: its values, exponents and a mark."""
    values = ", ".join(f"{x:g}: {y:.3g}" for x, y in zip(growth.xs, growth.ys, strict=True))
    line = f"{growth.axis:10} {growth.quantity:24} exponent {growth.exponent:5.2f}"
    mark = " GROWS FASTER" if growth.is_too_fast else ""
    return f"{line}, expected {growth.expected:4.2f}{mark} ({values})"


def measure_runs(folder: pathlib.Path, template: str, numbers: Sequence[int]) -> list[Growth]:
    """Return processor seconds to load, fit and report sweeps of several numbers of runs."""
    from lm import laws
    from lm.reports import report
    from lm.runs import records

    seconds: dict[str, list[float]] = {}
    for number in numbers:
        sweep = folder / f"sweep-{number}"
        copy_runs(sweep, pathlib.Path(template), number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copied records have no checksums
            rows = _timed(seconds, "load_runs, s", lambda s=sweep: records.load_runs(s))
            _timed(seconds, "power law, s", lambda r=rows: laws.power(r, mixed=True))
            if _REPORT.value:
                _timed(seconds, "report, s", lambda s=sweep: report.write_report(s))
    return [Growth("runs", name, numbers, values) for name, values in seconds.items()]


def copy_runs(folder: pathlib.Path, template: pathlib.Path, number: int) -> None:
    """Write a sweep of copies of the runs of another sweep, with other names and seeds.

    Raises ValueError if the other folder has no runs.
    """
    from lm.runs import filesystem, json_files

    runs = [file.parent for file in filesystem.find_files(template, "config.json")]
    if not runs:
        raise ValueError(f"--template={template} contains no runs: name the folder of a sweep")
    names = []
    for index in range(number):
        source = runs[index % len(runs)]
        run = folder / f"{source.name}-copy{index}"
        shutil.copytree(source, run)
        config = json_files.read_record(run / "config.json")
        config |= {"name": f"{folder.name}/{run.name}", "seed": index}
        config["is_prediction_target"] = False
        json_files.write_record(run / "config.json", config)
        names.append(config["name"])
    json_files.write_record(folder / "sweep.json", {"sweep": folder.name, "runs": names})


def measure_documents(folder: pathlib.Path, numbers: Sequence[int]) -> list[Growth]:
    """Return processor seconds to prepare several numbers of documents, and bytes of the cache."""
    from lm.data import dataset

    results: dict[str, list[float]] = {}
    for number in numbers:
        text = folder / f"text-{number}.jsonl"
        documents = (
            " ".join(WORDS[(index * k) % len(WORDS)] for k in range(1, 40)) + f" {index}"
            for index in range(number)
        )
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
        text.write_text(lines, encoding="utf-8")
        data = schema.Data(
            sources={f"jsonl:{text}": 1.0}, cache_dir=str(folder / f"cache-{number}")
        )
        data.heldout_fraction = 0.0  # ten documents are too few for a held-out part
        _timed(results, "prepare, s", lambda d=data: dataset.open_dataset(d, 0))
        files = pathlib.Path(data.cache_dir).rglob("*")
        n_bytes = sum(file.stat().st_size for file in files if file.is_file())
        results.setdefault("prepared text, MiB", []).append(n_bytes / MIB)
    return [Growth("documents", name, numbers, values) for name, values in results.items()]


def measure_model(axis: str, field: str, values: Sequence[int]) -> list[Growth]:
    """Return the temporaries of the compiled step, and seconds to trace and to compile it."""
    from lm.parallel import mesh

    mesh.initialize_devices()
    results: dict[str, list[float]] = {}
    planned, estimated = [], []
    for value in values:
        run = model_run({field: value})
        temporaries, estimate = _timed(results, "compile, s", lambda r=run: _step_memory(r))
        planned.append(temporaries / MIB)
        estimated.append(estimate / MIB)
    memory = Growth(axis, "temporaries, MiB", values, planned, slope(values, estimated))
    return [memory, Growth(axis, "compile, s", values, results["compile, s"])]


def model_run(changes: Mapping[str, int]) -> schema.Run:
    """Return a small run with other values of fields. The other widths follow d_model."""
    width = changes.get("model.d_model", 64)
    run = schema.Run(name="growth")
    run.model = schema.Model(
        d_model=width, n_layers=2, n_heads=2, n_kv_heads=2, d_head=width // 2,
        d_ff=-(-8 * width // 3 // 16) * 16, vocab_size=changes.get("model.vocab_size", 256),
    )  # fmt: skip
    run.data.batch_size = changes.get("data.batch_size", 4)
    run.data.seq_len = changes.get("data.seq_len", 128)
    return run


def _step_memory(run: schema.Run) -> tuple[float, float]:
    """Return the bytes of the temporaries of a compiled step per device: planned, estimated."""
    import jax

    from lm.model import memory_estimate
    from lm.parallel import mesh
    from lm.training import step

    functions = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    with jax.set_mesh(functions.mesh):
        lowered = functions.step.lower(functions.abstract, functions.batch, functions.inputs)
        plan = lowered.compile().memory_analysis()
    assert plan is not None  # XLA plans memory on CPU
    n_devices, platform = functions.mesh.size, mesh.device_platform(functions.mesh)
    estimate = memory_estimate.estimate_memory(run, n_devices, platform)
    return plan.temp_size_in_bytes, estimate.temporaries


def _timed(seconds: dict[str, list[float]], name: str, call: Callable[[], Any]) -> Any:
    """Return the result of a call, and append its processor seconds to seconds[name]."""
    start = time.process_time()
    result = call()
    seconds.setdefault(name, []).append(time.process_time() - start)
    return result


if __name__ == "__main__":
    cli.run_main(main)
