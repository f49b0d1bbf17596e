"""Held-out loss and word completion, with models whose predictions are known."""

import jax
import numpy as np
import pytest
from scipy import stats

from lm.config import schema
from lm.data import dataset, heldout_documents, tokenizers
from lm.data.tokenization import bpe_training
from lm.evaluation import heldout
from lm.parallel import mesh
from lm.reports import paired_errors
from lm.runs import records
from lm.training import step

TEXT = np.frombuffer(b"one two, three-four five6 seven_8; nine (ten) eleven\nand twelve ", np.uint8)
WORDS = heldout.word_token_masks(tokenizers.ByteTokenizer())
TOKENS_NT = np.tile(TEXT.astype(np.int32), (5, 1))


def test_cuts_are_in_words_of_the_second_half():
    cuts = list(heldout.completion_cuts(TOKENS_NT, 60, seed=0, words=WORDS))
    assert len(cuts) == 60 == len({(row, cut) for row, cut, _ in cuts})
    for row, cut, end in cuts:
        assert cut >= TOKENS_NT.shape[1] // 2
        assert heldout.WORD[TOKENS_NT[row, cut:end]].all() and end > cut
        assert not heldout.WORD[TOKENS_NT[row, end]]


def test_cuts_are_reproducible_and_alternate_sequences():
    cuts = list(heldout.completion_cuts(TOKENS_NT, 5, seed=3, words=WORDS))
    assert sorted(row for row, _, _ in cuts) == [0, 1, 2, 3, 4]
    assert cuts == list(heldout.completion_cuts(TOKENS_NT, 5, seed=3, words=WORDS))
    assert cuts != list(heldout.completion_cuts(TOKENS_NT, 5, seed=4, words=WORDS))


@pytest.mark.parametrize("letter", [".", "a"])
def test_text_without_complete_words_has_no_cuts(letter):
    """ "..." has no word, and the word "aaa" does not end in the sequence."""
    tokens_NT = np.full((3, 20), ord(letter))
    assert not list(heldout.completion_cuts(tokens_NT, 9, seed=0, words=WORDS))


@pytest.mark.parametrize(
    "predicted, is_completed", [("at ", True), ("ab ", False), ("ats", False), ("at,", True)]
)
def test_completed_word_needs_all_letters_and_its_end(predicted, is_completed):
    """The model receives "the c". The word is "cat", before any byte that is not of a word."""
    tokens_T = np.frombuffer(b"the cat sat", np.uint8)
    best_T = np.append(tokens_T[1:], 0)
    best_T[4:7] = list(predicted.encode())
    result = heldout.is_word_completed(tokens_T, best_T, cut=5, end=7, words=WORDS)
    assert result == is_completed


def test_words_of_subword_tokens_are_cut_between_tokens():
    bpe = bpe_training.train_bpe(iter(["the cat sat on the mat, then the catalogue sat"] * 9), 300)
    words = heldout.word_token_masks(bpe)
    ids = bpe.encode("the cat sat on the mat, then the cat; sat on the catmat, on the mat the")
    cuts = list(heldout.completion_cuts(ids[None], 99, 0, words))
    assert len(cuts) > 5
    for _, cut, end in cuts:
        expected = bpe.decode(ids[cut:end])
        assert expected.strip().isalpha()
        assert expected.strip() == expected[expected.startswith(" ") :]
        assert not bpe.decode(ids[end:])[0].isalpha()
        best = np.append(ids[1:], 0)
        assert heldout.is_word_completed(ids, best, cut, end, words)
        best[end - 1] = bpe.pieces.index(b"a")
        assert not heldout.is_word_completed(ids, best, cut, end, words)
        best[end - 1] = bpe.vocab_size + 5  # a logit without a token
        assert heldout.is_word_completed(ids, best, cut, end, words)
    completions = [bpe.decode(ids[cut:end]) for _, cut, end in cuts]
    assert "mat" in completions and " catmat" in completions, completions


def test_error_of_a_ratio_matches_repeated_sampling():
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        sizes = rng.integers(20, 40, 200)
        draws.append(heldout.ratio_with_error(rng.normal(2.0 * sizes, 6.0), sizes))
    means, errors = np.array(draws).T
    assert means.std() == pytest.approx(errors.mean(), rel=0.15)
    assert means.mean() == pytest.approx(2.0, abs=0.01)


