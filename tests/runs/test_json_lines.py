"""Valid and invalid lines of .jsonl files."""

import json

from lm.runs import json_lines


def test_invalid_lines_are_counted(tmp_path):
    valid = b'{"attempt": 1, "step": 1}\n'
    invalid = [b"#", b"[1]", b'{"step": "x"}', b'{"step": true}', b'{"step": 1, "\xff": 2}']
    (tmp_path / "metrics.jsonl").write_bytes(valid + b"\n".join(invalid) + b"\n" + valid)
    (tmp_path / "evals.jsonl").write_bytes(valid + b'{"step": 2, "los')  # still being written
    assert json_lines.count_invalid_lines(tmp_path) == {"metrics.jsonl": len(invalid)}
    assert len(list(json_lines.read_rows(tmp_path / "metrics.jsonl"))) == 2
    (sentence,) = json_lines.describe_invalid_lines(tmp_path)
    assert sentence == f"{tmp_path / 'metrics.jsonl'}: 5 invalid lines were skipped"


def test_json_has_no_nan():
    text = json_lines.to_json({"a": float("nan"), "b": [float("inf")]})
    assert json.loads(text) == {"a": "nan", "b": ["inf"]}
