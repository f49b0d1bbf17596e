"""Store a corpus while it is prepared: interrupted preparation, remote cache.

    fingerprints = documents.source_fingerprint(source)
    with StagedCorpus(Path("data"), "wiki-91c07d44e3b5", fingerprints) as staged:
        for document in preprocessing.encode_documents(...):   # from part `staged.part` on
            staged.add(document)
        staged.finish()
        staged.move(Path("data/wiki-91c07d44e3b5"))

A part is a file or a block of a source that can be read separately. The folder of a staged corpus:

data/.wiki-91c07d44e3b5/
    train.bin, heldout.bin    token ids; bytes after the last save are truncated on resume
    digests                   SHA-256 and split of each accepted document, for the content hash
    hashes/                   document hashes, and the state at the last save

If data.cache_dir is remote, such as gs://bucket/data, `download` and `upload` copy finished folders
between it and a local folder. CHECKSUM_FILE is uploaded last: a remote folder without it is
incomplete. Token files above COPIED_BYTES are not downloaded: a host reads the byte ranges of its
own rows, see prepared/remote_segment.py. If data.cache_dir is a local folder, nothing is copied.
"""

import collections
import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from lm.config import schema
from lm.data import preprocessing
from lm.data.filters import decontamination
from lm.data.prepared import (
    block_checksums,
    corpus_manifest,
    document_hashes,
    temporary_folders,
)
from lm.data.storage import remote_path
from lm.runs import filesystem

FORMAT = 2  # Part of every key. Increase it if the same source would give other tokens.
SPLITS = corpus_manifest.SPLITS
STAGED_FILES = ("train.bin", "heldout.bin", "digests")
SAVE_SECONDS = 5.0  # Minimum time between saves. A save happens only at the end of a part.
DIGEST_BYTES = 40  # bytes per document in `digests`: SHA-256, then the split, padded
COUNT_NAMES = ("documents", "bytes", "tokens", "counted", "groups")  # names in the manifest
COPY_BYTES = 1 << 24  # bytes of a file in memory during a copy
COPIED_BYTES = 1 << 26  # larger token files of a remote cache are read in byte ranges
# Document hashes, downloaded when another source is compared with them. Earlier versions wrote
# the second file.
HASHES_FILE, SQLITE_FILE = "seen.u64", "seen.sqlite"
N_DOWNLOADS = 3  # of a file whose copy differs from its SHA-256
CHECKSUM_FILE = "files.json"  # file name -> SHA-256


