"""JSON objects and lines with checksums."""

import json

from lm.runs import json_files


def test_damaged_lines_are_numbered(tmp_path):
    valid = b'{"attempt": 1, "step": 1}\n'
    invalid = [b"#", b"[1]", b'{"step": "x"}', b'{"step": true}', b'{"step": 1, "\xff": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(valid + b"\n".join(invalid) + b"\n" + valid)
    (tmp_path / "evals.jsonl").write_bytes(valid + b'{"step": 2, "los')  # still being written
    content = json_files.read_file(tmp_path / "metrics.jsonl")
    assert list(content.rows) == [1, 7] and content.damaged == [2, 3, 4, 5, 6] and not content.cut
    content = json_files.read_file(tmp_path / "evals.jsonl")
    assert (list(content.rows), content.damaged, content.cut) == ([1], [], 2)


def test_json_has_no_nan():
    text = json_files.to_json({"a": float("nan"), "b": [float("inf")]})
    assert json.loads(text) == {"a": "nan", "b": ["inf"]}
