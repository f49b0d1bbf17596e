"""Records of JSON Lines, JSON arrays and Parquet, and the rule for invalid records."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from lm.data.sources import chat, documents, readers

ROWS = [{"text": f"[{i}] {{", "list": [{"text": "inner"}, []], "note": '"] }'} for i in range(6)]
ARRAYS = {
    "one line": json.dumps(ROWS),
    "one line per object": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "brackets on the lines": "[" + ",\n".join(map(json.dumps, ROWS)) + "]",
    "comma first": "\n\n[ " + "\n, ".join(map(json.dumps, ROWS)) + "\n]\n\n",
    "comma last": "[\n" + ",\n".join(map(json.dumps, ROWS)) + ",\n]\n",
    "indented": json.dumps(ROWS, indent=2),
    "two per line": "[" + ",\n".join(f"{json.dumps(a)}, {json.dumps(a)}" for a in ROWS[:3]) + "]",
}


def read(source):
    """Return the texts of a source and the errors of its invalid input."""
    errors = []
    texts = [document.text for document in documents.open_source(source, errors.append)]
    assert not any("\n" in error for error in errors)
    return texts, errors


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("layout", ARRAYS)
def test_json_array_gives_its_objects(tmp_path, layout, mark):
    path = tmp_path / "a.json"
    path.write_text(mark + ARRAYS[layout], encoding="utf-8")
    rows = [row for _, row in readers.read_json_lines(path)]
    assert rows == (ROWS if layout != "two per line" else [r for r in ROWS[:3] for _ in "12"])


def test_record_of_an_array_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS[:2], indent=1))
    assert [where for where, _ in readers.read_json_lines(path)] == [
        f"{path} line 2",
        f"{path} line 12",
    ]
    path.write_text(json.dumps(ROWS[:2]))
    assert [where for where, _ in readers.read_json_lines(path)] == [
        f"{path} line 1 item 1",
        f"{path} line 1 item 2",
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace('"text": "', '"text": oops "'),
        lambda line: line.replace("}", "", 1),
        lambda line: line.replace("}", "}}", 1),
        lambda line: line.replace("]", "", 1),
        lambda line: line.replace('"text": "', '"text": "\udcff'),
    ],
)
def test_invalid_element_of_an_array_is_left_out(tmp_path, indent, damage):
    """Four of five elements remain, with one object per line and with an indented array."""
    rows = [{"text": str(i), "list": [i]} for i in range(5)]
    elements = [json.dumps(row, indent=indent) for row in rows]
    elements[2] = damage(elements[2])
    assert elements[2] != json.dumps(rows[2], indent=indent)
    raw = ("[\n" + ",\n".join(elements) + "\n]\n").encode(errors="surrogateescape")
    (tmp_path / "a.json").write_bytes(raw)
    texts, errors = read(f"jsonl:{tmp_path}/a.json")
    assert texts == ["0", "1", "3", "4"]
    assert errors and all("a.json line " in error for error in errors)
    assert indent or len(errors) == 1 and "a.json line 4: is not" in errors[0]


def test_truncated_array_is_reported(tmp_path):
    (tmp_path / "a.json").write_text(ARRAYS["one line per object"][:-60])
    texts, errors = read(f"jsonl:{tmp_path}/a.json")
    assert texts == [row["text"] for row in ROWS[:5]]
    assert "line 7: is not JSON" in errors[0] and "its JSON array has no end" in errors[1]


def test_array_in_json_lines_is_an_invalid_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('["x"]\n{"text": "a"}\n[1]\n{"text": "b"}\n')
    texts, errors = read(f"jsonl:{tmp_path}/a.jsonl")
    assert texts == ["a", "b"]
    assert "line 1: must be a JSON object, not str" in errors[0]
    assert "line 3: must be a JSON object, not list" in errors[1]


@pytest.mark.parametrize("kind", ["jsonl", "chat"])
def test_exactly_the_invalid_lines_are_left_out(tmp_path, kind):
    good = ['{"text": "good", "prompt": "p", "target": "good"}'] * 2
    bad = ["{", '"x"', "[" * 20_000, '{"text": 1, "prompt": 1, "target": 1}', "{}", "\udcff"]
    bad += ['{"text": ' + "9" * 5000 + "}", "NaN", '{"text": "a"} {"text": "b"}']
    lines = [line for row in bad for line in (row, good[0])]
    raw = "\n".join([good[0], *lines]).encode(errors="surrogateescape")
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "b.jsonl").write_text("\n".join(good))
    texts, errors = read(f"{kind}:{tmp_path}/*.jsonl")
    assert len(texts) == 1 + len(bad) + 2 and all("good" in text for text in texts)
    assert [error.split(":")[0].split()[-1] for error in errors] == [
        str(2 * i + 2) for i in range(len(bad))
    ]


def test_null_is_an_empty_document_in_all_formats(tmp_path):
    values = ["a", None, "", " \n", "b"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": v}) + "\n" for v in values))
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        texts, errors = read(f"{kind}:{tmp_path}")
        assert (texts, errors) == (["a", "", "", " \n", "b"], [])


def test_invalid_string_of_parquet_has_its_row(tmp_path):
    values = pyarrow.array([b"a", b"\xff", b"b", b"a\xe9", b"c"]).cast(pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(values), values.buffers())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    texts, errors = read(f"parquet:{tmp_path}")
    assert texts == ["a", "b", "c"] and len(errors) == 2
    assert "a.parquet row 1: is not UTF-8 at byte 0 of 'text'" in errors[0]
    assert "a.parquet row 3: is not UTF-8 at byte 1" in errors[1]


@pytest.mark.parametrize(
    "type_name", ["string", "large_string", "string_view", "dictionary", "null"]
)
def test_all_text_types_of_parquet_are_read(tmp_path, type_name):
    column = pyarrow.array(["a", "b", None])
    if type_name == "dictionary":
        column = column.dictionary_encode()
    elif type_name == "null":
        column = pyarrow.nulls(3)
    else:
        column = column.cast(getattr(pyarrow, type_name)())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    expected = ["", "", ""] if type_name == "null" else ["a", "b", ""]
    assert read(f"parquet:{tmp_path}") == (expected, [])


def test_binary_column_of_parquet_is_refused(tmp_path):
    parquet.write_table(pyarrow.table({"text": [b"a"]}), tmp_path / "a.parquet")
    texts, errors = read(f"parquet:{tmp_path}")
    assert not texts and "field 'text' is binary, not text: choose with" in errors[0]


def test_field_may_be_a_path_with_dots(tmp_path):
    rows = [{"doc": {"text": "a", "n": 1}}, {"doc.text": "b"}, {"doc": {"text": None}}, {"doc": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, errors = read(f"jsonl:{tmp_path}?field=doc.text")
    assert texts == ["a", "b", ""] and len(errors) == 1
    assert "line 4: has no field 'doc.text' but doc: choose with" in errors[0]
    assert "line 1: field 'doc.n' is int, not text" in read(f"jsonl:{tmp_path}?field=doc.n")[1][0]


def test_forbidden_parquet_file_has_its_reason(tmp_path, monkeypatch):
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr(parquet, "ParquetFile", lambda *_, **__: (_ for _ in ()).throw(error))
    assert read(f"parquet:{tmp_path}")[1] == [
        f"{tmp_path}/a.parquet: cannot be read (Permission denied)"
    ]


def test_long_field_names_are_one_short_line(tmp_path):
    row = {f"name\n{i}\ud800" * 9: 1 for i in range(1000)}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    _, (error,) = read(f"jsonl:{tmp_path}/a.jsonl")
    assert "has no field 'text' but name" in error and len(error.encode()) < 700


def test_only_an_invalid_piece_of_a_text_file_is_left_out(tmp_path):
    paragraphs = [f"{i} ".encode() * readers.PIECE_BYTES for i in range(3)]
    paragraphs[1] += b"\xff"
    (tmp_path / "a.txt").write_bytes(b"\n\n".join(paragraphs))
    (tmp_path / "b.txt").write_bytes(b"")
    texts, errors = read(f"text:{tmp_path}")
    assert [text[:1] for text in texts] == ["0", "2", ""] and len(errors) == 1
    position = sum(len(p) + 2 for p in paragraphs[:2]) - 3
    assert f"a.txt: is not UTF-8 at byte {position}" in errors[0]


def test_chat_file_may_be_an_array_of_conversations(tmp_path):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    rows = [{"messages": messages}, {"prompt": "a", "target": "b"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    examples = list(chat.chat_examples(chat.parse_chat_source(str(tmp_path))))
    assert [example.turns[0].answer for example in examples] == ["yo", "b"]


def test_pieces_end_at_blank_lines_or_at_four_times_the_size(tmp_path, monkeypatch):
    """A fragment of a long line ends a piece at half of the size."""
    monkeypatch.setattr(readers, "PIECE_BYTES", 100)
    path, line = tmp_path / "a.txt", b"x" * 9 + b"\n"
    for text, sizes in (
        (line * 100, [400, 400, 200]),
        ((line * 10 + b"\n") * 3, [101, 101, 101]),
        ((line * 9 + b"\n") * 5, [182, 182, 91]),
        (line * 3 + b"\n" + b"y" * 1000, [131, *[100] * 5, 400]),
    ):
        path.write_bytes(text)
        pieces = list(readers._text_pieces(path))
        assert [len(content) for _, content in pieces] == sizes
        assert b"".join(content for _, content in pieces) == text
        assert [start for start, _ in pieces] == [sum(sizes[:i]) for i in range(len(sizes))]
