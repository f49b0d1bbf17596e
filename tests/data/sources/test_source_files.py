"""Files of a source: names, compression, encodings and long lines."""

import bz2
import gzip
import lzma
import os
import random

import pytest
import zstandard

from lm.data.sources import documents, source_files
from lm.data.storage import decompression

COMPRESS = {
    ".gz": gzip.compress,
    ".gzip": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def texts(source):
    return [document.text for document in documents.open_source(source)]


def error_of(source):
    with pytest.raises(ValueError) as error:
        texts(source)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compression_is_recognized_by_the_content(tmp_path, suffix):
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    raw = COMPRESS[suffix](lines[:16]) + COMPRESS[suffix](lines[16:])
    for name in (f"a.jsonl{suffix}", f"a.JSONL{suffix.upper()}", "a.jsonl", "a"):
        (tmp_path / name).write_bytes(raw)
        assert texts(f"jsonl:{tmp_path}/{name}") == ["one", "two"]
        assert texts(f"text:{tmp_path}/{name}") == [lines.decode().strip()]
    (tmp_path / f"plain{suffix}").write_bytes(lines)
    assert texts(f"jsonl:{tmp_path}/plain{suffix}") == ["one", "two"]
    for size in (0, 1, len(raw) // 2 - 9, len(raw) - 1):
        (tmp_path / f"cut{suffix}").write_bytes(raw[:size])
        assert f"cut{suffix}: cannot be read to its end" in error_of(f"jsonl:{tmp_path}/cut*")
    (tmp_path / f"other{suffix}").write_bytes(b"?" + raw)
    assert "it begins neither like a" in error_of(f"jsonl:{tmp_path}/other*")
    (tmp_path / f"damaged{suffix}").write_bytes(raw + b"oops")
    assert "cannot be read" in error_of(f"jsonl:{tmp_path}/damaged*")
    (tmp_path / f"padded{suffix}").write_bytes(raw + b"\0" * 512)
    assert texts(f"jsonl:{tmp_path}/padded*") == ["one", "two"]


def test_zstd_frames_with_a_window_of_2_gib_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    raw = stream.compress(b'{"text": "one"}\n') + stream.flush()
    assert zstandard.get_frame_parameters(raw).window_size == 1 << 31
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x50\x2a\x4d\x18\x02\0\0\0ab" + raw)
    assert texts(f"jsonl:{tmp_path}/a.jsonl.zst") == ["one"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_byte_order_mark_selects_the_encoding(tmp_path, encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""
    lines = [f"Grüße {i} 語 😀" for i in range(3000)]
    json_lines = "".join(f'{{"text": "{line}"}}\r\n' for line in lines)
    (tmp_path / "a.jsonl").write_bytes((mark + json_lines).encode(encoding))
    assert texts(f"jsonl:{tmp_path}/a.jsonl") == lines
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((mark + "\n".join(lines)).encode(encoding)))
    assert "\n".join(texts(f"text:{tmp_path}")) == "\n".join(lines)


def test_half_a_surrogate_pair_loses_only_its_line(tmp_path):
    text = '{"text": "a"}\n{"text": "\ud800"}\n{"text": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass"))
    errors = []
    source = f"jsonl:{tmp_path}/a.jsonl"
    assert [d.text for d in documents.open_source(source, errors.append)] == ["a", "b"]
    assert len(errors) == 1 and "a.jsonl line 2: is not UTF-8" in errors[0]
    (tmp_path / "a.jsonl").write_bytes("\ufeffab".encode("utf-16-le")[:-1])
    assert "a.jsonl: cannot be read to its end" in error_of(source)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_other_encoding_error_has_position_and_remedy(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Grüße".encode(encoding))
    line = error_of(f"text:{tmp_path}")
    assert "a.txt: is not UTF-8 at byte 2: convert it" in line and "iconv -f CP1252" in line


@pytest.mark.parametrize(
    "head, message",
    [
        (b"PK\x03\x04", "is a zip archive, not text: unpack it"),
        (b"PAR1", "is a Parquet file, not text: read it as parquet:FILE"),
        (b"%PDF-1.7", "is a PDF file, not text"),
        (b"a".ljust(257) + b"ustar", "is a tar archive, not text: unpack it"),
        ("text".encode("utf-16-le"), "is binary, not text: NUL at byte 1: convert the file"),
    ],
)
def test_other_formats_are_named(tmp_path, head, message):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(head + b" more"))
    assert f"a.txt.gz: {message}" in error_of(f"text:{tmp_path}")


def test_folder_counts_the_files_that_it_leaves_out(tmp_path):
    top = tmp_path / "top"
    (top / ".git").mkdir(parents=True)
    for name in ("a.txt", "b.TXT.GZ", "c.pdf", "d.pdf", "README", ".x.txt", "f.csv.gz"):
        (top / name).write_text(name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/e.md").write_text("e.md")
    (top / "linked").symlink_to(tmp_path / "other")
    (top / "linked again").symlink_to(tmp_path / "other")
    (top / "parent").symlink_to(tmp_path)
    (top / "circle").symlink_to(top)
    (top / "missing.txt").symlink_to("nothing")
    (top / "link.txt").symlink_to(tmp_path / "other/e.md")
    os.mkfifo(top / "pipe.txt")
    assert texts(f"text:{top}") == ["a.txt", "b.TXT.GZ", "e.md", "e.md"]
    assert documents.omitted_files(f"text:{top}") == {
        ".csv.gz": 1,
        ".pdf": 2,
        "hidden": 1,
        "hidden folder": 1,
        "link to a missing file": 1,
        "linked folder that is read elsewhere": 3,
        "pipe or device": 1,
        "without suffix": 1,
    }


def test_existing_path_is_not_a_glob(tmp_path):
    for kind, name in (("jsonl", "my [data]/x[1].jsonl"), ("text", "{a,b}*.txt")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "one"}\n')
        assert len(texts(f"{kind}:{path}")) == 1
        assert len(texts(f"{kind}:{path.parent}")) == 1


def test_folders_and_braces_name_several_files(tmp_path):
    for name in ("a/1.jsonl", "b/2.json", "c/3.ndjson.gz", "c/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}\n')
    assert texts(f"jsonl:{tmp_path}") == ["a/1.jsonl", "b/2.json", "c/3.ndjson.gz"]
    assert texts(f"jsonl:{tmp_path}/{{c,a/{{1,2}}}}*/*nd*") == ["c/3.ndjson.gz"]
    assert texts(f"jsonl:{tmp_path}/{{b,a}}/*.js*") == ["a/1.jsonl", "b/2.json"]
    assert texts(f"text:{tmp_path}/**/*.txt") == ['{"text": "c/note.txt"}']
    assert documents.omitted_files(f"jsonl:{tmp_path}/*/*") == {}
    assert documents.omitted_files(f"jsonl:{tmp_path}/**") == {"folder": 4}
    assert "contains no file with .parq, .parquet, .pq (left out: 1 .json," in error_of(
        f"parquet:{tmp_path}"
    )


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "chat", "tokens"])
def test_unavailable_storage_is_refused(kind):
    for scheme in ("https", "file", ""):
        line = error_of(f"{kind}:{scheme}://bucket/*.jsonl")
        assert line.startswith(f"{kind}:{scheme}://") and "is not supported: use a local" in line
    for folder in ("*.jsonl", "missing", ""):
        line = error_of(f"{kind}:memory://no-bucket/{folder}")
        assert "no file matches" in line or "there is no such object or folder" in line


ROOTS = ["/", "//", "/**", "/**/*.txt", "/../", "/proc", "/proc/self/**/x", "/sys/kernel", "root"]


@pytest.mark.parametrize("path", ROOTS)
def test_whole_disk_is_no_source(path, tmp_path, monkeypatch):
    """A search would read the directories of the whole disk before it ends."""
    (tmp_path / "root").symlink_to("/")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "walk", None)
    for kind in ("text", "jsonl", "parquet"):
        assert "is no folder of text: name a folder below it" in error_of(f"{kind}:{path}")


def test_folder_of_an_unknown_user_is_missing():
    assert "there is no such file or folder" in error_of("text:~nobody-has-this-name/x")


def test_missing_file_error_names_the_cause(tmp_path):
    (tmp_path / "a.txt").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "a.txt: there is a link to a missing file" in error_of(f"text:{tmp_path}/a.txt")
    assert "(left out: 1 pipe or device)" in error_of(f"text:{tmp_path}/pipe.txt")
    assert "(left out: 1 link to a missing file)" in error_of(f"jsonl:{tmp_path}/a*")
    assert "cannot be read (File name too long)" in error_of(f"text:{'a' * 300}")


def test_lines_do_not_depend_on_the_chunks(tmp_path, monkeypatch):
    rng = random.Random(0)
    raw = b"".join(rng.choice([b"\r", b"\n", b"a", b"bc ", b"\r\n"]) for _ in range(3000))
    (tmp_path / "a.txt").write_bytes(raw)
    for size in (1, 2, 3, 7, 1 << 14):
        monkeypatch.setattr(decompression, "CHUNK_BYTES", size)
        assert list(source_files.read_lines(tmp_path / "a.txt")) == raw.splitlines(keepends=True)


@pytest.mark.parametrize("word", ["word ", "語", "x", "é" * 30_000 + " "])
def test_long_line_is_cut_at_spaces_or_characters(tmp_path, monkeypatch, word):
    text = word * (1_000_000 // len(word.encode())) + "\nend\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    results = []
    for size in (1000, 1 << 14):
        monkeypatch.setattr(decompression, "CHUNK_BYTES", size)
        pieces = texts(f"text:{tmp_path}")
        assert "".join(pieces).replace("\n", "") == text.replace("\n", "")
        assert len(pieces) > 50 and max(len(piece.encode()) for piece in pieces) <= 1 << 16
        assert word != "word " or all(piece.endswith(" ") for piece in pieces[:-1])
        results.append(pieces)
    assert results[0] == results[1]


def test_zeros_are_decompressed_in_bounded_chunks(tmp_path):
    """256 MiB of zeros in 8 KB of zstd."""
    compressor = zstandard.ZstdCompressor().compressobj()
    raw = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256)) + compressor.flush()
    (tmp_path / "zeros.zst").write_bytes(raw)
    with open(tmp_path / "zeros.zst", "rb") as file:
        sizes = [len(chunk) for chunk in decompression.decompress(file, ".zst")]
    assert sum(sizes) == 1 << 28 and max(sizes) <= 1 << 27


def test_line_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "MAX_LINE_BYTES", 50_000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + bytes(99_999)))
    assert "a.jsonl.gz: has a line of more than 50,000 bytes" in error_of(f"jsonl:{tmp_path}")


