import pytest

from lm import talk, tokens

BYTES = tokens.Bytes()


def said(text: bytes, stop=(), max_tokens=99):
    """What is shown after each byte, and why it ends."""
    one, shown = talk.Talk(BYTES, stop, max_tokens), []
    for byte in text:
        shown.append(one.add(byte))
        if one.why:
            break
    return shown, one.why


def test_a_character_is_shown_when_it_is_whole():
    assert said("é!".encode()) == (["", "é", "!"], "")


def test_a_broken_character_is_marked_at_the_end():
    assert said("aé".encode(), max_tokens=2) == (["a", "�"], "length")


def test_the_end_token_ends_and_shows_nothing():
    assert said(b"ab\0c") == (["a", "b", ""], "end")


@pytest.mark.parametrize("stop", [("\n\n",), ("zzz", "\n\n"), ("\n\nx", "\n\n")])
def test_a_stop_string_is_never_shown_not_even_its_beginning(stop):
    assert said(b"a\nb\n\nx", stop) == (["a", "", "\nb", "", ""], "stop")


def test_what_began_like_a_stop_string_is_shown_when_the_answer_ends():
    assert said(b"a\n", ("\n\n",), max_tokens=2) == (["a", "\n"], "length")
    assert said(b"a\n\0", ("\n\n",)) == (["a", "", "\n"], "end")


def test_a_stop_string_may_begin_and_end_within_tokens():
    bpe = tokens.train_bpe(iter(["one, two, three, four"] * 9), 290)
    text = "one, two, three, four"
    ids = bpe.encode(text)
    assert len(ids) < len(text) / 2
    one, shown = talk.Talk(bpe, ("wo, th",), 99), ""
    for token in ids:
        shown += one.add(token)
        if one.why:
            break
    assert (shown, one.why) == ("one, t", "stop")
