"""Layout of the token files of other trainers.

    for layout in read_layouts("my/tokens"):
        layout.tokens()                  # token ids, mapped into memory
        layout.document_ends             # positions after the last token of each document, or None

format      files                           type of the tokens        documents
datatrove   X.ds and X.ds.index             uint16 or uint32          ends in the index
megatron    X.bin and X.idx                 named in the index        lengths in the index
llmc        X.bin with a header of 1 kB     uint16 or uint32          -
raw         X.bin, such as of nanoGPT       uint16, or ?dtype=TYPE    -
datasets    X.arrow of save_to_disk         of the column ?field=     rows

All numbers are little-endian. The files of a source are found by their suffix, and the format by
the neighbors and the first bytes of a file. Files may be in object storage: see storage/.
"""

import dataclasses

import numpy as np

from lm.data.pretokenized import arrow_tokens
from lm.data.sources import source_files, uri
from lm.data.storage import byte_ranges, remote_path

SUFFIXES = {".ds", ".bin", ".arrow"}
INDEX_SUFFIXES = {".idx", ".index"}  # of Megatron, and of datatrove: X.ds.index
INFO_FILES = (".json",)  # files beside token files that describe them
DTYPES = ("uint8", "uint16", "uint32", "int32")
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
# Codes of the types in an index of Megatron. Types with a fraction or 8 bytes are not supported.
MEGATRON_DTYPES = {1: "uint8", 4: "int32", 8: "uint16"}
LLMC_HEADER = 256  # int32 numbers before the tokens: magic, version, number of tokens, zeros
LLMC_DTYPES = {20240520: "uint16", 20240801: "uint32"}  # magic -> type
FIELDS = {"dtype": uri.choice(DTYPES), "field": uri.text("the name of a column")}


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Place and type of consecutive tokens in a file, which may have several such parts.

    first_byte: bytes before the tokens. document_ends: position after the last token of each
    document, ascending int64, or None if the format does not record documents.
    """

    path: remote_path.AnyPath
    first_byte: int
    dtype: str
    n_tokens: int
    document_ends: np.ndarray | None = None

    def tokens(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the token ids start to stop - 1; stop=None is the end of the file."""
        stop, width = self.n_tokens if stop is None else stop, np.dtype(self.dtype).itemsize
        first, last = (self.first_byte + position * width for position in (start, stop))
        chunks = byte_ranges.stream_chunks(self.path, remote_path.READ_BYTES, first, last)
        return np.frombuffer(b"".join(chunks), self.dtype)


def list_token_files(argument: str) -> source_files.SourceFiles:
    """Return the token files of the argument of a source, with the index files beside them.

    argument: PATH[?dtype=TYPE&field=COLUMN], where PATH is a file, a folder or a glob. Raises
    ValueError if there is no token file, and if the token file of an index is missing.
    """
    pattern = uri.split_uri(argument)[0]
    files = source_files.list_files("tokens", pattern, SUFFIXES | INDEX_SUFFIXES)
    omitted = {name: n for name, n in files.omitted.items() if name not in INFO_FILES}
    paths = [path for path in files.paths if path.suffix in SUFFIXES]
    index_files = [path for path in files.paths if path.suffix in INDEX_SUFFIXES]
    listed = set(files.paths)
    _check_lone_index_files([path for path in index_files if _indexed(path) not in listed], omitted)
    if n_compressed := len(files.paths) - len(paths) - len(index_files):
        omitted["compressed"] = n_compressed
    if not paths:
        known = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"tokens:{argument}: no file has a suffix of {known}: correct the path")
    paths = arrow_tokens.select_arrow_files(paths, omitted)
    try:
        # The list of a folder contains all indices. Each test for a remote file is a request.
        is_complete = remote_path.open_address(pattern).is_dir()
        neighbors = [
            index
            for index in map(_index_path, paths)
            if index is not None and (index in listed or (not is_complete and index.exists()))
        ]
    except OSError as error:
        source_files.raise_unreadable(error)
    return source_files.SourceFiles([*paths, *neighbors], omitted)


