import jax
import numpy as np
import pytest

from lm.data import dataset, tokenizers
from lm.evaluation import heldout
from lm.parallel import mesh
from lm.training import step

TEXT = np.frombuffer(b"one two, three-four five6 seven_8; nine (ten) eleven\nand twelve ", np.uint8)
WORDS = heldout.word_token_masks(tokenizers.ByteTokenizer())
TOKENS_NT = np.tile(TEXT.astype(np.int32), (5, 1))


def test_cuts_lie_in_words_of_the_later_half_and_end_where_the_word_does():
    found = list(heldout.completion_cuts(TOKENS_NT, 60, seed=0, words=WORDS))
    assert len(found) == 60 == len({(row, cut) for row, cut, _ in found})
    for row, cut, end in found:
        assert cut >= TOKENS_NT.shape[1] // 2
        assert heldout.WORD[TOKENS_NT[row, cut:end]].all() and end > cut
        assert not heldout.WORD[TOKENS_NT[row, end]]


def test_sequences_take_turns_and_the_same_words_come_again():
    found = list(heldout.completion_cuts(TOKENS_NT, 5, seed=3, words=WORDS))
    assert sorted(row for row, _, _ in found) == [0, 1, 2, 3, 4]
    assert found == list(heldout.completion_cuts(TOKENS_NT, 5, seed=3, words=WORDS))
    assert found != list(heldout.completion_cuts(TOKENS_NT, 5, seed=4, words=WORDS))


def test_text_without_words_has_nothing_to_complete():
    assert not list(heldout.completion_cuts(np.full((3, 20), ord(".")), 9, seed=0, words=WORDS))
    assert not list(
        heldout.completion_cuts(np.full((3, 20), ord("a")), 9, seed=0, words=WORDS)
    )  # no word ends


def test_a_word_is_complete_only_if_all_of_it_and_its_end_are_right():
    tokens_T = np.frombuffer(b"the cat sat", np.uint8)
    best_T = np.append(tokens_T[1:], 0)
    assert heldout.is_word_completed(
        tokens_T, best_T, cut=5, end=7, words=WORDS
    )  # "c" + "at" + " "
    wrong = best_T.copy()
    wrong[5] = ord("b")  # "c" + "ab"
    assert not heldout.is_word_completed(tokens_T, wrong, cut=5, end=7, words=WORDS)
    longer = best_T.copy()
    longer[6] = ord("s")  # "c" + "ats"
    assert not heldout.is_word_completed(tokens_T, longer, cut=5, end=7, words=WORDS)
    other_end = best_T.copy()
    other_end[6] = ord(",")  # "c" + "at,": the word is right
    assert heldout.is_word_completed(tokens_T, other_end, cut=5, end=7, words=WORDS)


def test_words_in_larger_tokens_are_cut_and_completed_between_tokens():
    bpe = tokenizers.train_bpe(iter(["the cat sat on the mat, then the catalogue sat"] * 9), 300)
    words = heldout.word_token_masks(bpe)
    ids = bpe.encode("the cat sat on the mat, then the cat; sat on the catmat, on the mat the")
    found = list(heldout.completion_cuts(ids[None], 99, 0, words))
    assert len(found) > 5
    for _, cut, end in found:
        asked = bpe.decode(ids[cut:end])
        assert asked.strip().isalpha() and asked.strip() == asked[asked.startswith(" ") :]
        assert not bpe.decode(ids[end:])[0].isalpha()
        best = np.append(ids[1:], 0)
        assert heldout.is_word_completed(ids, best, cut, end, words)
        best[end - 1] = bpe.pieces.index(b"a")
        assert not heldout.is_word_completed(ids, best, cut, end, words)
        best[end - 1] = bpe.vocab_size + 5  # no token at all
        assert heldout.is_word_completed(ids, best, cut, end, words)
    inside = [bpe.decode(ids[cut:end]) for _, cut, end in found]
    assert "mat" in inside and " catmat" in inside, inside


def test_the_error_of_a_ratio_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        sizes = rng.integers(20, 40, 200)
        draws.append(heldout.ratio_with_error(rng.normal(2.0 * sizes, 6.0), sizes))
    means, errors = np.array(draws).T
    assert means.std() == pytest.approx(errors.mean(), rel=0.15)
    assert means.mean() == pytest.approx(2.0, abs=0.01)


def test_a_model_that_knows_the_text_has_no_loss_and_completes_all(tiny):
    text = dataset.open_dataset(tiny.data, tiny.seed)

    def score(params, batch):
        tokens_BT = np.asarray(batch["tokens"])
        return np.zeros((len(tokens_BT), tokens_BT.shape[1] - 1)), tokens_BT[:, 1:]

    tiny.eval.n_sequences = 13  # no multiple of the batch
    row = heldout.evaluate_heldout(tiny, mesh.make_mesh(tiny.mesh), score, {}, text)
    assert (
        row["loss"] == row["loss_se"] == 0 and row["completion"] == 1 and row["completion_n"] == 32
    )
    assert row["n_sequences"] == 13


def test_the_score_of_a_model_is_its_loss(tiny):
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    text = dataset.open_dataset(tiny.data, tiny.seed)
    source = text.sources[0]
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        row = heldout.evaluate_heldout(tiny, program.mesh, program.score, state["params"], text)
        tokens = mesh.put_batch(program.mesh, {"tokens": text.heldout(source, 16)[:8]})
        other = mesh.put_batch(program.mesh, {"tokens": text.heldout(source, 16)[8:]})
        losses = [float(np.mean(program.score(state["params"], t)[0])) for t in (tokens, other)]
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["loss"] == row[f"loss.{source}"]
    n_bytes = (text.heldout(source, 16)[:, 1:] > 0).sum()
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * 16 * 32 / np.log(2) / n_bytes)


def test_sources_are_weighed_as_in_training(tiny, text_file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for number in range(40):
        (other / f"{number}.txt").write_text(f"{number * 7} zzz qqq " * 40)
    mine = f"text:{text_file}"
    tiny.data.sources = {mine: 3.0, f"text:{other}": 1.0}
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    text = dataset.open_dataset(tiny.data, tiny.seed)
    with jax.set_mesh(program.mesh):
        row = heldout.evaluate_heldout(
            tiny, program.mesh, program.score, program.init(0)["params"], text
        )
    assert row["loss"] == pytest.approx(
        0.75 * row[f"loss.{mine}"] + 0.25 * row[f"loss.text:{other}"]
    )
    assert row["loss_se"] == pytest.approx(
        np.hypot(0.75 * row[f"loss_se.{mine}"], 0.25 * row[f"loss_se.text:{other}"])
    )


def test_excess_is_what_a_model_pays_above_the_best_reader_of_the_same_rows(tiny, tmp_path):
    name = "synthetic:grammar?words=8&kinds=2&depth=1&megabytes=0.1"
    tiny.data.sources, tiny.data.cache_dir = {name: 1.0}, str(tmp_path)
    text, device_mesh = dataset.open_dataset(tiny.data, 0), mesh.make_mesh(tiny.mesh)

    def score(_, batch):  # a model that is .1 nats worse, everywhere
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