def test_long_ascii_lines_are_cut_at_the_size(tmp_path):
    """Bytes below 0x80 are characters of their own; spaces end a fragment earlier."""
    for byte in (b"a", b"\x7f", b"\x01"):
        line = byte * 90
        fragments = source_files._cut_line(line, 10)
        assert b"".join(fragments) == line
        assert [len(fragment) for fragment in fragments] == [10] * 5 + [40]
    words = b"abc de " * 20
    fragments = source_files._cut_line(words, 10)
    assert b"".join(fragments) == words
    assert all(fragment.endswith(b" ") and len(fragment) <= 10 for fragment in fragments[:-1])
    letters = "é".encode() * 40  # a fragment ends between characters
    assert all(not len(fragment) % 2 for fragment in source_files._cut_line(letters, 9))
    assert source_files._cut_line(b"a" * 40, 10) == [b"a" * 40]
    assert source_files._cut_line(b"a" * 999, 0) == [b"a" * 999]


def test_braces_name_every_combination():
    names = source_files._expand_braces("a{b,c{d,e}}f{1,2}")
    assert set(names) == {f"a{middle}f{last}" for middle in ("b", "cd", "ce") for last in (1, 2)}
    assert source_files._expand_braces("{a}") == ["{a}"]
    assert source_files._expand_braces("{a,}b") == ["ab", "b"]
