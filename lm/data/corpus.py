"""Prepare each source once as token files, with a manifest of their contents.

    manifests = prepare_corpus(schema.Data(sources={"code": 0.5, "text:books": 0.5}))

data/text-books-3f2a81c09d7e/
    manifest.json    counts, hashes, versions: see Manifest
    train.bin        token ids; the tokenizer's end token follows each document
    heldout.bin      the same for held-out documents
    tokenizer.json   tokenizer, unless tokens are bytes: see tokenizers.py
    seen.sqlite      document hashes, only with data.drop_near_duplicates
data/blocked-13-0d6f2c81b9a4.u64    n-grams that decontamination cuts: see blocked_ngrams.py
data/bpe-8192-91c07d44e3b5/
    tokenizer.json   trained on the sources, for data.tokenizer="bpe:8192"

A data.cache_dir in a bucket has the same folders: see staging.py.
"""

import dataclasses
import functools
import hashlib
import json
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lm.config import fields, schema
from lm.data import preprocessing, splits, staging, tokenizers
from lm.data.filters import blocked_ngrams, decontamination
from lm.data.sources import documents, readers, source_files

FORMAT = 2  # Part of every key. Increase it if the same source would give other tokens.
WORD_FORMAT = 2  # Part of keys whose filters count words. Increase it if they change.
SPLITS = staging.SPLITS
SAMPLE_BYTES = 32_000_000  # bytes of text, over all sources, that train a tokenizer
REPORT_SECONDS = 0.2  # minimum time between progress reports


@dataclasses.dataclass
class Manifest:
    """Description of a prepared source. Equal `hash` and `tokenizer` mean equal token files."""

    source: str
    key: str  # hash of the source files, the split and the tokenizer
    documents: dict[str, int]  # split -> number of documents, without duplicates
    duplicates: int  # documents dropped because an earlier document has the same text
    bytes: dict[str, int]  # split -> UTF-8 bytes of text
    tokens: dict[str, int]  # split -> tokens, including an end token per document
    heldout: float  # requested fraction of held-out documents
    hash: str  # SHA-256 over the documents and their splits, in order
    tokenizer: str  # hash of the tokenizer
    vocab_size: int
    dtype: str  # type of the .bin files
    versions: dict[str, str]  # versions of Python, and of the packages of the source docs
    # Rejected documents by reason: broken, empty, short, symbols, repeats, overlap, near_copy.
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    # Files in the folders of the source that are not read, by suffix or reason.
    omitted_files: dict[str, int] = dataclasses.field(default_factory=dict)
    # split -> bytes that the tokens represent; differs from `bytes` if the tokenizer changes text.
    counted: dict[str, int] = dataclasses.field(default_factory=dict)
    # split -> number of independent groups of documents, such as the files of a text source.
    groups: dict[str, int] = dataclasses.field(default_factory=dict)
    # Cost of decontamination, see decontamination.CutCosts.summary.
    cuts: dict[str, int | str] = dataclasses.field(default_factory=dict)
    warning: str = ""  # too few held-out documents, see splits.heldout_warning
    folder: str = ""  # location; not stored in the file


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
    earlier_manifests: list[Manifest]  # sources whose documents count as duplicates
    blocked_ngrams: Path | None  # index of n-grams that are cut out of training text

    def is_complete(self, manifest: Manifest | None) -> bool:
        """Return True if the folder has a manifest and, where needed, its document hashes.

        manifest: manifest of the folder, None if it has none. The hashes are needed with
        data.drop_near_duplicates.
        """
        if manifest is None:
            return False
        return not self.data.drop_near_duplicates or (self.folder / "seen.sqlite").exists()


def prepare_corpus(
    data: schema.Data, report: ProgressCallback | None = None, workers: int = 1
) -> dict[str, Manifest]:
    """Return {source: manifest}. Prepare the sources that data.cache_dir does not contain yet.

    report: called about 5 times per second. workers: number of processes that encode text.

    A prepared source is not read again: the call reads manifests and needs milliseconds. A new
    source is staged in a temporary folder, which is renamed when it is complete. After a killed
    call, the next call resumes after the last saved part (file). If two calls prepare the same
    source at the same time, the slower call deletes its copy. With data.drop_near_duplicates, the
    documents of sources with alphabetically earlier names count as duplicates. Memory use does not
    grow with the amount of text.

    Raises ValueError for text that is missing, empty, binary or not UTF-8, and for malformed JSON
    Lines. A folder or disk that cannot be written also raises ValueError. With
    data.on_error="skip", unreadable documents are counted and skipped.
    """
    cache = staging.local_folder(data)
    fingerprint = functools.cache(documents.source_fingerprint)
    tokenizer = prepare_tokenizer(data, cache, report)
    manifests: dict[str, Manifest] = {}
    for source in sorted(data.sources):
        earlier_manifests = list(manifests.values()) if data.drop_near_duplicates else []
        plan = _plan_corpus(source, data, cache, tokenizer, earlier_manifests, fingerprint)
        manifests[source] = _prepare_source(plan, tokenizer, report, workers)
    return {source: manifests[source] for source in data.sources}


