"""Manifest of a prepared source: counts, hashes, versions, and the checksums of its files.

    write_manifest(folder, manifest)     # computes the checksums
    read_manifest(folder)                # raises DamagedText if it differs from its own checksum
    verify_values(manifest, expected)    # raises DamagedText if a count or a hash is wrong
    verify_files(manifest)               # raises DamagedText if a file is damaged

manifest.json has one entry that `Manifest` lacks: "checksum", the SHA-256 of the other entries.
Manifests of version 0.2.0 have neither "checksum" nor "checksums". For these, the counts are
computed again from the token files.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.data import tokenizers
from lm.data.prepared import block_checksums
from lm.data.storage import remote_path
from lm.runs import filesystem
from lm.runs.integrity import record_checksums

SPLITS = ("train", "heldout")
FILE = "manifest.json"
# Files up to this size are verified when a dataset is opened, in at most 0.2 seconds. Blocks of a
# larger token file are verified when they are first read.
WHOLE_FILE_BYTES = 1 << 28
IDS_PER_READ = 1 << 22


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
    # File in the folder -> SHA-256 of each block, see block_checksums.py; {} of an earlier version.
    checksums: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    # split -> [file, first byte, number of tokens] of token files that other trainers have written.
    segments: dict[str, list[list]] = dataclasses.field(default_factory=dict)
    warning: str = ""  # too few held-out documents, see splits.heldout_warning
    folder: str = ""  # location; not stored in the file
    remote_folder: str = ""  # location of token files that are not in `folder`; not stored


class Segment(NamedTuple):
    """Consecutive tokens of a split in a file."""

    path: remote_path.AnyPath
    first_byte: int
    n_tokens: int


def split_segments(manifest: Manifest, split: str) -> list[Segment]:
    """Return the parts of files that have the tokens of a split, in order.

    Prepared text has one file per split. Token files of other trainers remain in their folders,
    and large token files of a remote cache remain there.
    """
    if manifest.segments:
        segments = manifest.segments[split]
        return [Segment(remote_path.open_address(path), first, n) for path, first, n in segments]
    return [Segment(_prepared_file(manifest, f"{split}.bin"), 0, manifest.tokens[split])]


def _prepared_file(manifest: Manifest, name: str) -> remote_path.AnyPath:
    """Return the path of a prepared file, which is local if there is a local copy."""
    path = Path(manifest.folder, name)
    if manifest.remote_folder and not path.exists():
        return remote_path.open_address(manifest.remote_folder) / name
    return path


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json into a prepared folder. Return the manifest with all checksums.

    manifest: its checksums are those of files outside the folder.
    """
    paths = sorted(path for path in folder.iterdir() if path.name != FILE)
    blocks = {path.name: block_checksums.block_checksums(path) for path in paths}
    manifest = dataclasses.replace(manifest, checksums=manifest.checksums | blocks)
    values = dataclasses.asdict(manifest)
    del values["folder"], values["remote_folder"]
    values["checksum"] = _checksum(values)
    (folder / FILE).write_text(json.dumps(values, indent=2) + "\n")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a prepared folder. Read no other file.

    Raises DamagedText if the file is missing, is not a manifest or differs from its checksum.
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_text())
        checksum = values.pop("checksum", None)
        manifest = Manifest(**values)
    except FileNotFoundError:
        raise block_checksums.DamagedText(f"{path} is missing") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise block_checksums.DamagedText(f"{path} is not a manifest") from None
    if (checksum is not None or manifest.checksums) and checksum != _checksum(values):
        raise block_checksums.DamagedText(f"{path} differs from its checksum")
    return dataclasses.replace(manifest, folder=str(folder))


def verify_values(manifest: Manifest, expected: dict) -> None:
    """Verify the fields of a manifest that its config determines, and the types of its counts.

    expected: {field: value}. Raises DamagedText for the first difference.
    """
    for name, value in expected.items():
        if getattr(manifest, name) != value:
            problem = f"{name}={getattr(manifest, name)!r} is not {value!r}"
            raise block_checksums.DamagedText(f"{Path(manifest.folder, FILE)}: {problem}")
    _verify_types(manifest)


def verify_files(manifest: Manifest, verify_all: bool = False) -> None:
    """Verify the sizes and the checksums of the files of a prepared source.

    verify_all: also verify token files above WHOLE_FILE_BYTES. Raises DamagedText for the first
    difference.
    """
    for split in SPLITS:
        for path, first_byte, n_tokens in split_segments(manifest, split):
            n_bytes = first_byte + n_tokens * np.dtype(manifest.dtype).itemsize
            if not path.exists():
                raise block_checksums.DamagedText(f"{path} is missing")
            size = path.stat().st_size
            if size < n_bytes or (size > n_bytes and not manifest.segments):
                raise block_checksums.DamagedText(
                    f"{path} has {size:,} bytes instead of {n_bytes:,}"
                )
    for name in manifest.checksums or [f"{split}.bin" for split in SPLITS]:
        _verify_file(manifest, name, verify_all)