class StagedCorpus:
    """Corpus in a temporary folder, written by one process.

    A second process that prepares the same corpus gets a separate folder. After an error, the
    folder remains for the next call if at least one part is saved and the folder is not separate.

    Attributes: folder; part, the first part that is not saved; counts, {count name: {split:
    number}}; duplicates, number of dropped equal documents; dropped, {reason: number}; cut_costs,
    cost of decontamination.
    """

    def __init__(
        self, cache: Path, name: str, fingerprints: list, earlier_paths: Iterable[Path] = ()
    ):
        """Open the staged corpus `name` in the folder `cache`, or create it.

        fingerprints: one value per part of the source. A saved state is valid if the fingerprints
        of the saved parts are unchanged. Otherwise the corpus is staged again from the start.
        earlier_paths: files of DocumentHashes of the sources whose documents count as duplicates.
        """
        self._fingerprints, self._earlier_paths = fingerprints, list(earlier_paths)
        self.folder, self._lock, self._can_resume = temporary_folders.lock_folder(cache, name)
        self._is_moved = False
        try:
            try:
                self._open()
            except (ValueError, KeyError, FileNotFoundError):  # corrupt, or of other parts
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(exist_ok=True)
                self._open()
        except BaseException:
            temporary_folders.release_lock(self._lock)
            raise
        self._saved_at = time.monotonic()

    def _open(self) -> None:
        """Open the files at the state of the last save. Raises ValueError if that is impossible."""
        self._hashes = document_hashes.DocumentHashes(self.folder / "hashes", self._earlier_paths)
        state = self._hashes.saved_state()
        if not state:  # an earlier version may have left a file in another format
            (self.folder / SQLITE_FILE).unlink(missing_ok=True)
        self.part = state.get("part", 0)
        if state and state["prints"] != self._fingerprint_hash(self.part):
            raise ValueError("the parts of the source have changed")
        self.counts: dict[str, dict[str, int]] = state.get("counts") or {
            count: dict.fromkeys(SPLITS, 0) for count in COUNT_NAMES
        }
        self.duplicates: int = state.get("duplicates", 0)
        self.dropped = collections.Counter(state.get("dropped", {}))
        self.cut_costs = decontamination.CutCosts(state.get("cut_costs"))
        self._last_group: dict[str, bytes] = {}  # split -> group of its last document
        self._files = {name: open(self.folder / name, "ab") for name in STAGED_FILES}
        for name, file in self._files.items():
            size = state.get("sizes", {}).get(name, 0)
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError(f"{name} is shorter than at the last save")
            file.truncate(size)
            file.seek(size)
        self._sections: dict[str, list] = state.get("sections") or {n: [] for n in STAGED_FILES}
        self._verify_sections()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # a full disk was already reported
            self._close()
        if not self._is_moved and not (self._can_resume and self.part):
            shutil.rmtree(self.folder, ignore_errors=True)
        temporary_folders.release_lock(self._lock)

    def add(self, document: preprocessing.EncodedDocument) -> None:
        """Write a document, or count the reason of its rejection.

        The first document of a part first saves the state, if the last save is SAVE_SECONDS old.
        """
        if document.part > self.part and time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save(document.part)
        if not document.digest:
            self.dropped["broken" if document.error else document.rejection] += 1
            return
        if not self._hashes.add(document.digest):
            self.duplicates += 1
            return
        if document.cuts:
            self.cut_costs.add(document.cuts)
        is_near_duplicate = not document.rejection and self._hashes.has_band(document.bands)
        reason = "near_copy" if is_near_duplicate else document.rejection
        if reason:
            self.dropped[reason] += 1
            return
        self._hashes.add_bands(document.bands)
        split = document.split
        self._files["digests"].write((document.digest + split.encode()).ljust(DIGEST_BYTES))
        self._files[f"{split}.bin"].write(document.ids)
        # The documents of a group are consecutive and in one part, so no set of groups is needed.
        is_new_group = self._last_group.get(split) != document.group
        self._last_group[split] = document.group
        numbers = (1, document.n_bytes, document.n_tokens, document.n_counted, int(is_new_group))
        for count, number in zip(COUNT_NAMES, numbers, strict=True):
            self.counts[count][split] += number

    @property
    def size(self) -> tuple[int, int]:
        """Number of accepted documents and number of bytes of their text."""
        return sum(self.counts["documents"].values()), sum(self.counts["bytes"].values())

    def finish(self, should_store_hashes: bool = False) -> str:
        """Close the files and return the hash over the documents and their splits, in order.

        should_store_hashes: write HASHES_FILE, which other sources need to find near-duplicates.
        """
        self._save(len(self._fingerprints))
        if should_store_hashes:
            self._hashes.write(self.folder / HASHES_FILE)
        self._close()
        shutil.rmtree(self.folder / "hashes")
        content = hashlib.sha256()
        with open(self.folder / "digests", "rb") as file:
            while row := file.read(DIGEST_BYTES):
                content.update(row.rstrip())
        (self.folder / "digests").unlink()
        return content.hexdigest()

    def move(self, folder: Path) -> bool:
        """Rename the finished corpus to `folder`. Return False if another process was first.

        The staged corpus is then deleted on exit.
        """
        self.part = 0
        self._is_moved = temporary_folders.publish_folder(self.folder, folder)
        self.folder = folder if self._is_moved else self.folder
        return self._is_moved

    def _save(self, part: int) -> None:
        """Store the state so that a later call resumes with part number `part`."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            self._add_section(Path(file.name))
        self._hashes.save(
            {
                "part": part,
                "prints": self._fingerprint_hash(part),
                "counts": self.counts,
                "duplicates": self.duplicates,
                "dropped": self.dropped,
                "cut_costs": self.cut_costs.state,
                "sizes": {name: file.tell() for name, file in self._files.items()},
                "sections": self._sections,
            }
        )
        self.part, self._saved_at = part, time.monotonic()

    def _add_section(self, path: Path) -> None:
        """Append the size and the SHA-256 of the bytes of a file since the last save."""
        sections = self._sections[path.name]
        start = sum(size for size, _ in sections)
        if size := path.stat().st_size - start:
            sections.append([size, block_checksums.section_sha256(path, start, size)])

    def _verify_sections(self) -> None:
        """Raise ValueError if the files of an interrupted preparation have changed."""
        for name, sections in self._sections.items():
            start = 0
            for size, checksum in sections:
                if block_checksums.section_sha256(self.folder / name, start, size) != checksum:
                    raise ValueError(f"{name} has changed since the last save")
                start += size

    def _fingerprint_hash(self, part: int) -> str:
        """Return the hash of the fingerprints of all parts before `part`."""
        return hashlib.sha256(repr(self._fingerprints[:part]).encode()).hexdigest()

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._hashes.close()


def local_folder(data: schema.Data) -> Path:
    """Return the local folder of all prepared text.

    The folder is data.cache_dir if that is local. Otherwise it is a folder below
    data.local_cache_dir, named by the bucket and the path of data.cache_dir.
    """
    if not filesystem.is_remote(data.cache_dir):
        return Path(data.cache_dir)
    return Path(data.local_cache_dir, data.cache_dir.partition("://")[2])


def remote_folder(data: schema.Data, folder: Path) -> str:
    """Return the address of a prepared folder in a remote data.cache_dir, "" for a local one."""
    is_remote = filesystem.is_remote(data.cache_dir)
    return f"{data.cache_dir.rstrip('/')}/{folder.name}" if is_remote else ""


def download(data: schema.Data, folder: Path) -> None:
    """Copy a prepared corpus from the remote data.cache_dir to the local path `folder`.

    Large token files are not copied. Nothing is copied if data.cache_dir is local, if `folder`
    exists, or if the remote copy is missing or incomplete. Raises ValueError if a file differs from
    its checksum, and OSError if the local disk cannot be written.
    """
    if not filesystem.is_remote(data.cache_dir) or folder.exists():
        return
    remote = remote_path.RemotePath(remote_folder(data, folder))
    if not (remote / CHECKSUM_FILE).exists():
        return
    with temporary_folders.temporary_folder(folder.parent, folder.name) as temporary:
        for name, checksum in _read_checksums(remote).items():
            if not _is_read_remotely(remote / name):
                _copy_verified(remote / name, temporary / name, checksum)
        temporary_folders.publish_folder(temporary, folder)


def fetch_hashes(data: schema.Data, folder: Path) -> Path:
    """Return the local path of the document hashes of a prepared folder, after their download."""
    paths = [folder / name for name in (HASHES_FILE, SQLITE_FILE)]
    path = next((path for path in paths if path.exists()), paths[0])
    if filesystem.is_remote(data.cache_dir) and not path.exists():
        remote = remote_path.RemotePath(remote_folder(data, folder))
        checksums = _read_checksums(remote)
        path = next((path for path in paths if path.name in checksums), paths[0])
        _copy_verified(remote / path.name, path, checksums.get(path.name, ""))
    return path


def _read_checksums(remote: remote_path.RemotePath) -> dict[str, str]:
    """Return {file name: SHA-256} of a remote folder. Raises ValueError for another content."""
    file = remote / CHECKSUM_FILE
    try:
        checksums = json.loads(file.read_bytes())
        is_valid = isinstance(checksums, dict) and all(
            isinstance(value, str) for value in checksums.values()
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ValueError(f"{file} is not valid JSON of checksums: delete {remote}")
    for name in checksums:
        if Path(name).name != name:
            raise ValueError(f"{file}: {name!r} is not a file name: delete {remote}")
    return checksums


def _is_read_remotely(file: remote_path.RemotePath) -> bool:
    """Return True for a large file that is not copied. A missing file is reported by its copy."""
    is_large_kind = file.suffix == ".bin" or file.name in (HASHES_FILE, SQLITE_FILE)
    return is_large_kind and file.exists() and file.stat().st_size > COPIED_BYTES


def _copy_verified(remote_file: remote_path.RemotePath, copy: Path, checksum: str) -> None:
    """Download a file. A truncated download is repeated.

    Raises ValueError if the file is missing or if its copies differ from its SHA-256.
    """
    problem = "is missing, but listed"
    for _ in range(N_DOWNLOADS if remote_file.exists() else 0):
        with remote_file.open("rb") as file, open(copy, "wb") as local_file:
            shutil.copyfileobj(file, local_file, COPY_BYTES)
        if block_checksums.file_sha256(copy) == checksum:
            return
        problem = "is not what was prepared: its SHA-256 differs from that"
    raise ValueError(
        f"{remote_file} {problem} in {CHECKSUM_FILE}: delete {remote_file.parent} to prepare it"
        " again"
    )


def upload(data: schema.Data, folder: Path) -> None:
    """Upload the local `folder` to the remote cache, unless it is complete there."""
    if not filesystem.is_remote(data.cache_dir):
        return
    remote = remote_path.RemotePath(remote_folder(data, folder))
    if (remote / CHECKSUM_FILE).exists():
        return
    paths = sorted(folder.iterdir())
    for path in paths:
        (remote / path.name).write_file(path)
    checksums = {path.name: block_checksums.file_sha256(path) for path in paths}
    (remote / CHECKSUM_FILE).write_bytes(f"{json.dumps(checksums, indent=1)}\n".encode())


def discard_remote(data: schema.Data, folder: Path) -> None:
    """Mark the remote copy of a folder as incomplete, so that `upload` replaces it."""
    if filesystem.is_remote(data.cache_dir):
        file = remote_path.RemotePath(remote_folder(data, folder)) / CHECKSUM_FILE
        if file.exists():
            file.unlink()


def content_key(*facts) -> str:
    """Return 12 hexadecimal digits that name a folder by everything its contents depend on."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def unwritable_cache(data: schema.Data, error: Exception) -> ValueError:
    """Return the error that data.cache_dir cannot be written, or that an object is damaged."""
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, OSError) and error.errno == errno.EIO and error.filename:
        return ValueError(f"{error.filename}: {reason}. Repeat the command, or prepare it again")
    return ValueError(
        f"data.cache_dir={data.cache_dir!r} cannot be written ({reason}): free disk space, or"
        " set another folder"
    )