def _indexed(index: remote_path.AnyPath) -> remote_path.AnyPath:
    """Return the token file to which an index belongs."""
    return index.with_suffix("" if index.suffix == ".index" else ".bin")


def _check_lone_index_files(
    index_files: list[remote_path.AnyPath], omitted: dict[str, int]
) -> None:
    """Raise ValueError for an index whose token file is missing.

    index_files: those whose token file is not in the list of the source. Other programs write
    files with the same suffixes. omitted: receives the number of these.
    """
    for index in index_files:
        tokens = _indexed(index)
        try:
            if tokens.exists():
                continue
            is_related = tokens.suffix == ".ds" or _is_megatron(index)
        except OSError as error:
            source_files.raise_unreadable(error)
        if is_related:
            raise ValueError(
                f"{tokens}: is missing, but its index {index.name} exists: copy both files again,"
                " or delete the index"
            )
        reason = f"unrelated {index.suffix}"
        omitted[reason] = omitted.get(reason, 0) + 1


def _is_megatron(index: remote_path.AnyPath) -> bool:
    """Return True if an .idx file begins as an index of Megatron."""
    n_magic = len(MEGATRON_MAGIC)
    if index.suffix != ".idx" or index.stat().st_size < n_magic:
        return False
    return b"".join(byte_ranges.stream_chunks(index, n_magic, 0, n_magic)) == MEGATRON_MAGIC


def read_layouts(argument: str) -> list[TokenLayout]:
    """Return the layouts of the token files of a source. Raises ValueError for a damaged file."""
    values = uri.parse_uri(argument, FIELDS, "tokens:").values
    layouts: list[TokenLayout] = []
    paths = list_token_files(argument).paths
    listed = set(paths)
    for path in paths:
        if path.suffix == ".arrow":
            batches = arrow_tokens.read_arrow_tokens(path, values.get("field", ""))
            layouts += [TokenLayout(path, *batch) for batch in batches]
        elif path.suffix in SUFFIXES:
            index = _index_path(path)
            index = index if index in listed else None
            layouts.append(_read_layout(path, index, values.get("dtype", "")))
    return layouts


def _read_layout(
    path: remote_path.AnyPath, index: remote_path.AnyPath | None, dtype: str
) -> TokenLayout:
    """Return the layout of a token file.

    dtype: type of the tokens for formats that do not record it; "" is uint16. Raises ValueError if
    an index or a header contradicts the file.
    """
    try:
        if path.suffix == ".ds":
            return _read_datatrove(path, index, dtype)
        if index is not None:
            return _read_megatron(path, index)
        return _read_bin(path, dtype)
    except OSError as error:
        source_files.raise_unreadable(error)


def _read_content(path: remote_path.AnyPath) -> np.ndarray:
    """Return the bytes of an index, uint8. A local file is mapped into memory."""
    if isinstance(path, remote_path.RemotePath):
        return np.frombuffer(path.read_bytes(), np.uint8)
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def _index_path(path: remote_path.AnyPath) -> remote_path.AnyPath | None:
    """Return the path of the index of a token file, None for a format without an index."""
    if path.suffix == ".arrow":
        return None
    return path.parent / f"{path.name}.index" if path.suffix == ".ds" else path.with_suffix(".idx")


