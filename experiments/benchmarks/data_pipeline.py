"""Time text preparation and batch loading, and measure their memory: one JSON line per measurement.

    uv run python -m experiments.benchmarks.data_pipeline --megabytes=50
    RAYON_NUM_THREADS=1 uv run python -m experiments.benchmarks.data_pipeline
    uv run python -m experiments.benchmarks.data_pipeline --documents=10000,100000

The second command limits each worker to one core. The text is Python's standard library, repeated,
in gzipped JSON Lines. A number before each document makes it unique. Each measurement runs in a new
process. Its peak memory is the sum over the process and its largest worker. Batches have 1024 rows
of 256 tokens, from the files that the preparation wrote.

The third command instead measures numbers of short documents: 20 random words each, of which 5% are
equal to an earlier document and 5% are near-duplicates. It times the hash store of near-duplicate
removal alone, with random hashes, and the whole preparation by both engines.
"""

import concurrent.futures
import gzip
import importlib.util
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
_DOCUMENTS = flags.DEFINE_list(
    "documents", [], "numbers of short documents to measure instead, separated by commas"
)

N_FILES = 10
MAX_DOCUMENT_CHARACTERS = 4000
WORDS_PER_DOCUMENT, N_WORDS = 20, 5000
DOCUMENTS_PER_BLOCK = 1000
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
    for n_documents in map(int, _DOCUMENTS.value):
        _measure_documents(n_documents)
    if _DOCUMENTS.value:
        return 0
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


def _measure_documents(n_documents: int) -> None:
    """Measure the hash store and both engines on a number of short documents."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "hashes"))
        _print_result("hash store", _run_in_process(measure_hash_store, store, n_documents))
        source = _write_short_documents(Path(folder), n_documents)
        settings: list[tuple[str, dict]] = [
            ("builtin", {}),
            ("builtin, near-duplicates", {"drop_near_duplicates": True}),
        ]
        if importlib.util.find_spec("datatrove"):
            settings.append(("datatrove", {"engine": True}))
        for name, options in settings:
            cache = str(Path(folder, name))
            result = _run_in_process(measure_short_documents, source, cache, **options)
            _print_result(f"prepare by {name}", result)


def _write_short_documents(folder: Path, n_documents: int) -> str:
    """Write N_FILES files of random documents with duplicates. Return their source name."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(row) for row in rng.choice(letters, (N_WORDS, 6))])
    texts: list[str] = []
    for number in range(N_FILES):
        with open(folder / f"{number}.jsonl", "w") as file:
            for _ in range(n_documents // N_FILES):
                kind = rng.random() if texts else 1.0
                if kind < 0.1:
                    text = texts[rng.integers(len(texts))] + (" again" if kind < 0.05 else "")
                else:
                    text = " ".join(words[rng.integers(0, N_WORDS, WORDS_PER_DOCUMENT)])
                    texts.append(text)
                    del texts[:-DOCUMENTS_PER_BLOCK]
                file.write(json.dumps({"text": text}) + "\n")
    return f"jsonl:{folder}/*.jsonl"


def measure_hash_store(folder: str, n_documents: int) -> dict:
    """Add random documents to the hash store, and return the processor time of one document."""
    from lm.data import preprocessing
    from lm.data.prepared import document_hashes

    hashes, rng, seconds = document_hashes.DocumentHashes(Path(folder)), np.random.default_rng(0), 0
    for _ in range(n_documents // DOCUMENTS_PER_BLOCK):
        shape = DOCUMENTS_PER_BLOCK, preprocessing.N_BANDS
        digests = [rng.bytes(32) for _ in range(DOCUMENTS_PER_BLOCK)]
        bands = rng.integers(0, 2**63, shape, np.uint64).tolist()
        start = _cpu_seconds()
        for digest, row in zip(digests, bands, strict=True):
            if hashes.add(digest) and not hashes.has_band(row):
                hashes.add_bands(row)
        seconds += _cpu_seconds() - start
    start = _cpu_seconds()
    hashes.write(Path(f"{folder}.u64"))
    seconds += _cpu_seconds() - start
    return {
        "documents": n_documents,
        "cpu_seconds": seconds,
        "microseconds_per_document": 1e6 * seconds / n_documents,
        "disk_bytes_per_document": Path(f"{folder}.u64").stat().st_size / n_documents,
    }


def measure_short_documents(
    source: str, cache: str, drop_near_duplicates: bool = False, engine: bool = False
) -> dict:
    """Prepare a source in bytes, and return the processor time of one document."""
    from lm.config import schema
    from lm.data import corpus
    from lm.data.large_corpora import datatrove_engine

    data = schema.Data({source: 1.0}, cache, drop_near_duplicates=drop_near_duplicates)
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    manifest = corpus.prepare_corpus(
        data, engine=datatrove_engine.DatatroveEngine() if engine else None
    )[source]
    seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
    n_documents = (
        sum(manifest.documents.values()) + manifest.duplicates + sum(manifest.dropped.values())
    )
    return {
        "documents": n_documents,
        "duplicates": manifest.duplicates,
        "near_duplicates": manifest.dropped.get("near_copy", 0),
        "wall_seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "microseconds_per_document": 1e6 * cpu_seconds / n_documents,
    }


def _run_in_process(measure: Callable[..., dict], *arguments: Any, **options: Any) -> dict:
    """Return the result of measure() in a new process, with its peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_with_peak_memory, measure, *arguments, **options).result()


def _with_peak_memory(measure: Callable[..., dict], *arguments: Any, **options: Any) -> dict:
    """Return the result of measure() and the peak memory of this process and a worker."""
    result = measure(*arguments, **options)
    targets = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak_kib = sum(resource.getrusage(target).ru_maxrss for target in targets)
    return result | {"peak_mib": peak_kib / 1024}


def _print_result(name: str, result: dict) -> None:
    """Print a JSON line with the name of the measurement and rounded values."""
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in result.items()}
    console.print_line(json.dumps({"measurement": name} | rounded))


if __name__ == "__main__":
    cli.run_main(main)
