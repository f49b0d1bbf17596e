"""300 mutated sources: each is prepared correctly or refused in one line.

The mutated records are counted independently of the readers. The number of documents, duplicates
and counted rejections of a prepared source must equal the number of records.
"""

import bz2
import collections
import gzip
import json
import lzma
import os
import random
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from lm.config import schema, validation
from lm.data import corpus
from lm.data.prepared import corpus_manifest

N_SOURCES = 300
N_QUICK_SOURCES = 30
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".ZST": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
# Lines that are not records with text, and lines whose text is empty.
INVALID_LINES = (
    "{",
    '"text"',
    "[" * 5000,
    '{"text": ' * 2000,
    '{"text": ' + "7" * 5000 + "}",
    '{"text": 5}',
    '{"text": ["a"]}',
    '{"text": {"a": 1}}',
    '{"body": "a"}',
    '{"text": "a"} {"text": "b"}',
    '{"text": "half a pair \\ud800"}',
    '{"text": "NUL \\u0000"}',
    '{"text": "NUL \0"}',
    '{"text": "tab \t"}',
    "NaN",
    "{'text': 'a'}",
)
EMPTY_LINES = ('{"text": null}', '{"text": ""}', '{"text": " \\n\\t"}')


class Expected:
    """Counts of the records that a mutated source contains."""

    def __init__(self, texts=(), broken: int = 0, empty: int = 0, is_unreadable: bool = False):
        self.texts = collections.Counter(texts)
        self.broken, self.empty = broken, empty
        self.is_unreadable = is_unreadable  # any record may be lost: see check_damaged


def sample_texts(rng: random.Random) -> list[str]:
    words = ["plain", "häppy", "日本語", "😀", "a\\b", 'quo"te', "x" * 50, "[", "}", "tab\there"]
    n_texts = rng.choice([1, 2, 9, 40])
    texts = [" ".join(rng.choices(words, k=rng.choice([1, 5, 30]))) for _ in range(n_texts)]
    return [f"{i} {text}" for i, text in enumerate(texts)]


def json_lines(rng: random.Random, folder: Path) -> tuple[str, Expected]:
    """Write JSON Lines or a JSON array with invalid and empty lines, in any encoding."""
    texts = sample_texts(rng)
    lines = [json.dumps({"text": t, "id": 1}, ensure_ascii=rng.random() < 0.5) for t in texts]
    invalid = rng.choices(INVALID_LINES, k=rng.choice([0, 0, 1, 5]))
    empty = rng.choices(EMPTY_LINES, k=rng.choice([0, 1, 3]))
    is_array = rng.random() < 0.2
    if is_array:
        invalid = [line for line in invalid if line.count("{") == line.count("}") and line != "{"]
        invalid = [line for line in invalid if not line.startswith("[") and "} {" not in line]
        content = [*lines, *invalid, *empty]
        rng.shuffle(content)
        raw = "[" + rng.choice(["", "\n"]) + ",\n".join(content) + "\n]"
    else:
        content = [*lines, *invalid, *empty, *rng.choices(["", "  "], k=2)]
        rng.shuffle(content)
        if content[0].startswith("["):
            content.insert(0, "")
            content[0], content[-1] = content[-1], content[0]
        raw = rng.choice(["\n", "\r\n", "\r"]).join(content) + rng.choice(["", "\n"])
    encoding = rng.choice(ENCODINGS)
    suffix = rng.choice(list(COMPRESSIONS))
    path = folder / f"{rng.choice(['a', 'ä [1]', 'b c'])}.{rng.choice(['jsonl', 'json', 'JSONL'])}"
    path = path.with_name(path.name + suffix)
    path.write_bytes(COMPRESSIONS[suffix](raw.encode(encoding)))
    source = rng.choice([str(path), str(folder)])
    return f"jsonl:{source}", Expected(texts, len(invalid), len(empty))


