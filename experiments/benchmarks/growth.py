"""Measure how time and memory grow: a line per quantity with its exponent.

    uv run python -m experiments.benchmarks.growth
    uv run python -m experiments.benchmarks.growth --axis=runs --largest=1000 --report
    uv run python -m experiments.benchmarks.growth --axis=documents --largest=1000000
    uv run python -m experiments.benchmarks.growth --axis=size --points=3    # the three smallest

Axes: number of runs of a sweep (load_runs, a power law, with --report also the report), documents
(preparation with byte tokens), rows of a batch, tokens per row, vocabulary, width and size of a
model (the train step: its memory, its time and that of its compilation). Times are processor
seconds. The exponent is the slope of the logarithms between the last two values, where constant
costs matter least. "expected" is that of the arithmetic: 1 for runs and documents, the slope of
memory_estimate.py for memory, of flops.py for the time of a step, and of the number of layers for
its compilation, which uses no cache. A line whose exponent exceeds the expected one by more than
0.1 is marked.
"""

import functools
import json
import math
import pathlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.common import cli, console
from lm.config import schema

_AXES = flags.DEFINE_multi_enum(
    "axis",
    ["runs", "documents", "rows", "tokens", "vocabulary", "width"],
    ["runs", "documents", "rows", "tokens", "vocabulary", "width", "size"],
    "quantity that grows; may be repeated",
)
_LARGEST = flags.DEFINE_integer("largest", 1000, "largest number of runs or documents", 10)
_REPORT = flags.DEFINE_bool("report", False, "also write the report of each number of runs")
_TEMPLATE = flags.DEFINE_string(
    "template", "notebooks/data/real_ladder", "folder of a sweep whose runs are copied"
)
_POINTS = flags.DEFINE_integer("points", 0, "number of values of an axis of a model, 0 for all", 0)
MAX_EXCESS = 0.1  # of a measured exponent over the expected one
MIB = 2**20
WORDS = "the quick brown fox jumps over a lazy dog while others watch from far away".split()
# Axis of a model -> field that grows, and its values.
MODEL_AXES = {
    "rows": ("data.batch_size", (4, 8, 16, 32)),
    "tokens": ("data.seq_len", (128, 512, 2048, 8192)),
    "vocabulary": ("model.vocab_size", (256, 2048, 16384, 131072)),
    "width": ("model.d_model", (64, 128, 256, 512)),
    "size": ("size", ("10K", "100K", "1M", "10M", "100M")),
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
        field, values = MODEL_AXES[axis]
        return measure_model(axis, field, values[: _POINTS.value or None])


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


class StepCost(NamedTuple):
    """Measured and estimated cost of a train step."""

    temporaries: float  # MiB per device, planned by XLA
    estimated_temporaries: float  # MiB per device
    state: float  # MiB per device: weights, moments and batch
    seconds: float  # of the processor
    flops: float


def measure_model(axis: str, field: str, values: Sequence[int | str]) -> list[Growth]:
    """Return the memory and the time of the train step, and the time of its compilation."""
    import jax

    from lm.config import model_sizes
    from lm.parallel import mesh

    mesh.initialize_devices()
    jax.config.update("jax_enable_compilation_cache", False)
    xs, n_params, n_layers = [], [], []
    compile_seconds: dict[str, list[float]] = {}
    costs = []
    for value in values:
        run = model_run({field: value})
        counts = model_sizes.count_parameters(run.model)
        xs.append(float(counts["non_embedding"] if field == "size" else value))
        n_params.append(counts["total"])
        n_layers.append(run.model.n_layers)
        compiled = _timed(compile_seconds, "compile, s", lambda r=run: _compile_step(r))
        costs.append(_step_cost(run, *compiled))
    planned, estimated, state, seconds, flops = zip(*costs, strict=True)
    return [
        Growth(axis, "temporaries, MiB", xs, planned, slope(xs, estimated)),
        Growth(axis, "weights and moments, MiB", xs, state, slope(xs, n_params)),
        Growth(axis, "step, s", xs, seconds, slope(xs, flops)),
        Growth(axis, "compile, s", xs, compile_seconds["compile, s"], slope(xs, n_layers)),
    ]


def model_run(changes: Mapping[str, Any]) -> schema.Run:
    """Return a small run with other values of fields. The other widths follow d_model.

    The field "size" replaces the model by one of the ladder.
    """
    from lm.config import model_sizes

    width = changes.get("model.d_model", 64)
    run = schema.Run(name="growth")
    run.model = schema.Model(
        d_model=width, n_layers=2, n_heads=2, n_kv_heads=2, d_head=width // 2,
        d_ff=-(-8 * width // 3 // 16) * 16, vocab_size=changes.get("model.vocab_size", 256),
    )  # fmt: skip
    if "size" in changes:
        run.model = model_sizes.ladder_model(changes["size"], vocab_size=256)
    run.data.batch_size = changes.get("data.batch_size", 4)
    run.data.seq_len = changes.get("data.seq_len", 128)
    return run


def _compile_step(run: schema.Run) -> tuple[Any, Any]:
    """Return the functions of a run and its compiled step."""
    import jax

    from lm.parallel import mesh
    from lm.training import step

    functions = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    with jax.set_mesh(functions.mesh):
        lowered = functions.step.lower(functions.abstract, functions.batch, functions.inputs)
        return functions, lowered.compile()


def _step_cost(run: schema.Run, functions: Any, compiled: Any) -> StepCost:
    """Return the cost of the second call of a compiled step, on rows of zeros."""
    import jax

    from lm.config import flops
    from lm.model import memory_estimate
    from lm.parallel import mesh

    plan = compiled.memory_analysis()
    assert plan is not None  # XLA plans memory on CPU
    n_devices, platform = functions.mesh.size, mesh.device_platform(functions.mesh)
    estimate = memory_estimate.estimate_memory(run, n_devices, platform)
    seconds: dict[str, list[float]] = {}
    with jax.set_mesh(functions.mesh):
        state = functions.init(0)
        batch = jax.tree.map(
            lambda array: jax.device_put(np.zeros(array.shape, array.dtype), array.sharding),
            functions.batch,
        )
        for _ in range(2):
            call = functools.partial(compiled, state, batch, functions.inputs)
            state, _ = _timed(seconds, "step", lambda c=call: jax.block_until_ready(c()))
    tokens = run.data.batch_size * run.data.seq_len
    return StepCost(
        plan.temp_size_in_bytes / MIB,
        estimate.temporaries / MIB,
        plan.argument_size_in_bytes / MIB,
        seconds["step"][-1],
        tokens * flops.flops_per_token(run.model, run.data.seq_len)["full"],
    )


def _timed(seconds: dict[str, list[float]], name: str, call: Callable[[], Any]) -> Any:
    """Return the result of a call, and append its processor seconds to seconds[name]."""
    start = time.process_time()
    result = call()
    seconds.setdefault(name, []).append(time.process_time() - start)
    return result


if __name__ == "__main__":
    cli.run_main(main)