def _plan_corpus(
    source: str,
    data: schema.Data,
    cache: Path,
    tokenizer: tokenizers.Tokenizer,
    earlier_manifests: list[Manifest],
    fingerprint: Callable[[str], list],
) -> CorpusPlan:
    """Compute the keys and folders of a source."""
    inputs = [
        (name, fingerprint(name), *splits.split_facts(name))
        for name in blocked_ngrams.decontamination_sources(data)
    ]
    changed = list(fields.changed_for_hash(data, "corpus").items())
    facts = (FORMAT, source, data.heldout_fraction, tokenizer.hash, changed)
    facts += (inputs, [manifest.key for manifest in earlier_manifests])
    facts += splits.split_facts(source)
    if data.min_words or data.drop_near_duplicates or data.decontaminate_ngram:
        facts += (WORD_FORMAT,)
    key = _key(*facts, fingerprint(source))
    # The end of a path is its most specific part.
    name = "-".join(re.findall(r"[a-z0-9]+", source.lower())[-5:])[-60:]
    index_key = _key(
        FORMAT,
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
        staging_name=f"{name}-{_key(*facts)}",
        fingerprint=fingerprint(source),
        earlier_manifests=earlier_manifests,
        blocked_ngrams=cache / f"blocked-{data.decontaminate_ngram}-{index_key}.u64"
        if data.decontaminate_ngram
        else None,
    )


def _prepare_source(
    plan: CorpusPlan, tokenizer: tokenizers.Tokenizer, report: ProgressCallback | None, workers: int
) -> Manifest:
    """Return the manifest of a source from the local or remote cache, or prepare the source."""
    try:
        staging.download(plan.data, plan.folder)
        manifest = _read_manifest(plan.folder)
        if manifest is None or not plan.is_complete(manifest):
            manifest = _write_corpus(plan, tokenizer, report, workers)
        staging.upload(plan.data, plan.folder)
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(plan.data, error) from None
    return dataclasses.replace(manifest, folder=str(plan.folder))


def _write_corpus(
    plan: CorpusPlan, tokenizer: tokenizers.Tokenizer, report: ProgressCallback | None, workers: int
) -> Manifest:
    """Read, encode and store all documents of a source, and move the result to its folder."""
    n_parts = len(documents.list_shards(plan.source))
    split = splits.plan_split(plan.source, plan.data.heldout_fraction)
    fingerprints = plan.fingerprint
    if len(fingerprints) != n_parts or split.depends_on_all_files:
        fingerprints = [fingerprints] * n_parts  # each part depends on all values
    if plan.blocked_ngrams:
        read = functools.partial(_read_documents, data=plan.data)
        blocked_ngrams.write_blocked_ngrams(plan.blocked_ngrams, plan.data, read, workers)
    earlier_paths = [Path(manifest.folder, "seen.sqlite") for manifest in plan.earlier_manifests]
    with staging.StagedCorpus(
        plan.folder.parent, plan.staging_name, fingerprints, earlier_paths
    ) as staged:
        reported_at = time.monotonic()
        encoded = preprocessing.encode_documents(
            _read_documents(plan.source, plan.data, staged.part),
            tokenizer,
            plan.data,
            split,
            plan.blocked_ngrams,
            workers,
        )
        for document in encoded:
            if document.error and plan.data.on_error == "stop":
                raise ValueError(document.error)
            staged.add(document)
            if report and time.monotonic() - reported_at > REPORT_SECONDS:
                reported_at = time.monotonic()
                report(plan.source, *staged.size, document.part / n_parts)
        if report:
            report(plan.source, *staged.size, 1.0)
        manifest = _finish(plan, staged, tokenizer)
        if plan.folder.exists() and not plan.is_complete(_read_manifest(plan.folder)):
            shutil.rmtree(plan.folder)  # an interrupted download, or a corrupt folder
        try:
            staged.move(plan.folder)
        except OSError:
            if not plan.is_complete(_read_manifest(plan.folder)):
                raise  # otherwise another process has prepared the source
    documents.print_omissions(plan.source, manifest.omitted_files, manifest.dropped)
    return manifest


def _finish(
    plan: CorpusPlan, staged: staging.StagedCorpus, tokenizer: tokenizers.Tokenizer
) -> Manifest:
    """Write tokenizer and manifest into the staged folder, and return the manifest.

    Raises ValueError if no document was accepted.
    """
    if not sum(staged.counts["documents"].values()):
        dropped = source_files.format_counts(staged.dropped)
        problem = f"has no accepted document ({dropped})" if dropped else "is empty"
        raise ValueError(f"data.sources: {plan.source!r} {problem}: add text, or remove the source")
    tokenizer.save(staged.folder)
    manifest = Manifest(
        source=plan.source,
        key=plan.key,
        documents=staged.counts["documents"],
        bytes=staged.counts["bytes"],
        tokens=staged.counts["tokens"],
        counted=staged.counts["counted"],
        groups=staged.counts["groups"],
        duplicates=staged.duplicates,
        heldout=plan.data.heldout_fraction,
        hash=staged.finish(),
        tokenizer=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        dtype=np.dtype(tokenizer.dtype).name,
        versions=documents.source_versions(plan.source),
        dropped=dict(staged.dropped),
        cuts=staged.cut_costs.summary(),
        warning=splits.heldout_warning(plan.source, staged.counts, plan.data.heldout_fraction),
        omitted_files=documents.omitted_files(plan.source),
    )
    values = dataclasses.asdict(manifest)
    del values["folder"]
    (staged.folder / "manifest.json").write_text(json.dumps(values, indent=2) + "\n")
    if not plan.data.drop_near_duplicates:
        (staged.folder / "seen.sqlite").unlink()  # only needed for duplicates in other sources
    return manifest