def verify_tokenizer_files(manifest: Manifest, tokenizer: tokenizers.Tokenizer) -> None:
    """Verify the copy of the tokenizer beside the token files, and replace a damaged file.

    tokenizer: the tokenizer of the config. Raises DamagedText if the copy differs and cannot be
    replaced, because the tokenizer has other files than the manifest.
    """
    folder = Path(manifest.folder)
    contents = tokenizer.files() if manifest.tokenizer == tokenizer.hash else {}
    for name in tokenizers.FILES:
        path, content = folder / name, contents.get(name)
        blocks = manifest.checksums.get(name)
        if content is None:
            if path.exists() and blocks is None:
                raise block_checksums.DamagedText(f"{path} does not belong to this text")
        elif manifest.checksums and blocks != block_checksums.content_checksums(content):
            pass  # another file with the same tokens: verify_files compares it with the checksums
        elif not path.exists() or path.read_bytes() != content:
            print(f"{path} is damaged: written again", file=sys.stderr, flush=True)
            filesystem.write_file(path, content)


def verify_counts(manifest: Manifest, tokenizer: tokenizers.Tokenizer, is_lossless: bool) -> None:
    """Verify the counts of bytes of a manifest without checksums against its token files.

    is_lossless: the tokens of a text have the bytes of the text. Files of more than
    WHOLE_FILE_BYTES are not read. Raises DamagedText for a different count.
    """
    lengths, folder = tokenizer.byte_lengths().tobytes(), Path(manifest.folder)
    for split in SPLITS if manifest.counted else ():
        path = folder / f"{split}.bin"
        if path.stat().st_size > WHOLE_FILE_BYTES:
            continue
        n_bytes = _count_bytes(str(path), block_checksums.file_state(path), manifest.dtype, lengths)
        counts = {"counted": manifest.counted} | ({"bytes": manifest.bytes} if is_lossless else {})
        for name, count in counts.items():
            if count[split] != n_bytes:
                problem = f"{name}.{split}={count[split]} is not {n_bytes}, as in {split}.bin"
                raise block_checksums.DamagedText(f"{folder / FILE}: {problem}")


@functools.lru_cache(maxsize=512)
def _count_bytes(path: str, state: tuple, dtype: str, lengths: bytes) -> int:
    """Return the number of bytes that the tokens of a file represent.

    state: identity of the content, by which results are cached. lengths: bytes of each token, int32
    [vocab_size].
    """
    ids, lengths_V = np.fromfile(path, dtype), np.frombuffer(lengths, np.int32)
    parts = np.split(ids, range(IDS_PER_READ, len(ids), IDS_PER_READ))
    return sum(int(np.bincount(part, minlength=len(lengths_V)) @ lengths_V) for part in parts)


def _verify_file(manifest: Manifest, name: str, verify_all: bool) -> None:
    """Raise DamagedText if a file of a prepared source differs from its checksums.

    name: name in the folder, or the address of a token file of another trainer.
    """
    is_outside = manifest.segments and Path(name).name != name
    path = remote_path.open_address(name) if is_outside else _prepared_file(manifest, name)
    if not path.exists():
        raise block_checksums.DamagedText(f"{path} is missing")
    is_token_file = is_outside or path.suffix == ".bin"
    is_remote = isinstance(path, remote_path.RemotePath)
    is_large_text = is_token_file and path.stat().st_size > WHOLE_FILE_BYTES
    if not verify_all and (is_remote or is_large_text):
        return
    blocks = manifest.checksums.get(name) if manifest.checksums else None
    # A token file of another trainer may have a header, and its ids were verified with its hash.
    dtype = manifest.dtype if is_token_file and not is_outside else ""
    if damage := block_checksums.file_damage(path, blocks, dtype, manifest.vocab_size):
        raise block_checksums.DamagedText(f"{path} is damaged: {damage}")


def _verify_types(manifest: Manifest) -> None:
    """Raise DamagedText unless the counts of the splits are numbers."""
    for name in ("documents", "bytes", "tokens", "counted", "groups"):
        counts = getattr(manifest, name)
        is_optional = name in ("counted", "groups") and counts == {}  # of an earlier version
        if not is_optional and not (
            isinstance(counts, dict)
            and all(type(counts.get(split)) is int and counts[split] >= 0 for split in SPLITS)
        ):
            raise block_checksums.DamagedText(
                f"{Path(manifest.folder, FILE)}: {name}={counts!r} are no counts"
            )


def _checksum(values: dict) -> str:
    """Return the SHA-256 of the entries of manifest.json without "checksum"."""
    return record_checksums.object_sha256(values, "checksum")
