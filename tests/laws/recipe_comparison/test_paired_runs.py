"""Tests of the selection and the pairs of runs of two recipes."""

import numpy as np
import pytest
from fixtures.recipe_rows import recipe_rows

from lm.laws.recipe_comparison import paired_runs


def test_runs_are_paired_by_size_and_seed():
    rows_b = recipe_rows("b", seed=1)[::-1]
    selection = paired_runs.pair_runs(recipe_rows("a"), rows_b)
    assert [size.name for size in selection.sizes] == ["10K", "25K", "60K", "150K", "400K", "1M"]
    assert all(a["seed"] == b["seed"] for size in selection.sizes for a, b in size.pairs)
    assert selection.n_pairs == 18
    assert selection.notes == []
    assert selection.costs() == ["flops", "seconds", "params.non_embedding"]
    other = paired_runs.pair_runs(recipe_rows("a", devices=1), recipe_rows("b", devices=2))
    assert other.costs() == ["flops", "params.non_embedding"]
    ladder = selection.ladder("flops")
    np.testing.assert_allclose(np.exp(ladder.x_a), 1e12 * 6.0 ** np.arange(6))
    assert list(ladder.pairs_per_size) == [3] * 6


def test_other_seeds_are_paired_in_order_with_a_note():
    rows_b = [row | {"seed": row["seed"] + 1} for row in recipe_rows("b", n_seeds=4)]
    selection = paired_runs.pair_runs(recipe_rows("a"), rows_b)
    assert [(a["seed"], b["seed"]) for a, b in selection.sizes[0].pairs] == [(1, 1), (2, 2), (0, 3)]
    expected = "10K: 1 pairs have different seeds; 1 runs have no partner and are not used"
    assert selection.notes[0] == expected


def test_seeds_that_select_a_learning_rate_are_not_used():
    """The lowest of ten noisy losses is too low on average. The loss of another seed is not."""
    rows_b = [
        row | {"optim.lr": 0.01 * 2**i}
        for i in range(10)
        for row in recipe_rows("b", n_seeds=1, noise=0.05, seed=i)
    ]
    biased = paired_runs.pair_runs(recipe_rows("a", noise=0.0), rows_b)
    assert "also selected it among 10 settings" in biased.notes[0]
    assert "tuning effort differs" in biased.notes[1]
    best = {size.pairs[0][1]["name"]: size.pairs[0][1]["optim.lr"] for size in biased.sizes}
    other = [
        row | {"optim.lr": best[row["name"]], "seed": 7, "name": row["name"].replace("0", "7", 1)}
        for row in recipe_rows("b", n_seeds=1, noise=0.05, seed=99)
    ]
    fair = paired_runs.pair_runs(recipe_rows("a", noise=0.0), [*rows_b, *other])
    assert all(size.pairs[0][1]["seed"] == 7 for size in fair.sizes)
    low, true = (
        np.mean([np.log(b["eval.loss"] / a["eval.loss"]) for s in part.sizes for a, b in s.pairs])
        for part in (biased, fair)
    )
    assert low < -0.04 < true
    second = [
        row | {"optim.lr": 0.01 * 2**i, "seed": 1}
        for i in range(10)
        for row in recipe_rows("b", n_seeds=1, noise=0.05, seed=50 + i)
    ]
    crossed = paired_runs.pair_runs(recipe_rows("a", noise=0.0), [*rows_b, *second])
    assert not any("selected it" in note for note in crossed.notes)
    assert [len(size.pairs) for size in crossed.sizes] == [2] * 6
    losses = [np.log(b["eval.loss"] / a["eval.loss"]) for s in crossed.sizes for a, b in s.pairs]
    assert abs(np.mean(losses)) < 0.04


def test_largest_common_token_budget_represents_a_size():
    rows_a = recipe_rows("a") + recipe_rows("a2", tokens=4e6)
    rows_b = recipe_rows("b", tokens=4.01e6) + recipe_rows("b2", tokens=9e6)
    selection = paired_runs.pair_runs(rows_a, rows_b)
    assert {row["tokens"] for s in selection.sizes for p in s.pairs for row in p} == {4e6, 4.01e6}


def test_equal_compute_or_equal_names_match_other_shapes():
    wide = [row | {"params.non_embedding": 3 * row["params.non_embedding"]} for row in
            recipe_rows("b")]  # fmt: skip
    selection = paired_runs.pair_runs(recipe_rows("a"), wide)
    assert (selection.notes, len(selection.sizes)) == ([], 6)
    longer = [row | {"tokens": 2e6, "flops": 2.5 * row["flops"]} for row in wide]
    selection = paired_runs.pair_runs(recipe_rows("a"), longer)
    assert len(selection.sizes) == 6
    assert selection.notes == [
        "sizes of equal names are compared: their parameters or tokens differ"
    ]