def _read_datatrove(
    path: remote_path.AnyPath, index: remote_path.AnyPath | None, dtype: str
) -> TokenLayout:
    """Return the layout of a .ds file. The index gives the width of a token."""
    n_bytes = path.stat().st_size
    if index is None:
        return _read_raw(path, dtype)
    n_index_bytes = index.stat().st_size
    ends = np.frombuffer(index.read_bytes()[: n_index_bytes // 8 * 8], "<u8").astype(np.int64)
    n_tokens = int(ends[-1]) if len(ends) else 0
    width = n_bytes // n_tokens if n_tokens else 2
    is_ascending = bool((np.diff(ends, prepend=0) >= 0).all())
    if n_index_bytes % 8 or not is_ascending or width not in (2, 4) or n_bytes != n_tokens * width:
        raise ValueError(
            f"{path}: {index.name} gives {n_tokens:,} tokens of 2 or 4 bytes, and the file has"
            f" {n_bytes:,} bytes: copy both files again"
        )
    return TokenLayout(path, 0, f"uint{8 * width}", n_tokens, ends)


def _read_megatron(path: remote_path.AnyPath, index: remote_path.AnyPath) -> TokenLayout:
    """Return the layout of a .bin file of Megatron from its .idx file.

    The index has a magic of 9 bytes, version (uint64), code of the type (uint8), number of
    sequences and of document limits (uint64), then the length of each sequence (int32), its byte
    (int64), and the number of the first sequence of each document (int64).
    """
    header = np.dtype(
        [
            *(("magic", "V9"), ("version", "<u8"), ("code", "u1")),
            *(("n_sequences", "<u8"), ("n_limits", "<u8")),
        ]
    )
    remedy, n_index_bytes = "copy both files again", index.stat().st_size
    content = _read_content(index)
    if n_index_bytes < header.itemsize or content[:9].tobytes() != MEGATRON_MAGIC:
        raise ValueError(f"{index}: is not an index of Megatron (MMIDIDX): {remedy}")
    values = np.frombuffer(content, header, 1)[0]
    code, n_sequences, n_limits = (int(values[k]) for k in ("code", "n_sequences", "n_limits"))
    if code not in MEGATRON_DTYPES:
        known = ", ".join(MEGATRON_DTYPES.values())
        raise ValueError(f"{index}: type code {code} is not supported: write tokens as {known}")
    if n_index_bytes != header.itemsize + 12 * n_sequences + 8 * n_limits:
        raise ValueError(
            f"{index}: has {n_index_bytes:,} bytes, which do not fit its {n_sequences:,} sequences:"
            f" {remedy}"
        )
    lengths = np.frombuffer(content, "<i4", n_sequences, header.itemsize)
    limits = np.frombuffer(content, "<i8", n_limits, n_index_bytes - 8 * n_limits)
    stops = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    dtype, n_tokens, n_bytes = MEGATRON_DTYPES[code], int(stops[-1]), path.stat().st_size
    if n_bytes != n_tokens * np.dtype(dtype).itemsize or (lengths < 0).any():
        raise ValueError(
            f"{path}: has {n_bytes:,} bytes, and {index.name} gives {n_tokens:,} tokens of type"
            f" {dtype}: {remedy}"
        )
    if len(limits) and (limits.min() < 0 or limits.max() > n_sequences):
        raise ValueError(f"{index}: a document starts after the last sequence: {remedy}")
    return TokenLayout(path, 0, dtype, n_tokens, np.unique(stops[limits[limits > 0]]))


def _read_bin(path: remote_path.AnyPath, dtype: str) -> TokenLayout:
    """Return the layout of a .bin file without an index: llm.c if it has its header, else raw."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(4 * LLMC_HEADER).ljust(4 * LLMC_HEADER, b"\0"), "<i4")
    magic, _, n_tokens = (int(number) for number in header[:3])
    if magic not in LLMC_DTYPES or header[3:].any():
        return _read_raw(path, dtype)
    dtype, n_bytes = LLMC_DTYPES[magic], path.stat().st_size - 4 * LLMC_HEADER
    if n_bytes != n_tokens * np.dtype(dtype).itemsize:
        raise ValueError(
            f"{path}: the header gives {n_tokens:,} tokens of type {dtype}, and {n_bytes:,} bytes"
            " follow it: copy the file again"
        )
    return TokenLayout(path, 4 * LLMC_HEADER, dtype, n_tokens)


def _read_raw(path: remote_path.AnyPath, dtype: str) -> TokenLayout:
    """Return the layout of a file of tokens only."""
    dtype = dtype or "uint16"
    n_bytes, width = path.stat().st_size, np.dtype(dtype).itemsize
    if n_bytes % width:
        raise ValueError(
            f"{path}: {n_bytes:,} bytes are not a whole number of tokens of type {dtype}: choose"
            " the type with ?dtype="
        )
    return TokenLayout(path, 0, dtype, n_bytes // width)
