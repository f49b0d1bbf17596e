"""Questions have the tokens of training text, and coverings contain every token that spans."""

import functools
import io
import types

import numpy as np
import pytest
from fixtures import small_tokenizers
from fixtures.small_tokenizers import each_kind
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lm.data import tokenizers
from lm.data.sources import synthetic_tasks
from lm.data.tokenization import token_healing

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
# Characters that the tokenizers merge, so that tokens often span the boundary.
MERGED_TEXTS = st.text("([{=}])\n close+01Thecats", max_size=12)


@functools.cache
def normalizing_sentencepiece() -> tokenizers.SentencePieceTokenizer:
    """Return a SentencePiece tokenizer with the defaults of spm_train: unigram, NFKC."""
    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(small_tokenizers.texts()), model_writer=model, vocab_size=150,
        hard_vocab_limit=False, minloglevel=9,
    )  # fmt: skip
    return tokenizers.SentencePieceTokenizer(model.getvalue())


@functools.cache
def lowercase_wordpiece() -> tokenizers.HFTokenizer:
    """Return a WordPiece tokenizer that removes white space and upper case, as BERT's."""
    vocab = {"[UNK]": 0, "[SEP]": 1} | {c: i for i, c in enumerate("abcdehlost([{=}])", 2)}
    for piece in ("##at", "##e", "##t", "the", "cat", "cats", "close"):
        vocab[piece] = len(vocab)
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizers.HFTokenizer(inner.to_str())


def assert_tokens_of_training(tokenizer, prompt: str, answer: str) -> token_healing.TokenPair:
    """Check that a pair has the tokens of its text, with the prompt in front."""
    pair = token_healing.encode_pair(tokenizer, prompt, answer)
    ids = [*pair.prompt, *pair.answer]
    text = tokenizer.encode(prompt + answer).tolist()
    assert ids in (text, [tokenizer.end, *text])
    assert pair.answer and pair.prompt
    if pair.coverings is not None:
        assert pair.coverings.index(pair.answer[: pair.n_spanning])
    return pair


@each_kind
@pytest.mark.parametrize("kind", synthetic_tasks.TASKS)
def test_task_questions_have_the_tokens_of_training(make, kind):
    tokenizer, task = make(), synthetic_tasks.parse_task(kind)
    for instance in synthetic_tasks.sample_distinct(task, np.random.default_rng(0), True, 20):
        pair = assert_tokens_of_training(tokenizer, instance.prompt, f"{instance.answer}\n")
        pieces = pair.answer_pieces(tokenizer.pieces)
        assert b"".join(pieces).decode() == f"{instance.answer}\n"


@each_kind
@settings(deadline=None, max_examples=60)
@given(prompt=TEXTS | MERGED_TEXTS, answer=TEXTS | MERGED_TEXTS)
@example(prompt="", answer="é")
@example(prompt="x", answer="é\u0301 \n")
@example(prompt="close ([= ", answer="\n")
def test_any_question_has_the_tokens_of_its_text(make, prompt, answer):
    if answer:
        assert_tokens_of_training(make(), prompt, answer)


@each_kind
@settings(deadline=None, max_examples=60)
@given(prompt=MERGED_TEXTS, answer=MERGED_TEXTS)
def test_answers_have_the_bytes_of_their_text(make, prompt, answer):
    """White space at the end of a prompt belongs to the answer."""
    if not answer or not prompt.strip():
        return
    tokenizer = make()
    pair = token_healing.encode_pair(tokenizer, prompt, answer)
    n_space = len(prompt) - len(prompt.rstrip())
    expected = prompt[len(prompt) - n_space :] + answer
    assert b"".join(pair.answer_pieces(tokenizer.pieces)).decode() == expected


@pytest.mark.parametrize("make", [normalizing_sentencepiece, lowercase_wordpiece])
@settings(deadline=None, max_examples=60)
@given(prompt=TEXTS | MERGED_TEXTS, answer=TEXTS | MERGED_TEXTS)
@example(prompt="e", answer="\u0301x")
@example(prompt="THE CA", answer="T")
@example(prompt="日", answer="本")
def test_tokenizers_that_change_text_have_answers_with_tokens(make, prompt, answer):
    tokenizer = make()
    try:
        pair = assert_tokens_of_training(tokenizer, prompt, answer)
    except ValueError as error:
        bare = tokenizer.encode(prompt.rstrip()).tolist()
        assert not answer or tokenizer.encode(prompt + answer).tolist() == bare, error
    else:
        assert pair.n_spanning <= len(pair.answer)