@pytest.mark.parametrize(
    ("changes", "n_sizes", "n_seeds", "message"),
    [
        ({"corpus.hash": "d" * 64}, 6, 3, "different corpora: train B on the corpus of A"),
        ({"data.tokenizer": "bpe:2048"}, 6, 3, "A and B has no eval.bits_per_byte: run experiment"),
        ({"eval.n_sequences": 64}, 6, 3, "evaluate B with eval.n_sequences=128"),
        ({}, 1, 3, "1 common size .10K. of equal tokens.*25K, 400K, 60K in A: train both"),
        ({}, 2, 1, "no estimate of the noise.*with a second seed at 10K"),
        ({"status": "running"}, 6, 3, "B: no row is left to fit"),
    ],
)
def test_invalid_pairs_are_refused_with_a_remedy(changes, n_sizes, n_seeds, message):
    with pytest.raises(ValueError, match=message) as error:
        rows_b = recipe_rows("b", n_sizes=n_sizes, n_seeds=n_seeds, **changes)
        paired_runs.pair_runs(recipe_rows("a"), rows_b)
    assert "\n" not in str(error.value)


def test_tokenizers_are_compared_in_bits_per_byte():
    rows_a = [row | {"eval.bits_per_byte": row["eval.loss"] / 2} for row in recipe_rows("a")]
    rows_b = [
        row | {"eval.bits_per_byte": row["eval.loss"] / 2, "data.tokenizer": "bpe:2048"}
        | {"corpus.hash": "d" * 64}
        for row in recipe_rows("b")
    ]  # fmt: skip
    selection = paired_runs.pair_runs(rows_a, rows_b)
    assert selection.y == "eval.bits_per_byte"
    assert "different amounts of held-out text" in selection.notes[0]
    with pytest.raises(ValueError, match="not comparable: compare eval.bits_per_byte"):
        paired_runs.pair_runs(rows_a, rows_b, y="eval.loss")


def test_sizes_without_a_name_are_named_by_their_number():
    rows_a, rows_b = (
        [row | {"name": f"{sweep}/run-{row['seed']}"} for row in recipe_rows(sweep)]
        for sweep in "ab"
    )
    names = [size.name for size in paired_runs.pair_runs(rows_a, rows_b).sizes]
    assert names[:2] == ["1e+04 params.non_embedding", "2.5e+04 params.non_embedding"]


def test_same_runs_on_both_sides_give_a_warning():
    rows = recipe_rows("a")
    assert "the same runs" in paired_runs.pair_runs(rows, rows).notes[0]
    loaded = [row | {"dir": f"runs/{row['name']}"} for row in rows]
    copies = [dict(row) for row in loaded]
    assert "the same runs" in paired_runs.pair_runs(loaded, copies).notes[0]


def test_unequal_batch_size_warmups_give_a_note():
    rows_b = recipe_rows("b", **{"data.batch_size_warmup": "2e6,8e6"})
    notes = paired_runs.pair_runs(recipe_rows("a"), rows_b).notes
    expected = "data.batch_size_warmup differs, so runs of equal seeds have different batches"
    assert notes == [expected]
    rows_a = recipe_rows("a", **{"data.batch_size_warmup": ""})
    assert paired_runs.pair_runs(rows_a, recipe_rows("b")).notes == []


def test_single_pairs_per_size_give_a_note():
    rows = [recipe_rows(name, n_seeds=1) for name in "ab"]
    assert "noise of seeds is not measured" in paired_runs.pair_runs(*rows).notes[-1]


def test_further_seeds_of_the_best_rate_are_paired():
    """Sizes have the common part of the names of their runs. Seeds 0 and 1 have both rates."""
    rows = {}
    for recipe in ("a", "b"):
        by_rate = {
            rate: recipe_rows(recipe, gain, noise=0.001, seed=seed)
            for seed, (rate, gain) in enumerate({0.01: 0.0, 0.02: 0.5}.items())
        }
        rows[recipe] = [
            row | {"optim.lr": rate, "name": f"{recipe}/{name}-lr{rate:g}-seed{row['seed']}"}
            for rate, part in by_rate.items()
            for row in part
            for name in [row["name"].split("/")[1].partition("-")[0]]
            if row["seed"] < (3 if rate == 0.02 else 2)
        ]
    selection = paired_runs.pair_runs(rows["a"], rows["b"])
    assert [size.name for size in selection.sizes] == ["10K", "25K", "60K", "150K", "400K", "1M"]
    assert [len(size.pairs) for size in selection.sizes] == [3] * 6
    chosen = [row for size in selection.sizes for part in size.tuned for row in part]
    chosen += [row for size in selection.sizes for pair in size.pairs for row in pair]
    assert {row["optim.lr"] for row in chosen} == {0.02} and selection.notes == []
