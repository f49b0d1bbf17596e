"""Prepare a source by datatrove: stages of tasks, executors, and completion.

    engine = DatatroveEngine(executor="local", n_tasks=8, n_workers=2)
    manifests = corpus.prepare_corpus(data, engine=engine.encode)

Stages: [read, filter, encode], or with data.quality_filters="...,minhash" also the signatures,
buckets and clusters of MinHash before. Completed tasks have a file in LOGS/completions and are not
repeated. The tasks write files of encoded documents. This process then writes the corpus from
these files, in order, by the code of the built-in preparation: equal documents are dropped, counts
and hashes are computed.

data/datatrove-wiki-91c07d44e3b5/
    tasks.json               number of tasks
    task-00000.records       encoded documents of a task
    encode/, sign/, ...      logs and completion files of a stage
    minhash/                 signatures, buckets and clusters
"""

import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config import schema
from lm.data import preprocessing, splits, tokenizers
from lm.data.large_corpora import pipeline_steps, task_records
from lm.data.sources import documents
from lm.runs import json_files

EXECUTORS = ("local", "slurm", "ray")
# Class of an executor of datatrove, in datatrove.executor.NAME.
_CLASSES = {
    "local": "LocalPipelineExecutor",
    "slurm": "SlurmPipelineExecutor",
    "ray": "RayPipelineExecutor",
}
SLURM_OPTIONS = {"partition": str, "time": str, "cpus_per_task": int, "mem_per_cpu_gb": int}


class TasksSubmitted(Exception):
    """Tasks are waiting or running on a cluster. The same command continues after their end.

    args: one message per source.
    """


@dataclasses.dataclass(frozen=True)
class EncodingRequest:
    """A source whose documents are encoded. folder: folder for the files of the tasks."""

    source: str
    data: schema.Data
    tokenizer: tokenizers.Tokenizer
    split: splits.Split
    folder: Path


@dataclasses.dataclass(frozen=True)
class DatatroveEngine:
    """Executor of datatrove with its options.

    executor: one of EXECUTORS; "ray" has not been run with this project. n_tasks: tasks of a
    source; 0 is one per file. n_workers: tasks at a time; -1 is no limit. slurm: options of sbatch,
    such as "--partition=cpu --time=4:00:00".
    """

    executor: str = "local"
    n_tasks: int = 0
    n_workers: int = 1
    slurm: str = ""

    def encode(
        self, request: EncodingRequest, first_part: int = 0
    ) -> Iterator[preprocessing.EncodedDocument]:
        """Run the tasks that are not complete, and yield the documents of all tasks in order.

        first_part: number of the first part that is needed. Raises ValueError for fields that only
        the built-in preparation supports, and for a number of tasks other than that of an
        interrupted call. Raises TasksSubmitted if a cluster has not finished.
        """
        check_supported(request.data)
        n_parts = len(documents.list_shards(request.source))
        n_tasks = min(self.n_tasks or n_parts, n_parts)
        request.folder.mkdir(parents=True, exist_ok=True)
        _check_same_tasks(request, n_tasks)
        last_stage = self._build_stages(request, n_tasks)
        last_stage.run()
        paths = [pipeline_steps.record_path(request.folder, rank) for rank in range(n_tasks)]
        if n_missing := sum(not path.exists() for path in paths):
            raise TasksSubmitted(
                f"{request.source}: {n_missing} of {n_tasks} tasks are not complete: repeat the"
                f" command after their end; logs are in {request.folder}"
            )
        for rank, path in enumerate(paths):
            if (rank + 1) * n_parts // n_tasks > first_part:
                for document in task_records.read_records(path):
                    if document.part >= first_part:
                        yield document

    def _build_stages(self, request: EncodingRequest, n_tasks: int) -> Any:
        """Return the executor of the last stage, which depends on those of the other stages."""
        names = filter_names(request.data)
        quality_names = [name for name in names if name != pipeline_steps.MINHASH]
        read = pipeline_steps.ReadParts(request.source, request.data.on_error)
        keep = pipeline_steps.FilterDocuments(quality_names)
        arguments = request.folder, request.data, request.tokenizer, request.split, keep
        encode = pipeline_steps.EncodeDocuments(*arguments)
        if pipeline_steps.MINHASH not in names:
            return self._executor(request.folder / "encode", [read, keep, encode], n_tasks)
        minhash: Any = importlib.import_module("datatrove.pipeline.dedup.minhash")
        config = minhash.MinhashConfig()
        top = request.folder / "minhash"
        signatures, buckets, removals = (
            str(top / name) for name in ("signatures", "buckets", "removals")
        )
        stages = [
            ("sign", [read, keep, minhash.MinhashDedupSignature(signatures, config)], n_tasks),
            (
                "buckets",
                [minhash.MinhashDedupBuckets(signatures, buckets, config=config)],
                config.num_buckets,
            ),
            ("cluster", [minhash.MinhashDedupCluster(buckets, removals, config)], 1),
            ("encode", [read, keep, minhash.MinhashDedupFilter(removals), encode], n_tasks),
        ]
        previous = None
        for name, steps, n_stage_tasks in stages:
            previous = self._executor(request.folder / name, steps, n_stage_tasks, previous)
        return previous

    def _executor(
        self, logs: Path, steps: list[Any], n_tasks: int, previous: Any | None = None
    ) -> Any:
        """Return an executor of datatrove for one stage, after the stage `previous`."""
        try:
            module: Any = importlib.import_module(f"datatrove.executor.{self.executor}")
        except ImportError as error:
            raise ValueError(
                f"--executor={self.executor} needs a package that is not installed"
                f" ({error.name}): run uv sync --extra datatrove"
            ) from None
        options: dict[str, Any] = {
            **{"pipeline": steps, "tasks": n_tasks, "workers": self.n_workers},
            **{"logging_dir": str(logs.absolute()), "depends": previous},
        }
        if self.executor == "slurm":
            options |= parse_slurm_options(self.slurm)
            options |= {"job_name": f"prepare-{logs.name}", "env_command": _worker_environment()}
        return getattr(module, _CLASSES[self.executor])(**options)


