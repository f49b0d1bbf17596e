"""Prepare each source once as token files, with a manifest of their contents.

    manifests = prepare_corpus(schema.Data(sources={"code": 0.5, "text:books": 0.5}))

data/text-books-3f2a81c09d7e/
    manifest.json    counts, hashes, versions, checksums: see prepared/corpus_manifest.py
    train.bin        token ids; the tokenizer's end token follows each document
    heldout.bin      the same for held-out documents
    tokenizer.json   tokenizer, unless tokens are bytes: see tokenizers.py
    seen.u64         document hashes, only with data.drop_near_duplicates
data/blocked-13-0d6f2c81b9a4.u64    n-grams that decontamination cuts: see blocked_ngrams.py
data/bpe-8192-91c07d44e3b5/      for data.tokenizer="bpe:8192": see bpe_training.py

A data.cache_dir in a bucket has the same folders: see staging.py.
"""

import contextlib
import dataclasses
import functools
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import fields, schema
from lm.data import preprocessing, splits, staging, tokenizers
from lm.data.filters import blocked_ngrams, decontamination
from lm.data.large_corpora import datatrove_engine
from lm.data.prepared import block_checksums, corpus_manifest, temporary_folders
from lm.data.pretokenized import token_source
from lm.data.sources import documents, source_files
from lm.data.tokenization import bpe_training
from lm.runs import filesystem

WORD_FORMAT = 2  # Part of keys whose filters count words. Increase it if they change.
SPLITS = staging.SPLITS
REPORT_SECONDS = 0.2  # minimum time between progress reports


# Called with the source, and the documents, bytes and fraction of it that are read so far.
ProgressCallback = Callable[[str, int, int, float], None]


