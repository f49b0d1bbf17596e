"""Sources prepared once into token files, with a manifest that says what is in them.

manifests = prepare(config.Data(sources={"code": 0.5, "text:books": 0.5}))

data/text-books-3f2a81c09d7e/
    manifest.json    counts, hashes, versions: see Manifest
    train.bin        token ids, the tokenizer's end after each document
    heldout.bin      the same, for the documents held out
    tokenizer.json   what lm/tokens.py reads again, unless the tokens are bytes
data/bpe-8192-91c07d44e3b5/
    tokenizer.json   trained on the sources, for data.tokenizer="bpe:8192"

A data.cache in a bucket holds the same folders: see lm/copies.py.
"""

import dataclasses
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

from lm import config, copies, draft, fields, files, overlap, sift, sources, tokens

FORMAT = 2  # part of every key: raise it when the same source would give other tokens
SPLITS = draft.SPLITS
SAMPLE_BYTES = 32_000_000  # of text, over all sources, on which a tokenizer is trained


@dataclasses.dataclass
class Manifest:
    """What one prepared source holds; equal `hash` and `tokenizer` mean equal token files."""

    source: str
    key: str  # of the text as it lies on this machine, the split and the tokenizer
    documents: dict[str, int]  # split -> count, without duplicates
    duplicates: int  # documents dropped because their text came before
    bytes: dict[str, int]  # split -> bytes of text, UTF-8
    tokens: dict[str, int]  # split -> tokens, with an END for each document
    heldout: float  # share of documents asked for
    hash: str  # SHA-256 over the documents and their splits, in order
    tokenizer: str  # its hash
    vocab_size: int
    dtype: str  # of the .bin files
    versions: dict[str, str]  # of Python, and of the packages for docs
    # Documents left out, by reason: broken, short, symbols, repeats, overlap, near_copy.
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    # split -> bytes that its tokens stand for; not `bytes` only where a tokenizer changes text.
    counted: dict[str, int] = dataclasses.field(default_factory=dict)
    folder: str = ""  # where it was found; not written


Report = Callable[[str, int, int, float], None]  # source; documents, bytes, share of it so far


def prepare(
    data: config.Data, report: Report | None = None, workers: int = 1
) -> dict[str, Manifest]:
    """Source -> manifest, writing what data.cache does not hold yet, with `workers` processes.

    A second call reads manifests and takes milliseconds. Each source is written to a draft and
    renamed whole, so a killed call leaves nothing that looks done; the next goes on after the last
    part (file) that was saved. Of two calls at once the second to finish drops its copy. With
    data.drop_copies a document counts as seen if it was in a source of a name before this one's.
    ValueError for text that is missing, empty, binary or not UTF-8, for malformed JSON Lines, and
    for a folder or disk that cannot be written. With data.broken="skip" what cannot be read is left
    out and counted. Memory does not grow with the text.
    """
    tokenizer = _tokenizer(data, report)
    found: dict[str, Manifest] = {}
    for source in sorted(data.sources):
        found[source] = _prepare(source, data, tokenizer, list(found.values()), report, workers)
    return {source: found[source] for source in data.sources}


def _prepare(
    source: str,
    data: config.Data,
    tokenizer: tokens.Tokenizer,
    before: list[Manifest],
    report: Report | None,
    workers: int,
) -> Manifest:
    changed = list(fields.changed_for_hash(data, "corpus").items())
    facts = (FORMAT, source, data.heldout, tokenizer.hash, changed)
    before = before if data.drop_copies else []
    facts += (_guards(data) if data.overlap else [], [manifest.key for manifest in before])
    prints = sources.fingerprint(source)
    words = re.findall(r"[a-z0-9]+", source.lower())[-5:]  # the end of a path says most
    name, key = "-".join(words)[-60:], _key(*facts, prints)
    folder = copies.place(data) / f"{name}-{key}"
    try:
        copies.fetch(data, folder)
        found = _read_manifest(folder)
        if found and (not data.drop_copies or (folder / "seen.sqlite").exists()):
            copies.store(data, folder)
            return found
        parts = sources.parts(source)
        guarded = _guarded(data) if data.overlap else None
        of_parts = prints if len(prints) == len(parts) else [prints] * len(parts)
        seen_before = [Path(manifest.folder, "seen.sqlite") for manifest in before]
        with draft.Draft(folder.parent, f"{name}-{_key(*facts)}", of_parts, seen_before) as work:
            told = time.monotonic()
            documents = _documents(source, data, work.part)
            for one in sift.sifted(documents, tokenizer, data, guarded, workers):
                if one.error and data.broken == "stop":
                    raise ValueError(one.error)
                work.add(one)
                if report and time.monotonic() - told > 0.2:
                    told = time.monotonic()
                    report(source, *work.size, one.part / len(parts))
            if report:
                report(source, *work.size, 1.0)
            manifest = _finished(source, key, work, data, tokenizer)
            if folder.exists() and not _read_manifest(folder):
                shutil.rmtree(folder)  # cut off while being copied here, or damaged
            try:
                work.move(folder)
            except OSError:
                if not _read_manifest(folder):  # else another process was first
                    raise
        copies.store(data, folder)
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(data, error) from None
    return dataclasses.replace(manifest, folder=str(folder))


