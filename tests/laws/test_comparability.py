"""Tests of the settings and properties that rows of a law share."""

import pytest

from lm.laws import comparability

ROW = {"model.width": 64, "optim.lr": 0.01, "lr": 0.01, "data.batch_size": 8, "loss": 2.0, 5: "x"}


def test_training_settings_are_those_of_model_optimizer_and_batch():
    settings = comparability.training_settings({**ROW, "model.depth": None, "seed": 3})
    assert [column for column, _ in settings] == [
        "data.batch_size",
        "lr",
        "model.width",
        "optim.lr",
    ]
    assert settings == comparability.training_settings({**ROW, "seed": 4})
    assert settings != comparability.training_settings({**ROW, "optim.lr": 0.02})
    warmup = {"data.batch_size_warmup": "1000,2000"}
    assert settings != comparability.training_settings({**ROW, **warmup})
    assert settings == comparability.training_settings({**ROW, "data.batch_size_warmup": ""})


@pytest.mark.parametrize("column", ["corpus.hash", "data.tokenizer", "data.seq_len"])
def test_rows_of_a_law_share_their_properties(column):
    rows = [{"name": "a", column: "x"}, {"name": "b", column: "y"}, {"name": "c"}]
    with pytest.raises(ValueError, match="a.*b"):
        comparability.check_comparable(rows, [0, 1])
    comparability.check_comparable(rows, [0, 2])
    comparability.check_comparable(rows, [0, 1], columns=[column])
    allowed = next(name for name, columns in comparability.PROPERTIES.items() if column in columns)
    comparability.check_comparable(rows, [0, 1], may_differ=[allowed])


def test_bits_per_byte_are_compared_between_tokenizers():
    rows = [
        {"name": "a", "data.tokenizer": "file:a.json", "eval.loss": 2.0, "eval.bits_per_byte": 1.0},
        {"name": "b", "data.tokenizer": "file:b.json", "eval.loss": 3.0, "eval.bits_per_byte": 0.9},
    ]
    assert comparability.loss_column(rows) == "eval.bits_per_byte"
    comparability.check_comparable(rows, [0, 1], columns=["eval.bits_per_byte"])
    with pytest.raises(ValueError, match="fit y='eval.bits_per_byte'"):
        comparability.check_comparable(rows, [0, 1], columns=["eval.loss"])
    del rows[1]["eval.bits_per_byte"]
    assert comparability.loss_column(rows) == "eval.loss"


def test_files_with_equal_tokens_are_one_tokenizer():
    row = {"eval.loss": 2.0, "eval.bits_per_byte": 1.0}
    rows = [row | {"name": name, "data.tokenizer": f"file:{name}"} for name in "abc"]
    for i, hashes in enumerate(("x", "x", "y")):
        rows[i]["tokenizer.hash"] = hashes
    comparability.check_comparable(rows, [0, 1], columns=["eval.loss"])
    assert comparability.loss_column(rows[:2]) == "eval.loss"
    with pytest.raises(ValueError, match="file:a for a, b, file:c for c"):
        comparability.check_comparable(rows, [0, 1, 2], columns=["eval.loss"])
    del rows[0]["tokenizer.hash"]
    with pytest.raises(ValueError, match="not comparable"):
        comparability.check_comparable(rows, [0, 1], columns=["eval.loss"])


def test_rows_of_several_families_give_a_warning():
    rows = [{"imported.family": "olmo2"}, {"imported.family": "gpt_neox"}]
    assert "2 families (gpt_neox, olmo2)" in comparability.describe_families(rows)[0]
    assert comparability.describe_families(rows[:1]) == comparability.describe_families([{}]) == []