def test_error_is_clustered_by_document(tiny, tmp_path):
    """Errors over sequences are too small if a document has several sequences."""
    text, device_mesh = dataset.open_dataset(tiny.data, tiny.seed), mesh.make_mesh(tiny.mesh)
    source = text.sources[0]
    rows = heldout_documents.select_rows(text, source, 16)
    document_NT = heldout_documents.target_documents(text, source, rows)
    effects = {d: (d * 7919 % 13) / 13 for d in np.unique(document_NT).tolist()}
    nats_NT = 3 + np.vectorize(effects.get)(document_NT)
    batches = iter(np.split(nats_NT, 16 // tiny.data.batch_size))

    def score(_, batch):
        nats_BT = next(batches)
        return nats_BT, np.zeros(nats_BT.shape, np.int32)

    writer = records.Writer(tmp_path)
    row = heldout.evaluate_heldout(tiny, device_mesh, score, {}, text, writer)
    sizes = np.array([(document_NT == d).sum() for d in effects])
    means = 3 + np.array(list(effects.values()))
    error = heldout.ratio_with_error(means * sizes, sizes)[1]
    assert row["loss_se"] == pytest.approx(error) and error > 0
    assert row[f"n_documents.{source}"] == len(effects)
    sums = paired_errors.load_document_sums({"dir": str(tmp_path), "eval.loss": row["loss"]})
    assert sums[source].nats.sum() / sums[source].targets.sum() == pytest.approx(row["loss"])


def test_perfect_model_has_no_loss_and_completes_all_words(tiny):
    text = dataset.open_dataset(tiny.data, tiny.seed)

    def score(params, batch):
        tokens_BT = np.asarray(batch["tokens"])
        return np.zeros((len(tokens_BT), tokens_BT.shape[1] - 1)), tokens_BT[:, 1:]

    tiny.eval.n_sequences = 13  # not a multiple of the batch size
    row = heldout.evaluate_heldout(tiny, mesh.make_mesh(tiny.mesh), score, {}, text)
    assert row["loss"] == row["loss_se"] == 0
    assert row["completion"] == 1 and row["completion_n"] == 32
    assert row["n_sequences"] == 13


def test_heldout_loss_is_the_mean_of_the_scores(tiny):
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    text = dataset.open_dataset(tiny.data, tiny.seed)
    source = text.sources[0]
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        row = heldout.evaluate_heldout(tiny, program.mesh, program.score, state["params"], text)
        halves = text.heldout(source, 16)[:8], text.heldout(source, 16)[8:]
        batches = [mesh.put_batch(program.mesh, {"tokens": tokens}) for tokens in halves]
        losses = [float(np.mean(program.score(state["params"], batch)[0])) for batch in batches]
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["loss"] == row[f"loss.{source}"]
    n_bytes = (text.heldout(source, 16)[:, 1:] > 0).sum()
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * 16 * 32 / np.log(2) / n_bytes)


def test_sources_have_their_training_weights(tiny, text_file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for number in range(40):
        (other / f"{number}.txt").write_text(f"{number * 7} zzz qqq " * 40)
    first, second = f"text:{text_file}", f"text:{other}"
    tiny.data.sources = {first: 3.0, second: 1.0}
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    text = dataset.open_dataset(tiny.data, tiny.seed)
    with jax.set_mesh(program.mesh):
        row = heldout.evaluate_heldout(
            tiny, program.mesh, program.score, program.init(0)["params"], text
        )
    mean = 0.75 * row[f"loss.{first}"] + 0.25 * row[f"loss.{second}"]
    error = np.hypot(0.75 * row[f"loss_se.{first}"], 0.25 * row[f"loss_se.{second}"])
    assert row["loss"] == pytest.approx(mean) and row["loss_se"] == pytest.approx(error)


def test_excess_is_the_loss_above_the_entropy_of_the_rows(tiny, tmp_path):
    name = "synthetic:grammar?words=8&kinds=2&depth=1&megabytes=0.1"
    tiny.data.sources, tiny.data.cache_dir = {name: 1.0}, str(tmp_path)
    text, device_mesh = dataset.open_dataset(tiny.data, 0), mesh.make_mesh(tiny.mesh)

    def score(_, batch):  # 0.1 nats per token above the best possible model
        nats_BT = dataset.source_nats(text, name, np.asarray(batch["tokens"]))
        assert nats_BT is not None
        return nats_BT + 0.1, np.zeros(nats_BT.shape, np.int32)

    row = heldout.evaluate_heldout(tiny, device_mesh, score, {}, text)
    assert row["excess"] == pytest.approx(0.1, abs=1e-6) and row["excess_se"] < 1e-6
    assert row["loss_se"] > 1e-3 and row["excess"] < row["loss"]


def test_text_of_unknown_entropy_has_no_excess(tiny):
    text = dataset.open_dataset(tiny.data, 0)
    source = text.sources[0]
    assert dataset.source_nats(text, source, text.heldout(source, 2)) is None


def test_error_of_equal_documents_is_that_of_their_mean():
    nats = np.array([3.0, 5.0, 6.5, 4.0])
    mean, error = heldout.ratio_with_error(nats, np.full(4, 2.0))
    assert mean == pytest.approx(np.mean(nats / 2))
    assert error == pytest.approx(stats.sem(nats / 2))
    assert heldout.ratio_with_error(nats[:1], np.ones(1)) == (3.0, 0.0)


def test_completed_words_belong_to_the_document_of_their_first_token():
    """The document changes inside the text: document 3 before position 40, document 8 after."""
    n = TOKENS_NT.shape[1]
    document_T = np.where(np.arange(1, n) < 40, 3, 8)  # document of each target
    scores = heldout.SourceScores(
        TOKENS_NT, np.ones((5, n - 1)), np.zeros((5, n - 1)),
        np.where(np.arange(1, n) < 40, TOKENS_NT[:, 1:], 0), np.tile(document_T, (5, 1)),
    )  # fmt: skip
    counts = heldout._completions_by_document(scores, 60, 0, WORDS)
    cuts = list(heldout.completion_cuts(TOKENS_NT, 60, seed=0, words=WORDS))
    n_words = [sum(cut < 40 for _, cut, _ in cuts), sum(cut >= 40 for _, cut, _ in cuts)]
    n_complete = sum(end < 40 for _, cut, end in cuts)
    assert sorted(counts) == sorted([(n_complete, n_words[0]), (0, n_words[1])])
    assert min(n_words) > 0 and 0 < n_complete < 60


def test_scores_of_no_sequences_are_refused(tiny):
    batch = {"tokens": np.zeros((0, 9), np.int32)}
    with pytest.raises(ValueError, match="batch contains 0 sequences"):
        heldout.score_rows(tiny, mesh.make_mesh(schema.Mesh()), pytest.fail, {}, batch)
