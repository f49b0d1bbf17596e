"""Time text preparation and batch loading, and measure their memory: one JSON line per measurement.

    uv run python -m experiments.benchmarks.data_pipeline --megabytes=50
    RAYON_NUM_THREADS=1 uv run python -m experiments.benchmarks.data_pipeline

The second command limits each worker to one core. The text is Python's standard library, repeated,
in gzipped JSON Lines. A number before each document makes it unique. Each measurement runs in a new
process. Its peak memory is the sum over the process and its largest worker. Batches have 1024 rows
of 256 tokens, from the files that the preparation wrote.
"""

import concurrent.futures
import gzip
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli, console

_MEGABYTES = flags.DEFINE_float("megabytes", 25.0, "size of the text in MB", lower_bound=1.0)
_WORKERS = flags.DEFINE_list(
    "workers", ["1", "2"], "numbers of worker processes to measure, separated by commas"
)

N_FILES = 10
MAX_DOCUMENT_CHARACTERS = 4000
SEQ_LEN, BATCH_SIZE = 256, 1024
ALL_FILTERS = {
    "drop_near_duplicates": True,
    "decontaminate_ngram": 13,
    "min_words": 5,
    "min_letters": 0.3,
    "max_repeats": 0.8,
}
SETTINGS = {
    "bytes": {},
    "bpe": {"tokenizer": "bpe:8192"},
    "bpe, near-duplicates, decontamination, filters": {"tokenizer": "bpe:8192"} | ALL_FILTERS,
}


def main() -> int:
    """Prepare the text with each setting and number of workers, and load batches of it."""
    with tempfile.TemporaryDirectory() as folder:
        source = _write_text(Path(folder), _MEGABYTES.value * 1e6)
        for (name, fields), n_workers in itertools.product(
            SETTINGS.items(), map(int, _WORKERS.value)
        ):
            cache = str(Path(folder, f"{name}-{n_workers}"))
            result = _run_in_process(measure_preparation, source, cache, fields, n_workers)
            _print_result(f"prepare {name}", result)
            if n_workers == 1 and name in ("bytes", "bpe"):
                result = _run_in_process(measure_loading, source, cache, fields)
                _print_result(f"batches {name}", result)
    return 0


def _write_text(folder: Path, n_bytes: float) -> str:
    """Write about n_bytes of documents into N_FILES files. Return their source name."""
    from lm.data.sources import builtin

    texts = [text for _, text in builtin.python_code()]
    files = [gzip.open(folder / f"{i}.jsonl.gz", "wt", compresslevel=1) for i in range(N_FILES)]
    n_written = 0
    for number, text in enumerate(itertools.cycle(texts)):
        for start in range(0, len(text), MAX_DOCUMENT_CHARACTERS):
            document = f"{number} {start}\n{text[start : start + MAX_DOCUMENT_CHARACTERS]}"
            fraction = min(n_written / n_bytes, 1 - 1e-9)
            files[int(fraction * N_FILES)].write(json.dumps({"text": document}) + "\n")
            n_written += len(document)
        if n_written >= n_bytes:
            break
    for file in files:
        file.close()
    return f"jsonl:{folder}/*.jsonl.gz"


def measure_preparation(source: str, cache: str, fields: dict, n_workers: int) -> dict:
    """Prepare a source. Return its megabytes, and megabytes per wall and processor second."""
    from lm.config import schema
    from lm.data import corpus, staging
    from lm.data.tokenization import bpe_training

    data = schema.Data({source: 1.0}, cache, **fields)
    # The tokenizer is trained before the measurement: its time does not grow beyond 32 MB of text.
    bpe_training.prepare_tokenizer(data, staging.local_folder(data))
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    manifest = corpus.prepare_corpus(data, workers=n_workers)[source]
    seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
    megabytes = sum(manifest.bytes.values()) / 1e6
    return {
        "workers": n_workers,
        "megabytes": megabytes,
        "megabytes_per_second": megabytes / seconds,
        "megabytes_per_cpu_second": megabytes / cpu_seconds,
    }


def _cpu_seconds() -> float:
    """Return the processor seconds of this process and of its workers that have ended.

    Other processes on the machine do not change this time.
    """
    targets = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usages = [resource.getrusage(target) for target in targets]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_loading(source: str, cache: str, fields: dict) -> dict:
    """Load 59 batches of a prepared source. Return the million tokens per second.

    The rates are those of the median batch and of the slowest batch.
    """
    from lm.config import schema
    from lm.data import dataset

    data = schema.Data({source: 1.0}, cache, seq_len=SEQ_LEN, batch_size=BATCH_SIZE, **fields)
    tokens = dataset.open_dataset(data, seed=0)
    tokens.batch(0)
    seconds = []
    for step in range(1, 60):
        start = time.perf_counter()
        tokens.batch(step)
        seconds.append(time.perf_counter() - start)
    million_tokens = BATCH_SIZE * SEQ_LEN / 1e6
    return {
        "million_tokens_per_second": million_tokens / float(np.median(seconds)),
        "slowest_batch_million_tokens_per_second": million_tokens / max(seconds),
    }


def _run_in_process(measure: Callable[..., dict], *arguments: Any) -> dict:
    """Return the result of measure() in a new process, with its peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_with_peak_memory, measure, *arguments).result()


def _with_peak_memory(measure: Callable[..., dict], *arguments: Any) -> dict:
    """Return the result of measure() and the peak memory of this process and a worker."""
    result = measure(*arguments)
    targets = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak_kib = sum(resource.getrusage(target).ru_maxrss for target in targets)
    return result | {"peak_mib": peak_kib / 1024}


def _print_result(name: str, result: dict) -> None:
    """Print a JSON line with the name of the measurement and rounded values."""
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in result.items()}
    console.print_line(json.dumps({"measurement": name} | rounded))


if __name__ == "__main__":
    cli.run_main(main)
