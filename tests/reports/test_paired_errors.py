"""Tests of the paired error of the difference between two runs."""

import io
import warnings
import zipfile

import numpy as np
import pytest
from fixtures import verified_sweep
from scipy import stats

from lm.data import heldout_documents
from lm.reports import paired_errors, transfer_analysis
from lm.runs import records
from lm.runs.items import array_files

N_DOCUMENTS = 300
SOURCES = ("text:a/*", "code")


def write_run(folder, name, nats_by_source, targets):
    documents = np.arange(N_DOCUMENTS)
    sums = {source: (documents, nats, targets) for source, nats in nats_by_source.items()}
    shares = {source: 1 / len(sums) for source in sums}
    (folder / name).mkdir()
    (folder / name / "heldout.npz").write_bytes(heldout_documents.encode_sums(shares, sums))
    loss = np.mean([nats.sum() / targets.sum() for nats in nats_by_source.values()])
    return {"name": name, "dir": str(folder / name), "eval.loss": float(loss), "status": "done",
            "params.non_embedding": 1, "unique_tokens": 9, "eval.loss_se": 0.1,
            "corpus.hash": "c", "data.seq_len": 8}  # fmt: skip


def draw_losses(rng, targets):
    """Return nats of two runs: documents differ by 0.5, and the gain of a document by 0.02."""
    hard = 3 + 0.5 * rng.standard_normal(N_DOCUMENTS)
    gains = 0.1 + 0.02 * rng.standard_normal(N_DOCUMENTS)
    return hard * targets, (hard - gains) * targets


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(50, 500, N_DOCUMENTS).astype(float)
    pairs = {source: draw_losses(rng, targets) for source in SOURCES}
    return [
        write_run(tmp_path, name, {source: pair[i] for source, pair in pairs.items()}, targets)
        for i, name in enumerate(("first", "second"))
    ]


def difference_of(first, second):
    result = paired_errors.paired_difference([first], [second])
    assert result is not None
    return result


def test_paired_error_excludes_the_difficulty_of_documents(runs):
    difference, se = difference_of(*runs)
    assert difference == pytest.approx(runs[0]["eval.loss"] - runs[1]["eval.loss"])
    assert difference == pytest.approx(0.1, abs=4 * se)
    assert se == pytest.approx(0.02 / (2 * N_DOCUMENTS) ** 0.5, rel=0.3)
    assert difference_of(runs[0], runs[0]) == (0, 0)


def test_paired_error_matches_repeated_sampling(tmp_path):
    rng = np.random.default_rng(1)
    results = []
    for i in range(60):
        targets = rng.integers(50, 500, N_DOCUMENTS).astype(float)
        losses = draw_losses(rng, targets)
        pair = [write_run(tmp_path, f"{i}-{k}", {"a": losses[k]}, targets) for k in range(2)]
        results.append(difference_of(*pair))
    differences, errors = np.array(results).T
    assert differences.std() == pytest.approx(errors.mean(), rel=0.25)


def test_runs_on_other_rows_have_no_paired_error(runs, tmp_path):
    first, second = runs
    changes = ({"corpus.hash": "d"}, {"eval.loss": 9.0}, {"dir": str(tmp_path)}, {"dir": ""})
    for change in changes:
        assert paired_errors.paired_difference([first], [{**second, **change}]) is None
    first, second = ({**row, "data.tokenizer": row["name"]} for row in runs)  # other paths
    assert paired_errors.paired_difference([first], [second]) is None
    first, second = ({**row, "tokenizer.hash": "t"} for row in (first, second))
    assert difference_of(first, second) == difference_of(*runs)
    targets = np.full(N_DOCUMENTS, 9.0)
    other = write_run(tmp_path, "other", dict.fromkeys(SOURCES, 3 * targets), targets)
    assert paired_errors.paired_difference([first], [other]) is None


def test_change_of_one_source_needs_equal_rows_of_that_source(runs):
    parent, tuned = runs
    tuned = {**tuned, "start.run": "first", "corpus.hash": "other", "eval.loss.code": 3.0}
    parent = {**parent, "eval.loss.code": 3.2, "data.sources": {"code": 1.0}}
    (point,) = transfer_analysis.forgetting([parent, tuned])
    assert point["change"] == pytest.approx(-0.2) and 0 < point["change_se"] < 0.002
    difference, se = paired_errors.paired_difference([parent], [tuned], "code") or (0, 0)
    assert difference == pytest.approx(0.1, abs=0.01) and se == point["change_se"]
    assert paired_errors.paired_difference([parent], [tuned], "absent") is None


def test_gain_of_fine_tuning_has_the_paired_error(runs):
    scratch, tuned = runs[0], {**runs[1], "start.run": "parent"}
    (pair,) = transfer_analysis.finetune_pairs([scratch, tuned])
    assert pair["gain"] == pytest.approx(0.1, abs=0.01) and pair["gain_se"] < 0.002
    seeds = [
        scratch,
        {**scratch, "seed": 1, "name": "other", "eval.loss": scratch["eval.loss"] + 0.2},
    ]
    (two_seeds,) = transfer_analysis.finetune_pairs([*seeds, tuned])
    assert two_seeds["gain_se"] >= (0.2**2 / 4) ** 0.5
    (unpaired,) = transfer_analysis.finetune_pairs([{**scratch, "dir": ""}, tuned])
    assert unpaired["gain_se"] == pytest.approx(0.1 * 2**0.5)


def npy_header(shape: str, dtype: str = "<f8") -> bytes:
    """Return the header of a .npy file of version 1.0, with a shape as text."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        npy_header("(1099511627776,)") + b"12345678",
        npy_header("(4294967296, 4294967296, 4294967296)"),
        npy_header("(1,)") + b"123",
        npy_header("(1,)", "|O") + b"cposix\nsystem\n",
        npy_header("(131072,)") + bytes(1 << 20),  # zeros, which compress to a kilobyte
    ],
)
def test_size_of_an_array_is_checked_before_it_is_read(runs, monkeypatch, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sources.npy", content)
    path = f"{runs[0]['dir']}/heldout.npz"
    with open(path, "wb") as npz:
        npz.write(file.getvalue())
    monkeypatch.setattr(array_files, "MAX_BYTES", 1 << 16)
    with pytest.warns(UserWarning, match=r"heldout.npz is damaged and not used \(ValueError\)"):
        assert paired_errors.load_document_sums(runs[0]) == {}


def test_paired_error_of_equal_documents_is_that_of_their_mean(tmp_path):
    rng, targets = np.random.default_rng(3), np.full(N_DOCUMENTS, 2.0)
    losses = rng.normal(3, 1, (2, N_DOCUMENTS))
    first, second = (
        write_run(tmp_path, name, {"code": nats * targets}, targets)
        for name, nats in zip(("a", "b"), losses, strict=True)
    )
    expected = losses[0].mean() - losses[1].mean(), stats.sem(losses[0] - losses[1])
    assert difference_of(first, second) == pytest.approx(expected, rel=1e-9)


def test_sums_of_another_evaluation_are_reported(tmp_path):
    """The report prints the warning. With early stopping, other sums are usual."""
    folder = verified_sweep.write_sweep(tmp_path)
    row, other = records.load_runs(folder)[:2]
    (folder / "a" / "heldout.npz").write_bytes((folder / "b" / "heldout.npz").read_bytes())
    with pytest.warns(UserWarning, match="a/heldout.npz belongs to another evaluation"):
        assert paired_errors.load_document_sums(row) == {}
    assert paired_errors.load_document_sums(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_errors.load_document_sums(row | {"eval.patience": 2}) == {}
