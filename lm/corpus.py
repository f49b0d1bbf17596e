"""Sources prepared once into token files, with a manifest that says what is in them.

manifests = prepare(config.Data(sources={"code": 0.5, "text:books": 0.5}))

data/text-books-3f2a81c09d7e/
    manifest.json    counts, hashes, versions: see Manifest
    train.bin        token ids, the tokenizer's end after each document
    heldout.bin      the same, for the documents held out
    tokenizer.json   what lm/tokens.py reads again, unless the tokens are bytes
data/bpe-8192-91c07d44e3b5/
    tokenizer.json   trained on the sources, for data.tokenizer="bpe:8192"
"""

import collections
import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lm import config, files, filters, sift, sources, tokens

FORMAT = 1  # part of every key: raise it when the same source would give other tokens
SPLITS = ("train", "heldout")
SAMPLE_BYTES = 32_000_000  # of text, over all sources, on which a tokenizer is trained
# Knobs other than the tokenizer and data.heldout that say what is prepared.
KNOBS = ("broken", "min_words", "min_letters", "max_repeats", "drop_copies", "overlap", "protect")


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


Report = Callable[[str, int, int], None]  # source, documents so far, bytes so far


def prepare(
    data: config.Data, report: Report | None = None, workers: int = 1
) -> dict[str, Manifest]:
    """Source -> manifest, writing what data.cache does not hold yet, with `workers` processes.

    A second call reads manifests and takes milliseconds. Each source is written to a temporary
    folder and renamed whole, so a killed call leaves nothing that looks done, and of two calls at
    once the second to finish drops its copy. ValueError, with nothing left behind, for text that is
    missing, empty, binary or not UTF-8, for malformed JSON Lines, and for a folder or disk that
    cannot be written. With data.broken="skip" what cannot be read is left out and counted.
    """
    tokenizer = _tokenizer(data, report)
    every = list(map(sources.fingerprint, _guards(data))) if data.overlap else []
    guarded: list[np.ndarray] = []  # made once, and only if a source is not prepared yet

    def make(source: str) -> Manifest:
        changed = [(k, v) for k in KNOBS if (v := getattr(data, k)) != getattr(config.Data, k)]
        facts = (FORMAT, source, sources.fingerprint(source), data.heldout, tokenizer.hash)
        facts += (changed, every) if changed else ()
        return _prepare(source, facts, data, tokenizer, guarded, report, workers)

    return {source: make(source) for source in data.sources}


