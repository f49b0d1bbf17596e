"""Tests of the flags of experiments.sweep --target_size."""

from pathlib import Path

import pytest
from fixtures import documentation

from experiments.common.ladder_search import limits

SWEEP = Path(__file__).parent.parent.parent / "configs" / "sweeps" / "tiny.py"


def run_sweep(arguments: str) -> tuple[int, str]:
    """Return the exit status and the output of the command."""
    return documentation.run_in_process(f"experiments.sweep --sweep={SWEEP} {arguments}")


def test_wrong_flags_give_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ("--max_error=1%", "--max_error has an effect only with --target_size"),
        ("--target_size=4M --max_error=1", "--max_error=1 must be a fraction such as 1% or 0.01"),
        ("--target_size=4M --time_budget=soon", "--time_budget=soon must be a duration such as"),
        ("--target_size=4M --jobs=2", "--jobs=2 and --target_size exclude each other"),
        ("--target_size=4M --dry_run=here", "--dry_run=here and --target_size exclude"),
        ("--target_size=25K", "the sweep has 2 smaller sizes, and the law needs 4"),
        ("--target_size=4Q", "size 4Q does not exist"),
    ):
        status, output = run_sweep(arguments)
        assert status == 2 and message in output and output.count("\n") == 1, output
    assert not list(tmp_path.iterdir())


def test_limits_are_parsed():
    assert [limits.parse_duration(text) for text in ("45s", "1.5m", "2h")] == [45, 90, 7200]
    values = [limits.parse_fraction(text, "max_error") for text in ("1%", "0.5%", ".02", "0.01")]
    assert values == pytest.approx([0.01, 0.005, 0.02, 0.01])
    for text in ("0%", "100%", "1 percent", "-1%", "nan"):
        with pytest.raises(ValueError, match="must be a fraction"):
            limits.parse_fraction(text, "max_error")
