"""JSON objects and lines with checksums."""

import json

from lm.runs import filesystem, json_files


def test_damaged_lines_are_numbered(tmp_path):
    valid = b'{"attempt": 1, "step": 1}\n'
    invalid = [b"#", b"[1]", b'{"step": "x"}', b'{"step": true}', b'{"step": 1, "\xff": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(valid + b"\n".join(invalid) + b"\n" + valid)
    (tmp_path / "evals.jsonl").write_bytes(valid + b'{"step": 2, "los')  # still being written
    content = json_files.read_file(tmp_path / "metrics.jsonl")
    assert (
        list(content.rows) == [1, 7]
        and content.corrupt_lines == [2, 3, 4, 5, 6]
        and not content.truncated_line
    )
    content = json_files.read_file(tmp_path / "evals.jsonl")
    assert (list(content.rows), content.corrupt_lines, content.truncated_line) == ([1], [], 2)


def test_json_has_no_nan():
    text = json_files.to_json({"a": float("nan"), "b": [float("inf")]})
    assert json.loads(text) == {"a": "nan", "b": ["inf"]}


class UncomparableRow(dict):
    """A row that must not be compared with other rows, which takes quadratic time."""

    __hash__ = None

    def __eq__(self, other):
        raise AssertionError("two rows were compared")


def test_final_row_is_found_without_comparing_rows(tmp_path, monkeypatch):
    rows: dict[int, dict] = {number: UncomparableRow(step=number) for number in range(1, 50)}
    content = json_files.JsonLines(rows, [], 0)
    monkeypatch.setattr(json_files, "read_file", lambda path: content)
    assert not json_files.find_missing_step(tmp_path / "evals.jsonl", 30)
    assert "no evaluation of the final step 99" in json_files.find_missing_step(tmp_path, 99)


def test_line_that_is_being_appended_is_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "APPEND_SECONDS", 0.0)
    final, added = '{"attempt": 1, "step": 20}', '{"attempt": 1, "step": 20, "task": 1}'
    reads = iter([[final, added[:-9]], [final, added]])
    monkeypatch.setattr(filesystem, "read_lines", lambda path: next(reads))
    assert not json_files.find_missing_step(tmp_path / "evals.jsonl", 20)
    monkeypatch.setattr(filesystem, "read_lines", lambda path: [final, added[:-9]])
    assert "line 2 of" in json_files.find_missing_step(tmp_path / "evals.jsonl", 20)