def corpus_notes(manifests: dict[str, Manifest]) -> list[str]:
    """Return lines on the cost of decontamination, then warnings of small held-out splits."""
    cuts_by_source = {name: m.cuts for name, m in manifests.items() if m.cuts}
    costs = [f"{name}: {decontamination.describe_costs(c)}" for name, c in cuts_by_source.items()]
    return costs + [f"warning: {m.warning}" for m in manifests.values() if m.warning]


def prepare_tokenizer(
    data: schema.Data, cache: Path, report: ProgressCallback | None = None
) -> tokenizers.Tokenizer:
    """Return the tokenizer of data.tokenizer. Train bpe:SIZE if `cache` does not contain it.

    cache: local folder of all prepared text.
    """
    kind, _, size = data.tokenizer.partition(":")
    if kind != "bpe":
        return tokenizers.open_tokenizer(data.tokenizer)
    weights = sorted((name, weight) for name, weight in data.sources.items() if weight)
    inputs = [
        (name, weight, documents.source_fingerprint(name), *splits.split_facts(name))
        for name, weight in weights
    ]
    key = _key(FORMAT, size, inputs, data.heldout_fraction, data.on_error, SAMPLE_BYTES, "parts")
    folder = cache / f"bpe-{size}-{key}"
    staging.download(data, folder)
    if not (folder / "tokenizer.json").exists():
        temporary = _new_folder(data, cache, folder.name)
        try:
            texts = _tokenizer_sample(data, weights, report)
            tokenizers.train_bpe(texts, int(size)).save(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "tokenizer.json").exists():
                    raise  # otherwise another process has trained the tokenizer
            staging.upload(data, folder)
        except OSError as error:
            raise _unwritable(data, error) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return tokenizers.load_tokenizer(folder)


def _tokenizer_sample(
    data: schema.Data, weights: list[tuple[str, float]], report: ProgressCallback | None
) -> Iterator[str]:
    """Yield the texts that train a tokenizer: training documents of all parts of each source.

    weights: (source, weight) pairs. Each source gives a fraction of SAMPLE_BYTES by its weight, or
    all its text if it has less.
    """
    total = sum(weight for _, weight in weights)
    on_error = readers.raise_error if data.on_error == "stop" else readers.ignore_error
    for source, weight in weights:
        split = splits.plan_split(source, data.heldout_fraction)

        def is_used(document: readers.Document, split: splits.Split = split) -> bool:
            return tokenizers.is_valid_text(document.text) and not split.is_heldout(document)

        n_documents = n_bytes = 0
        sample = documents.sample_source(source, SAMPLE_BYTES * weight / total, is_used, on_error)
        for document in sample:
            yield document.text
            n_documents, n_bytes = n_documents + 1, n_bytes + len(document.text.encode())
        if report:
            label = f"{data.tokenizer} from {source}"
            report(label, n_documents, n_bytes, 1.0)


def _read_documents(source: str, data: schema.Data, start: int = 0) -> Iterator[readers.Document]:
    """Yield the documents of a source, beginning with part number `start`.

    With data.on_error="skip", each unreadable input gives a document with an `error`, in order.
    """
    if data.on_error == "stop":
        yield from documents.open_source(source, start=start)
        return
    errors: list[str] = []
    part = start
    for document in documents.open_source(source, errors.append, start):
        # An error may belong to the previous part. The state is then saved one part later, which is
        # safe.
        part = document.part
        while errors:
            yield readers.Document("", "", part=part, error=errors.pop(0))
        yield document
    for error in errors:
        yield readers.Document("", "", part=part, error=error)


def _key(*facts) -> str:
    """Return 12 hexadecimal digits that name a folder by everything its contents depend on."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _new_folder(data: schema.Data, cache: Path, name: str) -> Path:
    """Create a temporary folder in the cache. The caller renames it when it is complete."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    except OSError as error:
        raise _unwritable(data, error) from None


def _read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest, or None if it is missing, invalid, or a token file has another size."""
    try:
        manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
        width = np.dtype(manifest.dtype).itemsize
        for split in SPLITS:
            if (folder / f"{split}.bin").stat().st_size != manifest.tokens[split] * width:
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dataclasses.replace(manifest, folder=str(folder))


def _unwritable(data: schema.Data, error: Exception) -> ValueError:
    """Return the error that data.cache_dir cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return ValueError(
        f"data.cache_dir={data.cache_dir!r} cannot be written ({reason}): free disk space, or"
        " set another folder"
    )