def parquet_file(rng: random.Random, folder: Path) -> tuple[str, Expected]:
    """Write a Parquet file with null, empty and invalid strings, or with another type."""
    texts = sample_texts(rng)
    values = [*texts, *rng.choices([None, "", " "], k=rng.choice([0, 1, 3]))]
    n_empty = len(values) - len(texts)
    raw = [None if value is None else value.encode() for value in values]
    n_invalid = rng.choice([0, 0, 1, 3])
    raw += [b"\xff\xfe"] * n_invalid
    rng.shuffle(raw)
    array = pyarrow.array(raw, pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(array), array.buffers())
    if rng.random() < 0.15:
        column = rng.choice(
            [array, pyarrow.array(range(len(raw))), pyarrow.array([[1]] * len(raw))]
        )
        texts, n_invalid, n_empty = [], 1, 0
    table = pyarrow.table({"id": list(range(len(raw))), "text": column})
    size = rng.choice([1, 7, 1000])
    parquet.write_table(table, folder / "a.parquet", row_group_size=size, use_dictionary=size > 1)
    return f"parquet:{folder}", Expected(texts, n_invalid, n_empty)


def text_file(rng: random.Random, folder: Path) -> tuple[str, Expected]:
    """Write a text file: paragraphs, one long line, blank, empty, or bytes that are not text."""
    encoding = rng.choice([*ENCODINGS, "latin-1"])
    long_line = rng.choice(["", " "]).join(f"wörd{i}" for i in range(12_000))
    text = rng.choice(["häppy", long_line, "", " \n \n", "a\r\rb"])
    raw = text.encode(encoding)
    n_broken = int(encoding == "latin-1" and not text.isascii())
    if rng.random() < 0.2:
        raw, n_broken = rng.choice([b"\0\1", b"\x89PNG\r\n\x1a\n\0", b"\xff\xd8", b"\x80abc"]), 1
    suffix = rng.choice(list(COMPRESSIONS))
    (folder / f"a.txt{suffix}").write_bytes(COMPRESSIONS[suffix](raw))
    (folder / "b.pdf").write_bytes(b"%PDF")
    is_empty = not n_broken and not text.strip()
    return f"text:{folder}", Expected([] if n_broken or is_empty else [text], n_broken, is_empty)


def damaged_file(rng: random.Random, folder: Path) -> tuple[str, Expected]:
    """Truncate, overwrite or extend the bytes of a file of another kind."""
    source, expected = rng.choice([json_lines, parquet_file, text_file])(rng, folder)
    path = next(path for path in folder.iterdir() if path.suffix != ".pdf")
    raw = bytearray(path.read_bytes())
    kind = rng.choice(["truncate", "overwrite", "overwrite", "extend", "garbage"])
    position = rng.randrange(len(raw) + 1)
    if kind == "truncate":
        del raw[position:]
    elif kind == "overwrite":
        raw[position : position + 1] = bytes([rng.randrange(32, 127)])
    elif kind == "extend":
        raw += rng.randbytes(200)
    else:
        raw[:] = rng.randbytes(len(raw))
    path.write_bytes(raw)
    expected.is_unreadable = True
    return source, expected


def odd_folder(rng: random.Random, folder: Path) -> tuple[str, Expected]:
    """Write a folder with links, a pipe, hidden files and other suffixes, or no file at all."""
    inner = folder / "inner [x]"
    inner.mkdir()
    (inner / "circle").symlink_to(folder)
    (inner / "missing.jsonl").symlink_to("nothing")
    os.mkfifo(inner / "pipe.jsonl")
    (inner / ".hidden.jsonl").write_text("hidden")
    (inner / "table.csv").write_text("a,b")
    texts = sample_texts(rng) if rng.random() < 0.6 else []
    if texts:
        lines = [json.dumps({"text": text}) for text in texts]
        (inner / "a.jsonl").write_text("\n".join(lines))
    name = rng.choice([folder, inner, folder / "**/*.jsonl", folder / "{inner*,no}/*.jsonl"])
    return f"jsonl:{name}", Expected(texts)


