"""How fast text is prepared and read again, and in how much memory: a JSON line for each.

uv run python -m experiments.benchmarks.data_pipeline --megabytes=50
RAYON_NUM_THREADS=1 uv run python -m experiments.benchmarks.data_pipeline        # one worker is one
core

The text is Python's standard library over and over, each document with a number before it, in
gzipped JSON Lines. Every line is measured in a process of its own; peak memory is the sum over it
and its largest worker. The loader reads rows of 256 tokens, 1024 at once, from the files made here.
"""

import concurrent.futures
import gzip
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from experiments.common import cli, console

_MEGABYTES = flags.DEFINE_float("megabytes", 25.0, "of text", lower_bound=1.0)
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "numbers of processes to try, in turns")

FILES = 10
ALL = {
    "drop_near_duplicates": True,
    "decontaminate_ngram": 13,
    "min_words": 5,
    "min_letters": 0.3,
    "max_repeats": 0.8,
}
WAYS = {
    "bytes": {},
    "bpe": {"tokenizer": "bpe:8192"},
    "bpe, copies, overlap, filters": {"tokenizer": "bpe:8192"} | ALL,
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        source = _write(Path(folder), _MEGABYTES.value * 1e6)
        for (way, knobs), workers in itertools.product(WAYS.items(), map(int, _WORKERS.value)):
            cache = str(Path(folder, f"{way}-{workers}"))
            _say(_apart(_prepare, source, cache, knobs, workers) | {"what": f"prepare {way}"})
            if workers == 1 and way in ("bytes", "bpe"):
                _say(_apart(_load, source, cache, knobs) | {"what": f"batches {way}"})
    return 0


def _write(folder: Path, n_bytes: float) -> str:
    from lm.data.sources import builtin

    texts = [text for _, text in builtin.python_code()]
    whole = [gzip.open(folder / f"{i}.jsonl.gz", "wt", compresslevel=1) for i in range(FILES)]
    done = 0
    for number, text in enumerate(itertools.cycle(texts)):
        for start in range(0, len(text), 4000):
            piece = f"{number} {start}\n{text[start : start + 4000]}"
            share = min(done / n_bytes, 1 - 1e-9)
            whole[int(share * FILES)].write(json.dumps({"text": piece}) + "\n")
            done += len(piece)
        if done >= n_bytes:
            break
    for file in whole:
        file.close()
    return f"jsonl:{folder}/*.jsonl.gz"


def _prepare(source: str, cache: str, knobs: dict, workers: int) -> dict:
    from lm.config import schema
    from lm.data import corpus, staging

    data = schema.Data({source: 1.0}, cache, **knobs)
    corpus.prepare_tokenizer(
        data, staging.local_folder(data)
    )  # trained before the clock starts: on no more than 32 MB
    began, used = time.perf_counter(), _cpu_seconds()
    manifest = corpus.prepare_corpus(data, workers=workers)[source]
    seconds, used = time.perf_counter() - began, _cpu_seconds() - used
    megabytes = sum(manifest.bytes.values()) / 1e6
    return {
        "workers": workers,
        "megabytes": megabytes,
        "megabytes_per_second": megabytes / seconds,
        "megabytes_per_cpu_second": megabytes / used,
    }


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended: a busy machine does not change it."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _load(source: str, cache: str, knobs: dict) -> dict:
    from lm.config import schema
    from lm.data import dataset

    text = dataset.open_dataset(
        schema.Data({source: 1.0}, cache, seq_len=256, batch_size=1024, **knobs), seed=0
    )
    text.batch(0)
    seconds = []
    for step in range(1, 60):
        began = time.perf_counter()
        text.batch(step)
        seconds.append(time.perf_counter() - began)
    return {
        "million_tokens_per_second": 1024 * 256 / float(np.median(seconds)) / 1e6,
        "of_the_slowest_batch": 1024 * 256 / max(seconds) / 1e6,
    }


def _apart(work, *arguments) -> dict:
    """What work() returns in a new process, with the most memory that it and a worker held."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, work, *arguments).result()


def _measured(work, *arguments) -> dict:
    found = work(*arguments)
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return found | {"peak_mib": sum(resource.getrusage(w).ru_maxrss for w in who) / 1024}


def _say(line: dict) -> None:
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in line.items()}
    console.print_line(json.dumps({"what": rounded.pop("what")} | rounded))


if __name__ == "__main__":
    cli.run_main(main)