def _finished(source, key, work: draft.Draft, data, tokenizer) -> Manifest:
    """Writes what belongs beside the token files of a draft. ValueError if they are empty."""
    if not sum(work.counts["documents"].values()):
        left = ", ".join(f"{n} {why}" for why, n in work.dropped.items())
        why = f"nothing is left of it ({left})" if left else "is empty"
        raise ValueError(f"data.sources: {source!r} {why}: it must hold text")
    tokenizer.save(work.folder)
    manifest = Manifest(
        source=source,
        key=key,
        documents=work.counts["documents"],
        bytes=work.counts["bytes"],
        tokens=work.counts["tokens"],
        counted=work.counts["counted"],
        duplicates=work.duplicates,
        heldout=data.heldout,
        hash=work.finish(),
        tokenizer=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        dtype=np.dtype(tokenizer.dtype).name,
        versions=sources.versions(source),
        dropped=dict(work.dropped),
    )
    values = dataclasses.asdict(manifest)
    del values["folder"]
    (work.folder / "manifest.json").write_text(json.dumps(values, indent=2) + "\n")
    if not data.drop_copies:
        (work.folder / "seen.sqlite").unlink()  # no other source will ask
    return manifest


def _tokenizer(data: config.Data, report: Report | None) -> tokens.Tokenizer:
    """Of data.tokenizer; one that is to be trained is looked up in data.cache first."""
    kind, _, size = data.tokenizer.partition(":")
    if kind != "bpe":
        return tokens.read(data.tokenizer)
    weights = sorted((name, weight) for name, weight in data.sources.items() if weight)
    prints = [(name, weight, sources.fingerprint(name)) for name, weight in weights]
    key = _key(FORMAT, size, prints, data.heldout, data.broken, SAMPLE_BYTES)
    folder = copies.place(data) / f"bpe-{size}-{key}"
    copies.fetch(data, folder)
    if not (folder / "tokenizer.json").exists():
        temporary = _temporary(data, folder.name)
        try:
            tokens.train_bpe(_sample(data, weights, report), int(size)).save(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "tokenizer.json").exists():  # else another process was first
                    raise
            copies.store(data, folder)
        except OSError as error:
            raise _unwritable(data, error) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return tokens.load(folder)


def _sample(data: config.Data, weights: list, report: Report | None) -> Iterator[str]:
    """What a tokenizer learns from: of each source the first training documents, by its weight.

    SAMPLE_BYTES in all; a source that has less gives all of it, once.
    """
    total = sum(weight for _, weight in weights)
    for source, weight in weights:
        wanted = SAMPLE_BYTES * weight / total
        left, n = wanted, 0
        for document in _documents(source, data):
            try:
                raw = tokens.utf8(document.text)
            except ValueError:
                continue  # named, or counted, when the source is prepared
            if sift.share(document, hashlib.sha256(raw).digest()) < data.heldout:
                continue
            yield document.text
            left, n = left - len(raw), n + 1
            if left <= 0:
                break
        if report:
            report(f"{data.tokenizer} from {source}", n, round(wanted - left), 1.0)


def _guards(data: config.Data) -> list:
    """Fingerprints of all text that may hold what training must not share."""
    names = sorted(data.sources) + ([data.protect] if data.protect else [])
    return [(name, sources.fingerprint(name)) for name in names]


def _guarded(data: config.Data) -> Path:
    """The file of the runs of data.overlap words in held-out text, and in data.protect."""
    key = _key(FORMAT, data.overlap, data.heldout, data.protect, data.broken, _guards(data))
    path = copies.place(data) / f"runs-{data.overlap}-{key}.u64"

    def found() -> Iterator[np.ndarray]:
        for source, _ in _guards(data):
            for document in _documents(source, data):
                raw = document.text.encode(errors="replace")
                held = sift.share(document, hashlib.sha256(raw).digest()) < data.heldout
                if held or source == data.protect:
                    yield overlap.runs(document.text, data.overlap)

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        overlap.write(path, found())
    return path


def _documents(source: str, data: config.Data, start: int = 0) -> Iterator[files.Document]:
    """Of a source, from a part on; in their order, with data.broken="skip", what cannot be read."""
    if data.broken == "stop":
        yield from sources.documents(source, start=start)
        return
    refused: list[str] = []
    part = start
    for document in sources.documents(source, refused.append, start):
        # What was refused before it may belong to the part before: a draft is then saved after it.
        part = document.part
        while refused:
            yield files.Document("", "", part=part, error=refused.pop(0))
        yield document
    for error in refused:
        yield files.Document("", "", part=part, error=error)


def _key(*facts) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _temporary(data: config.Data, name: str) -> Path:
    """A new folder of data.cache, to be renamed when it is whole."""
    try:
        copies.place(data).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=copies.place(data)))
    except OSError as error:
        raise _unwritable(data, error) from None


def _read_manifest(folder: Path) -> Manifest | None:
    """None unless the manifest is there and its token files have the lengths that it says."""
    try:
        manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
        width = np.dtype(manifest.dtype).itemsize
        for split in SPLITS:
            if (folder / f"{split}.bin").stat().st_size != manifest.tokens[split] * width:
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dataclasses.replace(manifest, folder=str(folder))


def _unwritable(data: config.Data, error: Exception) -> ValueError:
    why = getattr(error, "strerror", None) or error
    return ValueError(
        f"data.cache={data.cache!r} cannot be written ({why}): free it, or name another folder"
    )