def filter_names(data: schema.Data) -> list[str]:
    """Return the names in data.quality_filters. Raises ValueError for an unknown name."""
    names = [name for name in data.quality_filters.replace(" ", "").split(",") if name]
    known = [*pipeline_steps.FILTERS, pipeline_steps.MINHASH]
    for name in names:
        if name not in known:
            raise ValueError(
                f"data.quality_filters: {name!r} is not one of {', '.join(known)}: correct the name"
            )
    return names


def check_supported(data: schema.Data) -> None:
    """Raise ValueError for fields that only the built-in preparation supports."""
    if data.drop_near_duplicates:
        raise ValueError(
            "data.drop_near_duplicates=True needs --engine=builtin: with datatrove, set"
            " data.quality_filters=minhash"
        )
    if data.decontaminate_ngram:
        raise ValueError(
            f"data.decontaminate_ngram={data.decontaminate_ngram} needs --engine=builtin: set it"
            " to 0"
        )


def _check_same_tasks(request: EncodingRequest, n_tasks: int) -> None:
    """Store the number of tasks of a source, or compare it with that of an interrupted call.

    The number defines the files of each task. Raises ValueError for another number.
    """
    path = request.folder / "tasks.json"
    if not path.exists():
        json_files.write_record(path, {"n_tasks": n_tasks})
        return
    n_stored = json_files.read_record(path)["n_tasks"]
    if n_stored != n_tasks:
        raise ValueError(
            f"--num_tasks: {request.source} has {n_tasks} tasks, but {request.folder} contains"
            f" files of {n_stored} tasks: use --num_tasks={n_stored}, or delete the folder"
        )


def parse_slurm_options(text: str) -> dict[str, Any]:
    """Return the options of the SLURM executor of datatrove for options of sbatch.

    Raises ValueError without a partition or a time, which datatrove requires.
    """
    options: dict[str, Any] = {"sbatch_args": {}}
    words = shlex.split(text)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not value:
            raise ValueError(f"--slurm: {word!r} must have the form --NAME=VALUE")
        key = name.replace("-", "_")
        if key in SLURM_OPTIONS:
            try:
                options[key] = SLURM_OPTIONS[key](value)
            except ValueError:
                raise ValueError(f"--slurm: {word!r} must be a whole number") from None
        else:
            options["sbatch_args"][name] = value
    for name in ("partition", "time"):
        if name not in options:
            raise ValueError(
                f"--slurm={text!r} lacks --{name}=...: write --slurm='--partition=cpu"
                " --time=4:00:00'"
            )
    return options


def _worker_environment() -> str:
    """Return shell commands that give a task on another node the environment of this process."""
    folder = shlex.quote(os.path.dirname(sys.executable))
    path = shlex.quote(os.pathsep.join(entry for entry in sys.path if entry))
    return f"export PATH={folder}:$PATH PYTHONPATH={path}; cd {shlex.quote(os.getcwd())}"