def check_source(seed: int, folder: Path) -> str:
    """Prepare a mutated source twice, and return "KIND: correct" or "KIND: refused".

    With data.on_error="stop", an invalid record must be refused in one line. With "skip", exactly
    the valid records must be in the corpus, and the others in its counts.
    """
    rng = random.Random(seed)
    makers = (json_lines, parquet_file, text_file, damaged_file, odd_folder)
    maker = makers[seed % len(makers)]
    (folder / "source").mkdir()
    source, expected = maker(rng, folder / "source")
    results = {}
    for on_error in ("stop", "skip"):
        run = schema.Run(name="fuzz")
        run.data = schema.Data({source: 1.0}, str(folder / f"data {on_error}"), on_error=on_error)
        try:
            validation.validate_run(run)
            results[on_error] = corpus.prepare_corpus(run.data)[source]
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1200, str(error)
            assert type(error) in (ValueError, schema.ConfigError), repr(error)
            str(error).encode()
            results[on_error] = str(error)
    stopped, skipped = results["stop"], results["skip"]
    if expected.is_unreadable:
        check_damaged(stopped, skipped)
        return f"{maker.__name__}: {'refused' if isinstance(stopped, str) else 'correct'}"
    if isinstance(skipped, corpus_manifest.Manifest):
        check_counts(skipped, expected)
    else:
        assert not expected.texts, (source, skipped)
    is_refused = isinstance(stopped, str)
    assert is_refused == bool(expected.broken or not expected.texts), (source, stopped)
    return f"{maker.__name__}: {'refused' if is_refused else 'correct'}"


def check_damaged(
    stopped: str | corpus_manifest.Manifest, skipped: str | corpus_manifest.Manifest
) -> None:
    """Check the results of a damaged file, whose number of valid records is unknown.

    If a record was refused, it is counted when it is skipped. Otherwise both results are equal.
    """
    if isinstance(stopped, corpus_manifest.Manifest):
        assert isinstance(skipped, corpus_manifest.Manifest) and skipped.hash == stopped.hash
        assert "broken" not in skipped.dropped
    elif isinstance(skipped, corpus_manifest.Manifest):
        assert skipped.dropped["broken"] > 0
    else:
        assert stopped


def check_counts(manifest: corpus_manifest.Manifest, expected: Expected) -> None:
    """Check that each record is in the corpus, a duplicate, or in the counts of rejections."""
    n_read = sum(manifest.documents.values()) + manifest.duplicates
    dropped = collections.Counter(manifest.dropped)
    assert dropped == +collections.Counter(broken=expected.broken, empty=expected.empty)
    n_bytes = sum(manifest.bytes.values())
    if manifest.source.startswith("text:"):
        (text,) = expected.texts
        assert n_bytes == len(text.replace("\r", "\n").strip("\n").encode())
        assert n_read == 1 or n_read > len(text.encode()) >> 17
        assert manifest.omitted_files == {".pdf": 1}
    else:
        assert n_read == expected.texts.total()
        assert n_bytes == sum(len(text.encode()) for text in expected.texts)


def check_sources(seeds, folder: Path) -> collections.Counter:
    results = collections.Counter()
    for seed in seeds:
        (folder / str(seed)).mkdir()
        results[check_source(seed, folder / str(seed))] += 1
    return results


def test_mutated_source_is_prepared_or_refused(tmp_path):
    results = check_sources(range(N_QUICK_SOURCES), tmp_path)
    assert results.total() == N_QUICK_SOURCES and len(results) >= 9


@pytest.mark.slow
def test_all_mutated_sources_are_prepared_or_refused(tmp_path):
    results = check_sources(range(N_QUICK_SOURCES, N_SOURCES), tmp_path)
    print(dict(sorted(results.items())))
    assert len(results) == 10
