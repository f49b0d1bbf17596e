"""Tokenizer of a run: its verified files, and fields that a config leaves open."""

import os

import pytest
from fixtures.damaged_files import DAMAGES, damage_file

from lm.config import schema
from lm.data import evaluation_text, tokenizers
from lm.data.tokenization import bpe_training, run_tokenizer, special_tokens
from lm.runs import records

TEXTS = ["the cat sat on the mat", "the dog ran", "a cat and a dog"] * 9


def parent_with_tokenizer(folder, name: str = "bpe:300") -> schema.Run:
    """Write the directory of a parent run with a BPE tokenizer, and return its config."""
    parent = schema.Run(name="sweep/parent", dir=str(folder))
    parent.data.tokenizer = name
    records.start_run(parent, {})
    bpe_training.train_bpe(iter(TEXTS), 270).save(records.run_dir(parent))
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
    tokenizer = bpe_training.train_bpe(iter(TEXTS), 270)
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


@pytest.fixture
def recorded(tmp_path) -> schema.Run:
    """Return a run that recorded its tokenizer, and whose prepared text has a copy."""
    run = schema.Run(name="sweep/run", dir=str(tmp_path))
    run.data.tokenizer, run.data.cache_dir = "bpe:300", str(tmp_path / "data")
    tokenizer = bpe_training.train_bpe(iter(TEXTS), 270)
    records.start_run(run, run_tokenizer.save_tokenizer(run, tokenizer))
    tokenizer.save(tmp_path / "data/text-0123456789ab")
    bpe_training.train_bpe(iter(TEXTS), 265).save(tmp_path / "data/aaa-0123456789ab")
    return run


def saved_file(run: schema.Run):
    return records.run_dir(run) / "tokenizer.json"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_restored_from_prepared_text(recorded, tmp_path, damage, capsys):
    path = saved_file(recorded)
    expected = path.read_bytes()
    for seed in range(5):
        damage_file(path, damage, tmp_path / "data/aaa-0123456789ab/tokenizer.json", seed)
        assert run_tokenizer.saved_tokenizer(recorded) == f"file:{path}"
        assert path.read_bytes() == expected
        (line,) = capsys.readouterr().err.splitlines()
        assert f"restored from {tmp_path}/data/text-0123456789ab" in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_without_a_copy_is_refused(recorded, tmp_path, damage):
    """The file in the run directory is not replaced by another tokenizer."""
    other = tmp_path / "data/aaa-0123456789ab/tokenizer.json"
    os.unlink(tmp_path / "data/text-0123456789ab/tokenizer.json")
    path = saved_file(recorded)
    damage_file(path, damage, other)
    for read in (run_tokenizer.saved_tokenizer, evaluation_text.load_run_tokenizer):
        with pytest.raises(ValueError, match=r"tokenizer.json \S.*: restore the file .*prepare"):
            read(recorded)
    with pytest.raises(ValueError, match="no folder in data.cache_dir"):
        run_tokenizer.save_tokenizer(recorded, tokenizers.open_tokenizer(f"file:{other}"))
    if damage == "missing":
        assert not path.exists()


def test_resumed_run_restores_its_file_from_its_text(recorded, tmp_path):
    (tmp_path / "data/text-0123456789ab/tokenizer.json").unlink()
    expected = saved_file(recorded).read_bytes()
    saved_file(recorded).write_text("{}")
    tokenizer = bpe_training.train_bpe(iter(TEXTS), 270)
    assert run_tokenizer.save_tokenizer(recorded, tokenizer) == {}
    assert saved_file(recorded).read_bytes() == expected


def test_other_tokenizer_does_not_replace_the_file(recorded):
    expected = saved_file(recorded).read_bytes()
    other = bpe_training.train_bpe(iter(TEXTS), 265)
    assert run_tokenizer.save_tokenizer(recorded, other) == {}
    assert saved_file(recorded).read_bytes() == expected


def test_special_tokens_are_verified(recorded, tmp_path):
    """The start token is not part of the hash of a tokenizer."""
    tokenizer = bpe_training.train_bpe(iter(TEXTS), 270)
    tokenizer.use_special_tokens(special_tokens.SpecialTokens(start=5, end=tokenizer.end))
    run = schema.Run(name="other", dir=str(tmp_path), data=recorded.data)
    records.start_run(run, run_tokenizer.save_tokenizer(run, tokenizer))
    assert evaluation_text.load_run_tokenizer(run).start == 5
    path = records.run_dir(run) / special_tokens.FILE
    path.write_text(path.read_text().replace("5", "6"))
    with pytest.raises(ValueError, match="special_tokens.json differs from its SHA-256"):
        evaluation_text.load_run_tokenizer(run)
    path.unlink()
    with pytest.raises(ValueError, match="special_tokens.json is missing"):
        evaluation_text.load_run_tokenizer(run)


def test_run_on_bytes_ignores_a_tokenizer_file(tmp_path):
    run = schema.Run(name="run", dir=str(tmp_path))
    records.start_run(run, run_tokenizer.save_tokenizer(run, tokenizers.ByteTokenizer()))
    bpe_training.train_bpe(iter(TEXTS), 270).save(records.run_dir(run))
    assert run_tokenizer.saved_tokenizer(run) == "bytes"


def test_run_without_checksums_gives_one_note(tmp_path, capsys):
    parent = parent_with_tokenizer(tmp_path)
    for _ in range(2):
        assert run_tokenizer.saved_tokenizer(parent).endswith("parent/tokenizer.json")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "no checksum of its tokenizer" in line


def test_missing_tokenizer_file_is_replaced_by_the_copy(tmp_path, capsys):
    source = tmp_path / "given" / "tokenizer.json"
    tokenizer = bpe_training.train_bpe(iter(TEXTS), 270)
    tokenizer.save(source.parent)
    run = schema.Run(name="run", dir=str(tmp_path / "runs"))
    run.data.tokenizer = f"file:{source}"
    assert run_tokenizer.training_data(run) == run.data
    records.start_run(run, run_tokenizer.save_tokenizer(run, tokenizer))
    source.unlink()
    data = run_tokenizer.training_data(run)
    assert data.tokenizer == f"file:{saved_file(run)}"
    assert tokenizers.open_tokenizer(data.tokenizer).hash == tokenizer.hash
    assert f"is missing: the run continues with {saved_file(run)}" in capsys.readouterr().err
    assert run_tokenizer.resolve_tokenizer(run).model.vocab_size == tokenizer.vocab_size
    other = schema.Run(name="other", dir=str(tmp_path / "runs"), data=run.data)
    assert run_tokenizer.training_data(other) == run.data  # it has no copy
