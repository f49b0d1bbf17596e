"""Names of the sizes of a sweep."""

from lm.config import model_sizes
from lm.reports.tables import ladder_sizes


def row(size: str, factor: float = 1.0) -> dict:
    model = model_sizes.ladder_model(size, vocab_size=256)
    return {"params.non_embedding": factor * model_sizes.count_parameters(model)["non_embedding"]}


def test_sizes_of_a_sweep_are_those_of_its_runs():
    rows = [row("1M"), row("10K"), row("10K"), row("100K", 1.1), {}]
    assert ladder_sizes.trained_sizes(rows) == ["10K", "1M"]
    assert "The sweep has 10K, 1M." in ladder_sizes.describe_ladder(rows)
    assert "The sweep has none of them." in ladder_sizes.describe_ladder([])
    assert ladder_sizes.nearest_ladder_size(1.01e6) == "1M"
