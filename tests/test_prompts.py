"""Logged prompts: only answers rated good are in the tuning set."""

import pytest

from lm import chat, files, prompts


def test_rated_prompts_become_a_tuning_set(tmp_path):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "tuning.jsonl"
    good, bad, mended, unrated = (
        prompts.keep(path, f"Say {n}.", f"It is {n}…", "s/run") for n in range(4)
    )
    prompts.rate(path, good, good=True)
    prompts.rate(path, bad)
    prompts.rate(path, mended, better="Two.")
    assert prompts.read(path)[bad]["rating"] == "bad" and not prompts.read(path)[unrated]["rating"]
    assert prompts.tuning_set(path, out) == 2
    texts = [document.text for document in chat.documents(str(out), files.stop)]
    assert texts == ["\x01Say 0.\x02It is 0…\x03", "\x01Say 2.\x02Two.\x03"]
    prompts.rate(path, good)  # the last rating counts
    assert prompts.tuning_set(path, out) == 1


def test_nothing_rated_good_and_other_files_are_refused(tmp_path):
    path = tmp_path / "prompts.jsonl"
    prompts.keep(path, "a", "b", "s/run")
    with pytest.raises(ValueError, match="none of 1 prompts is rated good"):
        prompts.tuning_set(path, tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="holds no prompt of id x"):
        prompts.rate(path, "x", good=True)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="line 1: is not a logged prompt: it has prompt"):
        prompts.read(path)