@dataclasses.dataclass(frozen=True)
class CorpusPlan:
    """Everything that determines the preparation of one source, computed once."""

    source: str
    data: schema.Data
    folder: Path  # local folder of the finished corpus
    key: str  # part of the folder name: hash of fields, tokenizer and fingerprint
    staging_name: str  # name of the staged corpus: does not depend on the fingerprint
    fingerprint: list  # see documents.source_fingerprint
    earlier_manifests: list[corpus_manifest.Manifest]  # sources whose documents count as duplicates
    blocked_ngrams: Path | None  # index of n-grams that are cut out of training text
    engine: datatrove_engine.DatatroveEngine | None  # None encodes in this and worker processes

    def expected_values(self, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
        """Return the values of the manifest that follow from the config and the tokenizer."""
        return {
            "source": self.source,
            "key": self.key,
            "heldout": self.data.heldout_fraction,
            "tokenizer": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
        } | ({} if self.has_tokens else {"dtype": np.dtype(tokenizer.dtype).name})

    @property
    def has_tokens(self) -> bool:
        """True if the source consists of token files of another trainer."""
        return token_source.is_token_source(self.source)


def prepare_corpus(
    data: schema.Data,
    report: ProgressCallback | None = None,
    workers: int = 1,
    verify_all: bool = False,
    engine: datatrove_engine.DatatroveEngine | None = None,
) -> dict[str, corpus_manifest.Manifest]:
    """Return {source: manifest}. Prepare the sources that data.cache_dir does not contain yet.

    report: called about 5 times per second. workers: number of processes that encode text.
    verify_all: verify token files of any size. engine: encodes documents by datatrove.

    A prepared source is not read again. Its files are verified once per process, at more than 1
    GB/s; token files above corpus_manifest.WHOLE_FILE_BYTES are verified when they are read. A
    damaged source is prepared again, after a line on stderr that names the file. A new source is
    staged in a temporary folder, which is renamed when it is complete. After a killed call, the
    next call resumes after the last saved part (file). If two calls prepare the same source at the
    same time, the slower call deletes its copy. With data.drop_near_duplicates, documents of
    sources with alphabetically earlier names count as duplicates. Memory use does not grow with the
    amount of text. With data.on_error="skip", unreadable documents are counted and skipped. Raises
    ValueError for text that is missing, empty, binary, not UTF-8 or malformed, and for folders that
    cannot be written. Raises TasksSubmitted if a cluster has not finished.
    """
    cache = staging.local_folder(data)
    fingerprint = functools.cache(functools.partial(documents.source_fingerprint, cache=cache))
    temporary_folders.remove_abandoned(cache)
    tokenizer = bpe_training.prepare_tokenizer(data, cache, report)
    manifests: dict[str, corpus_manifest.Manifest] = {}
    submitted_tasks: list[str] = []
    for source in sorted(data.sources):
        earlier_manifests = list(manifests.values()) if data.drop_near_duplicates else []
        plan = _plan_corpus(source, data, cache, tokenizer, earlier_manifests, fingerprint)
        plan = dataclasses.replace(plan, engine=engine)
        try:
            manifests[source] = _prepare_source(plan, tokenizer, report, workers, verify_all)
        except datatrove_engine.TasksSubmitted as tasks:
            submitted_tasks += tasks.args
    if submitted_tasks:
        raise datatrove_engine.TasksSubmitted(*submitted_tasks)
    return {source: manifests[source] for source in data.sources}


def _plan_corpus(
    source: str,
    data: schema.Data,
    cache: Path,
    tokenizer: tokenizers.Tokenizer,
    earlier_manifests: list[corpus_manifest.Manifest],
    fingerprint: Callable[[str], list],
) -> CorpusPlan:
    """Compute the keys and folders of a source."""
    inputs = [
        (name, fingerprint(name), *splits.split_facts(name))
        for name in blocked_ngrams.decontamination_sources(data)
    ]
    changed = list(fields.changed_for_hash(data, "corpus").items())
    facts = (staging.FORMAT, source, data.heldout_fraction, tokenizer.hash, changed)
    facts += (inputs, [manifest.key for manifest in earlier_manifests])
    facts += splits.split_facts(source)
    if data.min_words or data.drop_near_duplicates or data.decontaminate_ngram:
        facts += (WORD_FORMAT,)
    key = staging.content_key(*facts, fingerprint(source))
    # The end of a path is its most specific part. The key contains the whole source.
    path = re.sub("instruction=[^&]*", "", source.lower())
    name = "-".join(re.findall(r"[a-z0-9]+", path)[-5:])[-60:]
    index_key = staging.content_key(
        staging.FORMAT,
        WORD_FORMAT,
        data.decontaminate_ngram,
        data.heldout_fraction,
        data.decontaminate_against,
        data.on_error,
        inputs,
    )
    return CorpusPlan(
        source=source,
        data=data,
        folder=cache / f"{name}-{key}",
        key=key,
        staging_name=f"{name}-{staging.content_key(*facts)}",
        fingerprint=fingerprint(source),
        earlier_manifests=earlier_manifests,
        blocked_ngrams=cache / f"blocked-{data.decontaminate_ngram}-{index_key}.u64"
        if data.decontaminate_ngram
        else None,
        engine=None,
    )


def _prepare_source(
    plan: CorpusPlan,
    tokenizer: tokenizers.Tokenizer,
    report: ProgressCallback | None,
    workers: int,
    verify_all: bool,
) -> corpus_manifest.Manifest:
    """Return the manifest of a source from the local or remote cache, or prepare the source."""
    try:
        staging.download(plan.data, plan.folder)
        try:
            manifest = _open_prepared(plan, tokenizer, verify_all)
        except block_checksums.DamagedText as damage:
            manifest = _repair(plan, tokenizer, damage, report, workers)
        if manifest is None:
            manifest = _write_corpus(plan, tokenizer, report, workers)
        # Another process may have prepared a source whose staged corpus was interrupted.
        temporary_folders.remove_unused(plan.folder.with_name(f".{plan.staging_name}"))
        staging.upload(plan.data, plan.folder)
    except OSError as error:
        raise staging.unwritable_cache(plan.data, error) from None
    return dataclasses.replace(
        manifest,
        folder=str(plan.folder),
        remote_folder=staging.remote_folder(plan.data, plan.folder),
    )


def _open_prepared(
    plan: CorpusPlan, tokenizer: tokenizers.Tokenizer, verify_all: bool = False
) -> corpus_manifest.Manifest | None:
    """Return the manifest of a prepared source, None if it has no folder.

    A damaged copy of the tokenizer is replaced. Raises DamagedText if another file is damaged.
    """
    if not plan.folder.exists():
        return None
    manifest = corpus_manifest.read_manifest(plan.folder)
    manifest.remote_folder = staging.remote_folder(plan.data, plan.folder)
    corpus_manifest.verify_values(manifest, plan.expected_values(tokenizer))
    corpus_manifest.verify_tokenizer_files(manifest, tokenizer)
    corpus_manifest.verify_files(manifest, verify_all)
    if plan.data.drop_near_duplicates and not manifest.remote_folder:
        path = staging.fetch_hashes(plan.data, plan.folder)
        if not path.exists():
            raise block_checksums.DamagedText(f"{path} is missing")
    if not manifest.checksums:
        is_lossless = plan.data.tokenizer.partition(":")[0] in ("bytes", "bpe")
        corpus_manifest.verify_counts(manifest, tokenizer, is_lossless)
        block_checksums.print_note(
            f"note: {plan.folder} has no checksums, because version 0.2.0 prepared it: only its"
            " counts are verified"
        )
    return manifest


def _repair(
    plan: CorpusPlan,
    tokenizer: tokenizers.Tokenizer,
    damage: block_checksums.DamagedText,
    report: ProgressCallback | None,
    workers: int,
) -> corpus_manifest.Manifest:
    """Replace a damaged source by its remote copy, or prepare it again.

    Raises ValueError if its text cannot be read.
    """
    if filesystem.is_remote(plan.data.cache_dir):
        shutil.rmtree(plan.folder)
        staging.download(plan.data, plan.folder)
        with contextlib.suppress(block_checksums.DamagedText):
            if manifest := _open_prepared(plan, tokenizer, verify_all=True):
                print(f"{damage}: downloaded again", file=sys.stderr, flush=True)
                return manifest
    print(f"{damage}: {plan.source} is prepared again", file=sys.stderr, flush=True)
    old_hash = ""
    with contextlib.suppress(block_checksums.DamagedText):
        stored = corpus_manifest.read_manifest(plan.folder)
        old_hash = stored.hash if stored.key == plan.key else ""
    try:
        manifest = _write_corpus(plan, tokenizer, report, workers)
    except ValueError as error:
        raise ValueError(f"{damage}, and the text cannot be prepared again: {error}") from None
    staging.discard_remote(plan.data, plan.folder)
    if old_hash not in ("", manifest.hash):
        problem = f"has other documents now: hash {manifest.hash[:12]} instead of {old_hash[:12]}"
        print(f"warning: {plan.source} {problem}", file=sys.stderr, flush=True)
    return manifest


def _write_corpus(
    plan: CorpusPlan, tokenizer: tokenizers.Tokenizer, report: ProgressCallback | None, workers: int
) -> corpus_manifest.Manifest:
    """Read, encode and store all documents of a source, and move the result to its folder."""
    if plan.has_tokens:
        return _describe_token_files(plan, tokenizer, report)
    n_parts = len(documents.list_shards(plan.source))
    split = splits.plan_split(plan.source, plan.data.heldout_fraction)
    fingerprints = plan.fingerprint
    if len(fingerprints) != n_parts or split.depends_on_all_files:
        fingerprints = [fingerprints] * n_parts  # each part depends on all values
    if plan.blocked_ngrams:
        read = functools.partial(preprocessing.read_documents, data=plan.data)
        blocked_ngrams.write_blocked_ngrams(plan.blocked_ngrams, plan.data, read, workers)
    earlier_paths = [
        staging.fetch_hashes(plan.data, Path(manifest.folder))
        for manifest in plan.earlier_manifests
    ]
    with staging.StagedCorpus(
        plan.folder.parent, plan.staging_name, fingerprints, earlier_paths
    ) as staged:
        reported_at = time.monotonic()
        for document in _encode_documents(plan, tokenizer, split, staged.part, workers):
            if document.error and plan.data.on_error == "stop":
                raise ValueError(document.error)
            staged.add(document)
            if report and time.monotonic() - reported_at > REPORT_SECONDS:
                reported_at = time.monotonic()
                report(plan.source, *staged.size, document.part / n_parts)
        if report:
            report(plan.source, *staged.size, 1.0)
        manifest = _finish(plan, staged, tokenizer)
        _move_to_cache(plan, staged, tokenizer)
    shutil.rmtree(_task_folder(plan), ignore_errors=True)
    documents.print_omissions(plan.source, manifest.omitted_files, manifest.dropped)
    return manifest


def _encode_documents(
    plan: CorpusPlan,
    tokenizer: tokenizers.Tokenizer,
    split: splits.Split,
    first_part: int,
    workers: int,
) -> Iterator[preprocessing.EncodedDocument]:
    """Yield the encoded documents of a source from a part on, by datatrove or in this process."""
    if plan.engine is not None:
        request = datatrove_engine.EncodingRequest(
            plan.source, plan.data, tokenizer, split, _task_folder(plan)
        )
        return plan.engine.encode(request, first_part)
    if datatrove_engine.filter_names(plan.data):
        raise ValueError(
            f"data.quality_filters={plan.data.quality_filters!r} needs datatrove: start"
            " experiments.prepare --engine=datatrove with this config first"
        )
    texts = preprocessing.read_documents(plan.source, plan.data, first_part)
    arguments = tokenizer, plan.data, split, plan.blocked_ngrams, workers
    return preprocessing.encode_documents(texts, *arguments)


def _task_folder(plan: CorpusPlan) -> Path:
    """Return the folder for the files of the tasks of datatrove."""
    return plan.folder.with_name(f"datatrove-{plan.folder.name}")


def _describe_token_files(
    plan: CorpusPlan, tokenizer: tokenizers.Tokenizer, report: ProgressCallback | None
) -> corpus_manifest.Manifest:
    """Write the manifest of the token files of a source, which remain in their folders."""
    token_source.validate_data(plan.data)
    report_source = functools.partial(report or (lambda *_: None), plan.source)
    fraction = plan.data.heldout_fraction
    values = token_source.describe_tokens(plan.source, tokenizer, fraction, report_source)
    warning = values["warning"] or splits.heldout_warning(plan.source, values, fraction)
    cache, name = plan.folder.parent, plan.staging_name
    with temporary_folders.temporary_folder(cache, name) as folder:
        tokenizer.save(folder)
        fields_of_manifest = plan.expected_values(tokenizer) | values
        fields_of_manifest |= {"warning": warning, "duplicates": 0, "versions": {}}
        fields_of_manifest["omitted_files"] = documents.omitted_files(plan.source)
        manifest = corpus_manifest.Manifest(**fields_of_manifest)
        manifest = corpus_manifest.write_manifest(folder, manifest)
        with contextlib.suppress(block_checksums.DamagedText):
            if _open_prepared(plan, tokenizer) is not None:
                return manifest
        if plan.folder.exists():
            shutil.rmtree(plan.folder)
        temporary_folders.publish_folder(folder, plan.folder)
    documents.print_omissions(plan.source, manifest.omitted_files, {})
    return manifest


def _move_to_cache(
    plan: CorpusPlan, staged: staging.StagedCorpus, tokenizer: tokenizers.Tokenizer
) -> None:
    """Rename a finished corpus to its folder, unless another process has prepared the source."""
    try:
        if _open_prepared(plan, tokenizer, verify_all=True) is not None:
            return
    except block_checksums.DamagedText:
        shutil.rmtree(plan.folder)
    if not staged.move(plan.folder):
        _open_prepared(plan, tokenizer)  # raises DamagedText if the other files are damaged


def _finish(
    plan: CorpusPlan, staged: staging.StagedCorpus, tokenizer: tokenizers.Tokenizer
) -> corpus_manifest.Manifest:
    """Write tokenizer and manifest into the staged folder, and return the manifest.

    Raises ValueError if no document was accepted.
    """
    if not sum(staged.counts["documents"].values()):
        dropped = source_files.format_counts(staged.dropped)
        problem = f"has no accepted document ({dropped})" if dropped else "is empty"
        raise ValueError(f"data.sources: {plan.source!r} {problem}: add text, or remove the source")
    tokenizer.save(staged.folder)
    manifest = corpus_manifest.Manifest(
        **plan.expected_values(tokenizer),
        documents=staged.counts["documents"],
        bytes=staged.counts["bytes"],
        tokens=staged.counts["tokens"],
        counted=staged.counts["counted"],
        groups=staged.counts["groups"],
        duplicates=staged.duplicates,
        hash=staged.finish(plan.data.drop_near_duplicates),
        versions=documents.source_versions(plan.source, plan.fingerprint),
        dropped=dict(staged.dropped),
        cuts=staged.cut_costs.summary(),
        warning=splits.heldout_warning(plan.source, staged.counts, plan.data.heldout_fraction),
        omitted_files=documents.omitted_files(plan.source),
    )
    return corpus_manifest.write_manifest(staged.folder, manifest)


def corpus_notes(manifests: dict[str, corpus_manifest.Manifest]) -> list[str]:
    """Return lines on the cost of decontamination, then warnings of small held-out splits."""
    cuts_by_source = {name: m.cuts for name, m in manifests.items() if m.cuts}
    costs = [f"{name}: {decontamination.describe_costs(c)}" for name, c in cuts_by_source.items()]
    return costs + [f"warning: {m.warning}" for m in manifests.values() if m.warning]
