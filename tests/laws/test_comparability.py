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
