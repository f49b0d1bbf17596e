"""Time token files in a simulated bucket: one JSON line per measurement.

    uv run python -m experiments.benchmarks.remote_tokens --latency=0.05 --step_seconds=0.1

The bucket is memory:// with a latency per request. Each step sleeps for --step_seconds, as a train
step occupies the device, and then waits for its batch, which a thread prepares as in training. The
measurement begins after the first step. Local files are read without a pause, for the largest rate.
"""

import contextlib
import json
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
from absl import flags

from experiments.common import cli, console

_LATENCY = flags.DEFINE_float("latency", 0.05, "seconds per request", lower_bound=0.0)
_STEP = flags.DEFINE_float("step_seconds", 0.1, "seconds per simulated step", lower_bound=0.0)
_STEPS = flags.DEFINE_integer("steps", 60, "number of measured steps", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 64, "rows per step of this host", lower_bound=1)
_SEQ_LEN = flags.DEFINE_integer("seq_len", 1024, "tokens per row", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 32_000_000, "tokens of the file", lower_bound=1000)


def main() -> int:
    """Measure batches from a local file, and the waiting time for batches from the bucket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.bin")
        ids = np.random.default_rng(0).integers(1, 256, _TOKENS.value).astype("<u2")
        ids[999::1000] = 0
        ids.tofile(path)
        files = fsspec.filesystem("memory")
        files.put_file(str(path), "/bucket/a.bin")
        local = _open(f"tokens:{path}", folder)
        local.batch(0)
        start = time.perf_counter()
        for step in range(1, _STEPS.value + 1):
            local.batch(step)
        n_tokens = _STEPS.value * _ROWS.value * _SEQ_LEN.value
        rate = n_tokens / (time.perf_counter() - start) / 1e6
        _print_result("local file", {"million_tokens_per_second": rate})
        remote = _open("tokens:memory://bucket/a.bin", folder)
        with _added_latency(files, _LATENCY.value):
            _print_result("bucket", _measure_waiting(remote))
    return 0


def _open(source: str, folder: str):
    """Open the dataset of a token file."""
    from lm.config import schema
    from lm.data import dataset

    data = schema.Data({source: 1.0}, folder, heldout_fraction=0.1)
    data.seq_len, data.batch_size = _SEQ_LEN.value, _ROWS.value
    return dataset.open_dataset(data, seed=0)


def _measure_waiting(tokens) -> dict:
    """Return the waiting time for the batches of simulated steps."""
    from lm.data import prefetch

    waits = []
    with contextlib.closing(
        prefetch.prefetch_batches(tokens.batch, 0, _STEPS.value + 1)
    ) as batches:
        next(batches)
        for _ in range(_STEPS.value):
            time.sleep(_STEP.value)
            start = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - start)
    return {
        "latency": _LATENCY.value,
        "step_seconds": _STEP.value,
        "waiting_percent": 100 * sum(waits) / (_STEPS.value * _STEP.value),
        "longest_wait_seconds": max(waits),
        "million_tokens_per_second": _ROWS.value * _SEQ_LEN.value / _STEP.value / 1e6,
    }


@contextlib.contextmanager
def _added_latency(files, seconds: float):
    """Add a latency to the requests of a file system."""
    kind, original = type(files), type(files).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        time.sleep(seconds)
        return original(self, path, start=start, end=end, **options)

    kind.cat_file = cat_file
    try:
        yield
    finally:
        kind.cat_file = original


def _print_result(name: str, result: dict) -> None:
    """Print a JSON line with the name of the measurement and rounded values."""
    rounded = {k: round(v, 4) for k, v in result.items()}
    console.print_line(json.dumps({"measurement": name} | rounded))


if __name__ == "__main__":
    cli.run_main(main)