def test_tokens_are_cut_at_a_token_boundary():
    bpe = small_tokenizers.byte_level_bpe()
    pair = token_healing.encode_pair(bpe, "The cat", " sat\n")
    assert pair.coverings is None and pair.n_spanning == 1
    assert list(pair.prompt) == bpe.encode("The cat").tolist()
    assert bpe.decode(pair.answer) == " sat\n"


def test_prompt_is_shortened_before_a_spanning_token():
    bpe = small_tokenizers.byte_level_bpe()
    pair = token_healing.encode_pair(bpe, "close ([=", "])\n")
    pieces = [bpe.pieces[i] for i in pair.answer]
    assert bpe.decode(pair.prompt) == "close" and pieces == [b" (", b"[=]", b")", b"\n"]
    assert pair.n_spanning == 2 and pair.answer_pieces(bpe.pieces) == [b"]", b")", b"\n"]
    assert pair.coverings is not None and pair.coverings.n_tail_bytes == len(" ([=")


def test_coverings_begin_with_the_tail():
    bpe = small_tokenizers.byte_level_bpe()
    coverings = token_healing.find_coverings(bpe, bpe.encode("close ([="))
    assert coverings is not None
    tail = b"".join(bpe.pieces[i] for i in coverings.tail)
    n = 1 + sum(len(path.next_ids) for path in coverings.paths)
    for index in range(1, n):
        ids, n_tail_bytes = coverings.covering(index)
        text = b"".join(bpe.pieces[i] for i in ids)
        assert text.startswith(tail) and len(text) > len(tail)
        assert len(text) - len(bpe.pieces[ids[-1]]) + n_tail_bytes == len(tail)
        assert coverings.index(ids) == index
    assert coverings.covering(0) == (coverings.tail, 0)


def test_no_token_spans_the_end_of_bytes_or_marks():
    assert token_healing.find_coverings(tokenizers.ByteTokenizer(), list(b"close (")) is None
    bpe = small_tokenizers.byte_level_bpe()
    assert bpe.marks is not None
    assert token_healing.find_coverings(bpe, [*bpe.encode("close"), bpe.marks[1]]) is None


@each_kind
def test_empty_answer_is_rejected(make):
    with pytest.raises(ValueError, match="answer='' after the prompt 'one' is empty"):
        token_healing.encode_pair(make(), "one", "")


@each_kind
def test_answers_are_never_empty_inside_of_a_token(make):
    """The continuation of a word has tokens, also if the whole word is one token."""
    for prompt, answer in (("The ca", "t"), ("clos", "e"), ("(", "=)"), ("hello wor", "ld")):
        assert token_healing.encode_pair(make(), prompt, answer).answer


@each_kind
def test_conversations_and_empty_prompts_start_a_document(make):
    tokenizer = make()
    for prompt in ("", "  ", "\x01Hi\x02"):
        ids = token_healing.encode_pair(tokenizer, prompt, "yes").prompt
        assert ids[0] == tokenizer.end
    assert token_healing.encode_prompt(tokenizer, "") == [tokenizer.end]
    assert token_healing.encode_prompt(tokenizer, "Hi")[0] != tokenizer.end


def test_start_token_of_a_checkpoint_begins_each_question():
    class WithStart(tokenizers.ByteTokenizer):
        start = 7

    for prompt in ("", "Hi"):
        assert token_healing.encode_prompt(WithStart(), prompt) == [7, *prompt.encode()]
        assert token_healing.encode_pair(WithStart(), prompt, "a").prompt[0] == 7


def test_boundary_between_tokens_of_the_text_needs_no_coverings():
    """Alone, the prompt "ab" has other tokens than in the text "abc", with the same end."""
    pieces = [b"", b"a", b"b", b"ab", b"c", b"bc"]
    tokenizer = types.SimpleNamespace(pieces=pieces, end=0, max_piece_bytes=2)
    pair = token_healing._split_text(tokenizer, (0,), (1, 2), (3, 4, 1))
    assert (pair.prompt, pair.answer, pair.n_spanning) == ((0, 3), (4, 1), 1)
    assert pair.coverings is None and b"".join(pair.answer_pieces(pieces)) == b"ca"