def _prepare(
    source: str,
    facts: tuple,
    data: config.Data,
    tokenizer: tokens.Tokenizer,
    guarded: list[np.ndarray],
    report: Report | None,
    workers: int,
) -> Manifest:
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    words = re.findall(r"[a-z0-9]+", source.lower())[-5:]  # the end of a path says most
    cache = Path(data.cache)
    folder = cache / f"{'-'.join(words)[-60:]}-{key}"
    found = _read_manifest(folder)
    if found:
        return found
    if data.overlap and not guarded:
        guarded.append(_guarded(data))
    temporary = _temporary(data, folder.name)
    try:
        runs = guarded[0] if guarded else sift.NONE
        documents = _documents(source, data, dropped := collections.Counter())
        ready = sift.sifted(documents, tokenizer, data, runs, workers)
        manifest = _write(source, key, temporary, data, tokenizer, ready, dropped, report)
        if folder.exists() and not _read_manifest(folder):
            shutil.rmtree(folder)  # cut off while being copied here, or damaged
        try:
            temporary.rename(folder)
        except OSError:
            if not _read_manifest(folder):  # else another process was first
                raise
    except OSError as error:
        raise _unwritable(data, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dataclasses.replace(manifest, folder=str(folder))


def _write(
    source: str,
    key: str,
    folder: Path,
    data: config.Data,
    tokenizer: tokens.Tokenizer,
    ready: Iterator[sift.Sifted],
    dropped: collections.Counter,
    report: Report | None,
) -> Manifest:
    """Fills `folder`; of the documents that were seen it holds a hash each, and bands if asked."""
    count = {split: 0 for split in SPLITS}
    n_bytes, n_tokens, counted = dict(count), dict(count), dict(count)
    seen, bands, duplicates = set(), set(), 0
    content, told = hashlib.sha256(), time.monotonic()
    with open(folder / "train.bin", "wb") as train, open(folder / "heldout.bin", "wb") as held:
        files_of = {"train": train, "heldout": held}
        for one in ready:
            if one.error:
                _refuse(data, dropped)(f"{one.name}: {one.error}")
                continue
            if one.digest[:16] in seen:
                duplicates += 1
                continue
            seen.add(one.digest[:16])
            complaint = one.complaint or ("near_copy" if bands & {*one.bands} else "")
            if complaint:
                dropped[complaint] += 1
                continue
            bands.update(one.bands)
            content.update(one.digest + one.split.encode())
            files_of[one.split].write(one.ids)
            count[one.split] += 1
            n_bytes[one.split] += one.n_bytes
            n_tokens[one.split] += one.n_tokens
            counted[one.split] += one.n_counted
            if report and time.monotonic() - told > 0.2:
                told = time.monotonic()
                report(source, sum(count.values()), sum(n_bytes.values()))
    if not sum(count.values()):
        left = ", ".join(f"{n} {why}" for why, n in dropped.items())
        why = f"nothing is left of it ({left})" if dropped else "is empty"
        raise ValueError(f"data.sources: {source!r} {why}: it must hold text")
    if report:
        report(source, sum(count.values()), sum(n_bytes.values()))
    tokenizer.save(folder)
    manifest = Manifest(
        source=source,
        key=key,
        documents=count,
        duplicates=duplicates,
        bytes=n_bytes,
        tokens=n_tokens,
        heldout=data.heldout,
        hash=content.hexdigest(),
        tokenizer=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        dtype=np.dtype(tokenizer.dtype).name,
        versions=sources.versions(source),
        dropped=dict(dropped),
        counted=counted,
    )
    values = dataclasses.asdict(manifest)
    del values["folder"]
    (folder / "manifest.json").write_text(json.dumps(values, indent=2) + "\n")
    return manifest


def _tokenizer(data: config.Data, report: Report | None) -> tokens.Tokenizer:
    """Of data.tokenizer; one that is to be trained is looked up in data.cache first."""
    kind, _, size = data.tokenizer.partition(":")
    if kind != "bpe":
        return tokens.read(data.tokenizer)
    weights = sorted((name, weight) for name, weight in data.sources.items() if weight)
    prints = [(name, weight, sources.fingerprint(name)) for name, weight in weights]
    facts = (FORMAT, size, prints, data.heldout, data.broken, SAMPLE_BYTES)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    folder = Path(data.cache) / f"bpe-{size}-{key}"
    if not (folder / "tokenizer.json").exists():
        temporary = _temporary(data, folder.name)
        try:
            tokens.train_bpe(_sample(data, weights, report), int(size)).save(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "tokenizer.json").exists():  # else another process was first
                    raise
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
        left, n = SAMPLE_BYTES * weight / total, 0
        for document in _documents(source, data, collections.Counter()):
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
            report(
                f"{data.tokenizer} from {source}", n, round(SAMPLE_BYTES * weight / total - left)
            )


def _guards(data: config.Data) -> list[str]:
    return sorted(data.sources) + ([data.protect] if data.protect else [])


def _guarded(data: config.Data) -> np.ndarray:
    """Sorted hashes of the runs of data.overlap words in held-out text, and in data.protect."""
    found = [sift.NONE]
    for source in _guards(data):
        for document in _documents(source, data, collections.Counter()):
            raw = document.text.encode(errors="replace")
            held = sift.share(document, hashlib.sha256(raw).digest()) < data.heldout
            if held or source == data.protect:
                found.append(filters.runs(document.text, data.overlap))
    return np.unique(np.concatenate(found))


def _documents(source: str, data: config.Data, dropped: collections.Counter):
    return sources.documents(source, _refuse(data, dropped))


def _refuse(data: config.Data, dropped: collections.Counter) -> files.Refuse:
    """Stops at what cannot be read, or counts it: see data.broken."""

    def skip(what: str) -> None:
        dropped["broken"] += 1

    return skip if data.broken == "skip" else files.stop


def _temporary(data: config.Data, name: str) -> Path:
    """A new folder of data.cache, to be renamed when it is whole."""
    try:
        Path(data.cache).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{name}-", dir=data.cache))
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


def _unwritable(data: config.Data, error: OSError) -> ValueError:
    why = error.strerror or error
    return ValueError(
        f"data.cache={data.cache!r} cannot be written ({why}): free it, or name another folder"
    )
