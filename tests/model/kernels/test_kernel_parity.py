"""Tests of the comparison of kernels with plain kernels."""

import pytest

from lm.model.kernels import grouped_products, kernel_parity

ATTENTION = kernel_parity.ParityCase(
    "attention", "splash", n_rows=1, seq_len=128, n_heads=2, n_kv_heads=1, d_head=16,
    has_segments=True,
)  # fmt: skip
EXPERTS = kernel_parity.ParityCase(
    "experts", "tiles", seq_len=64, n_experts=3, d_model=16, d_expert=8
)


@pytest.mark.parametrize("case", [ATTENTION, EXPERTS], ids=["attention", "experts"])
def test_equal_kernel_passes(case):
    row = kernel_parity.check_kernel_parity(case, is_interpreted=True)
    assert row["is_equal"] and not row["failure"], row
    assert set(row["errors"]) >= {"output"} and 0 < max(row["errors"].values()) < row["tolerance"]


def test_different_kernel_fails(monkeypatch):
    monkeypatch.setattr(
        grouped_products, "multiply_groups", lambda kernel, a_PX, w_EXY, *_: a_PX @ w_EXY[0]
    )
    row = kernel_parity.check_kernel_parity(EXPERTS)
    assert not row["is_equal"] and row["errors"]["output"] > row["tolerance"]


def test_failing_kernel_is_one_row():
    row = kernel_parity.check_kernel_parity(ATTENTION)
    assert not row["is_equal"] and ":" in row["failure"] and not row["errors"]


def test_cases_cover_masks_and_head_sizes():
    for platform in ("gpu", "tpu"):
        cases = kernel_parity.parity_cases(platform, has_tokamax=True)
        assert {case.d_head for case in cases} >= {64, 128, 256}
        assert {case.has_segments for case in cases} == {False, True}
    assert kernel_parity.parity_cases("cpu", has_tokamax=True) == []
