"""Tokenizer and vocabulary size that a config leaves open."""

import pytest

from lm.config import schema
from lm.data import tokenizers
from lm.data.tokenization import run_tokenizer
from lm.runs import records

TEXTS = ["the cat sat on the mat", "the dog ran", "a cat and a dog"] * 9


def parent_with_tokenizer(folder, name: str = "bpe:300") -> schema.Run:
    """Write the directory of a parent run with a BPE tokenizer, and return its config."""
    parent = schema.Run(name="sweep/parent", dir=str(folder))
    parent.data.tokenizer = name
    records.start_run(parent, {})
    tokenizers.train_bpe(iter(TEXTS), 270).save(records.run_dir(parent))
    return parent


def child_of(parent: schema.Run, tokenizer: str) -> schema.Run:
    child = schema.Run(name="child", dir=parent.dir, start=schema.Start(run=parent.name))
    child.data.tokenizer = tokenizer
    return child


@pytest.mark.parametrize("name, vocab_size", [("bytes", 256), ("bpe:8192", 8192)])
def test_vocabulary_size_follows_the_tokenizer_name(name, vocab_size):
    run = schema.Run()
    run.data.tokenizer = name
    assert run_tokenizer.resolve_tokenizer(run).model.vocab_size == vocab_size


def test_vocabulary_size_follows_the_tokenizer_file(tmp_path):
    tokenizer = tokenizers.train_bpe(iter(TEXTS), 270)
    tokenizer.save(tmp_path)
    run = schema.Run()
    run.data.tokenizer = f"file:{tmp_path}/tokenizer.json"
    assert run_tokenizer.resolve_tokenizer(run).model.vocab_size == tokenizer.vocab_size > 256


def test_larger_vocabulary_than_the_tokenizer_is_unchanged():
    run = schema.Run(model=schema.Model(vocab_size=512))
    assert run_tokenizer.resolve_tokenizer(run).model.vocab_size == 512


def test_smaller_vocabulary_than_the_tokenizer_is_refused():
    run = schema.Run(model=schema.Model(vocab_size=256))
    run.data.tokenizer = "bpe:8192"
    with pytest.raises(schema.ConfigError, match="vocab_size=256 must be at least 8192"):
        run_tokenizer.resolve_tokenizer(run)


def test_fine_tuned_run_uses_the_tokenizer_of_its_parent(tmp_path):
    child = run_tokenizer.resolve_tokenizer(child_of(parent_with_tokenizer(tmp_path), "bpe:300"))
    assert child.data.tokenizer == f"file:{tmp_path}/sweep/parent/tokenizer.json"
    resolved = run_tokenizer.resolve_tokenizer(child)
    assert resolved.data.tokenizer == child.data.tokenizer


def test_other_tokenizer_than_the_parents_is_unchanged(tmp_path):
    child = run_tokenizer.resolve_tokenizer(child_of(parent_with_tokenizer(tmp_path), "bpe:512"))
    assert child.data.tokenizer == "bpe:512"


def test_branch_has_the_tokenizer_field_of_its_trunk(tmp_path):
    branch = child_of(parent_with_tokenizer(tmp_path), "bpe:300")
    branch.start.restore = "full_state"
    assert run_tokenizer.resolve_tokenizer(branch).data.tokenizer == "bpe:300"


def test_missing_parent_changes_nothing(tmp_path):
    child = child_of(schema.Run(name="absent", dir=str(tmp_path)), "bpe:300")
    assert run_tokenizer.resolve_tokenizer(child).data.tokenizer == "bpe:300"
