"""Sources prepared once into token files, with a manifest that says what is in them.

manifests = prepare(config.Data(sources={"code": 0.5, "text:books": 0.5}))

data/text-books-3f2a81c09d7e/
    manifest.json    counts, hashes, versions: see Manifest
    train.bin        token ids, END after each document
    heldout.bin      the same, for the documents held out
"""

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm import config, sources, tokens

FORMAT = 1  # part of every key: raise it when the same source would give other tokens
SPLITS = ("train", "heldout")


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
    folder: str = ""  # where it was found; not written


Report = Callable[[str, int, int], None]  # source, documents so far, bytes so far


def prepare(data: config.Data, report: Report | None = None) -> dict[str, Manifest]:
    """Source -> manifest, writing what data.cache does not hold yet.

    A second call reads manifests and takes milliseconds. Each source is written to a temporary
    folder and renamed whole, so a killed call leaves nothing that looks done, and of two calls at
    once the second to finish drops its copy. ValueError, with nothing left behind, for text that is
    missing, empty, binary or not UTF-8, for malformed JSON Lines, and for a folder or disk that
    cannot be written.
    """
    tokenizer = tokens.Bytes()
    return {source: _prepare(source, data, tokenizer, report) for source in data.sources}


def _prepare(
    source: str, data: config.Data, tokenizer: tokens.Bytes, report: Report | None
) -> Manifest:
    facts = (FORMAT, source, sources.fingerprint(source), data.heldout, tokenizer.hash)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    words = re.findall(r"[a-z0-9]+", source.lower())[-5:]  # the end of a path says most
    cache = Path(data.cache)
    folder = cache / f"{'-'.join(words)[-60:]}-{key}"
    found = _read_manifest(folder)
    if found:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    except OSError as error:
        raise _unwritable(data, error) from None
    try:
        manifest = _write(source, key, temporary, data.heldout, tokenizer, report)
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
    heldout: float,
    tokenizer: tokens.Bytes,
    report: Report | None,
) -> Manifest:
    """Fills `folder`, holding one document at a time, and a hash of each that was seen."""
    count = {split: 0 for split in SPLITS}
    n_bytes, n_tokens = dict(count), dict(count)
    seen, duplicates, content, told = set(), 0, hashlib.sha256(), time.monotonic()
    end = np.array([tokens.END], tokenizer.dtype).tobytes()
    with open(folder / "train.bin", "wb") as train, open(folder / "heldout.bin", "wb") as held:
        files = {"train": train, "heldout": held}
        for document in sources.documents(source):
            if not document.text.strip():
                continue
            try:
                ids = tokenizer.encode(document.text)
                raw = document.text.encode()
            except ValueError as error:
                raise ValueError(f"{document.name}: {error}") from None
            digest = hashlib.sha256(raw).digest()
            if digest[:16] in seen:
                duplicates += 1
                continue
            seen.add(digest[:16])
            split = "heldout" if _share(document, digest) < heldout else "train"
            content.update(digest + split.encode())
            files[split].write(ids.astype(tokenizer.dtype, copy=False).tobytes() + end)
            count[split] += 1
            n_bytes[split] += len(raw)
            n_tokens[split] += len(ids) + 1
            if report and time.monotonic() - told > 0.2:
                told = time.monotonic()
                report(source, sum(count.values()), sum(n_bytes.values()))
    if not seen:
        raise ValueError(f"data.sources: {source!r} is empty: it must hold text")
    if report:
        report(source, sum(count.values()), sum(n_bytes.values()))
    manifest = Manifest(
        source=source,
        key=key,
        documents=count,
        duplicates=duplicates,
        bytes=n_bytes,
        tokens=n_tokens,
        heldout=heldout,
        hash=content.hexdigest(),
        tokenizer=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        dtype=np.dtype(tokenizer.dtype).name,
        versions=sources.versions(source),
    )
    values = dataclasses.asdict(manifest)
    del values["folder"]
    (folder / "manifest.json").write_text(json.dumps(values, indent=2) + "\n")
    return manifest


def _share(document: sources.Document, digest: bytes) -> float:
    """In [0, 1), by hash: the same for the same text in any source, on any machine."""
    if document.home:
        digest = hashlib.sha256(document.home.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


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
