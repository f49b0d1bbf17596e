"""Tests of the selection of rows, of its errors, and of means over evaluations."""

import math

import numpy as np
import pytest

from lm import laws
from lm.laws import run_table
from lm.laws.forms import power_laws

GOOD = [{"name": f"r{i}", "params": 10.0**i, "loss": 5.0 - 0.3 * i} for i in range(3, 9)]


def fit_power(rows, **options):
    return power_laws.power(rows, x="params", y="loss", bootstrap=0, **options)


def test_unknown_column_lists_the_known_columns():
    with pytest.raises(ValueError, match=r"no row has a column 'flops'.*params, loss"):
        power_laws.power(GOOD, x="flops", y="loss")


def test_unknown_column_of_a_long_row_lists_similar_columns():
    rows = [row | {f"column{i}": i for i in range(100)} for row in GOOD]
    with pytest.raises(ValueError, match="no row has a column 'parms'; the rows have params") as e:
        power_laws.power(rows, x="parms", y="loss")
    assert len(str(e.value)) < 200


def test_runs_without_heldout_text_have_no_law():
    rows = [row | {"data.heldout_fraction": 0.0} for row in GOOD]
    with pytest.raises(ValueError, match="no run has a held-out loss .* data.heldout_fraction=0"):
        power_laws.power(rows, x="params", y="eval.loss")


def test_rows_without_a_result_are_excluded_by_name():
    without_result = [
        {"name": "boom", "params": 1e9, "loss": 9.0, "status": "diverged"},
        {"name": "empty", "params": 1e9, "loss": ""},
        {"name": "nan", "params": 1e9, "loss": float("nan")},
        {"name": "soon", "params": 1e9},
    ]
    fit = fit_power(GOOD + without_result)
    assert fit.n == len(GOOD)
    assert [name for name, _ in fit.excluded] == ["boom", "empty", "nan", "soon"]
    assert "status is diverged" in str(fit) and "has no loss" in dict(fit.excluded)["soon"]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_loss_that_is_not_positive_raises_with_its_row(value):
    with pytest.raises(ValueError, match=r"loss must be above 0: odd \("):
        fit_power([*GOOD, {"name": "odd", "params": 1e9, "loss": value}])


def test_duplicate_rows_raise_with_their_names():
    with pytest.raises(ValueError, match="duplicate run: r3 and r3"):
        fit_power([*GOOD, dict(GOOD[0])])


def test_repeats_of_a_run_are_resampled_together():
    seeds = [{**row, "seed": 1, "loss": row["loss"] * 1.001} for row in GOOD]
    fit = power_laws.power(GOOD + seeds, x="params", y="loss", bootstrap=50)
    assert (fit.n, fit.n_runs) == (12, 6)
    assert fit.seed_noise == pytest.approx(0.001 / 2**0.5, rel=0.01)


@pytest.mark.parametrize("column", ["optim.lr", "optim.schedule", "lr", "data.batch_size"])
def test_runs_with_other_settings_are_no_replicates(column):
    rates = [{**row, "name": f"{row['name']} {value}", column: value, "loss": row["loss"] * factor}
             for row in GOOD for value, factor in ((0.01, 1.0), (0.03, 1.001))]  # fmt: skip
    fit = power_laws.power(rates, x="params", y="loss", bootstrap=50)
    assert fit.seed_noise is None
    seeds = [{**row, "seed": 1, "name": f"{row['name']} seed 1", "loss": row["loss"] * 1.002}
             for row in rates]  # fmt: skip
    fit = power_laws.power(rates + seeds, x="params", y="loss", bootstrap=50)
    assert fit.seed_noise == pytest.approx(0.002 / 2**0.5, rel=0.01)


def test_tuned_rows_are_those_of_the_best_settings_per_size():
    rows = [
        {"name": f"{n}-{lr}-{seed}", "seed": seed, "params": n, "optim.lr": lr, "loss": loss + seed}
        for n, losses in ((1, {0.1: 5.0, 0.2: 4.0}), (2, {0.1: 3.0, 0.2: 3.5}))
        for lr, loss in losses.items()
        for seed in (0, 1)
    ]
    rows.append({"name": "failed", "params": 3, "optim.lr": 0.1, "loss": None})
    names = [row["name"] for row in run_table.select_tuned(rows, ["params"], "loss")]
    assert names == ["1-0.2-0", "1-0.2-1", "2-0.1-0", "2-0.1-1", "failed"]


def test_checkpoints_of_a_run_are_grouped_by_the_column_run():
    rows = [{"run": row["name"], "name": f"{row['name']} step {step}", "params": row["params"],
             "tokens": step, "loss": row["loss"] + 1 / step}
            for row in GOOD for step in (1, 2, 4)]  # fmt: skip
    data = run_table.select_columns(rows, ["params", "tokens", "loss"])
    assert int(data.groups.max()) + 1 == len(GOOD)
    assert "belong to 6 runs" in data.warnings[0]


def test_highest_level_in_a_group_is_that_of_its_rows():
    rows = [{"run": run, "params": i + 1, "loss": 5 - i} for i, run in enumerate("aabcb")]
    data = run_table.select_columns(rows, ["params", "loss"])
    assert data.highest_in_group(np.arange(5)).tolist() == [1, 1, 4, 3, 4]


def test_rows_excluded_by_where_have_a_reason():
    rows = [{**row, "used": i % 2} for i, row in enumerate(GOOD)]
    fit = fit_power(rows, where={"used": 1})
    assert fit.n == 3 and fit.excluded[0] == ("r3", "used is 0, not 1")
    assert fit_power(rows, where=lambda row: row["used"] == 1).n == 3
    assert fit_power(rows, where={"name": ["r3", "r4", "r5", "r6"]}).n == 4


def test_selection_without_rows_raises():
    with pytest.raises(ValueError, match="the list is empty"):
        fit_power([])
    with pytest.raises(ValueError, match="no row is left"):
        fit_power([{"name": "a", "params": 1.0, "loss": None}])


SIZES = (1e4, 2e4, 4e4, 8e4, 2e5, 5e5, 1e6)
ODD = "s/odd"


def rows() -> list[dict]:
    """Return runs of seven sizes with equal corpus, tokenizer, evaluation and start."""
    return [
        {
            "name": f"s/{n:g}",
            "status": "done",
            "params.non_embedding": n,
            "tokens": 20 * n * (1 + i % 3),
            "flops": 120 * n**2 * (1 + i % 3),
            "unique_tokens": 10 * n,
            "eval.loss": 1 + 20 * n**-0.3 + 40 * (20 * n * (1 + i % 3)) ** -0.3,
            "eval.completion": 0.1 + 0.1 * i,
            "corpus.hash": "a" * 64,
            "data.tokenizer": "bytes",
            "data.seq_len": 128,
            "eval.n_sequences": 512,
            "start.run": "",
            "start.restore": "weights",
        }
        for i, n in enumerate(SIZES)
    ]


def with_odd_row(**changes) -> list[dict]:
    """Return the rows with one more that differs in `changes`."""
    odd = rows()[2] | {"name": ODD, "params.non_embedding": 3e4} | changes
    return [*rows(), odd]


DIFFERENCES = {
    "corpus.hash": "b" * 64,
    "data.tokenizer": "bpe:512",
    "data.seq_len": 64,
    "eval.n_sequences": 8,
    "start.run": "s/10000",
}
LAWS = {
    "power": laws.power,
    "chinchilla": laws.chinchilla,
    "overtrained": laws.overtrained,
    "isoflop": laws.isoflop,
    "one_step": laws.one_step,
    "log_linear": lambda rows, **options: laws.log_linear(rows, "flops", "eval.loss", **options),
    "envelope": lambda rows, **options: laws.envelope(rows, run="name", **options),
}


@pytest.mark.parametrize("column", DIFFERENCES)
@pytest.mark.parametrize("law", LAWS)
def test_laws_refuse_rows_of_another_kind_and_name_them(law, column):
    mixed_rows = with_odd_row(**{column: DIFFERENCES[column]})
    with pytest.raises(ValueError, match="the rows are not comparable") as error:
        LAWS[law](mixed_rows)
    shown = "start is random weights" if column == "start.run" else f"{column} is "
    assert shown in str(error.value) and f"for {ODD}" in str(error.value)
    assert "mixed=True" in str(error.value) and "\n" not in str(error.value)


def test_mixed_rows_are_fitted_on_request():
    mixed_rows = with_odd_row(**{"corpus.hash": "b" * 64})
    assert laws.power(mixed_rows, mixed=True, bootstrap=0).n == 8
    assert laws.power(mixed_rows, where={"corpus.hash": "a" * 64}, bootstrap=0).n == 7
    assert laws.power(mixed_rows, mixed=("corpus",), bootstrap=0).n == 8
    with pytest.raises(ValueError, match=r"mixed=text is unknown; allowed: True, corpus"):
        laws.power(mixed_rows, mixed=("text",))


def test_published_rows_without_these_columns_are_fitted():
    columns = ("name", "params.non_embedding", "eval.loss")
    plain = [{key: row[key] for key in columns} for row in with_odd_row()]
    assert laws.power(plain, bootstrap=0).n == 8
    some_recorded = [*plain[:4], *rows()[4:]]
    assert laws.power(some_recorded, bootstrap=0).n == 7
    missing = [row | {"corpus.hash": math.nan, "status": math.nan} for row in plain]
    assert laws.power([*missing[:4], *rows()[4:]], bootstrap=0).n == 7


def test_cooldown_branches_start_like_their_trunk():
    branch = {"start.run": "s/trunk", "start.restore": "full_state"}
    branches = [row | branch for row in rows()[:3]]
    assert laws.power([*branches, *rows()[3:]], bootstrap=0).n == 7
    trunk = rows()[0] | {"name": "s/trunk", "start.run": "other/model"}
    with pytest.raises(ValueError, match="start is random weights for .*weights of another model"):
        laws.power([trunk, *branches, *rows()[3:]])
    elsewhere = [row | branch | {"start.run": "other/trunk"} for row in rows()[:3]]
    with pytest.raises(ValueError, match="weights of another model for s/10000, s/20000"):
        laws.power([*elsewhere, *rows()[3:]])


def test_runs_that_all_start_from_models_are_comparable():
    tuned = [row | {"start.run": f"pretrained/{i}"} for i, row in enumerate(rows())]
    assert laws.power(tuned, bootstrap=0).n == 7


def test_input_of_a_law_may_differ():
    lengths = [row | {"data.seq_len": 2**i, "corpus.hash": str(i)} for i, row in enumerate(rows())]
    assert laws.power(lengths, x="data.seq_len", bootstrap=0).n == 7
    subsets = [row | {"corpus.hash": str(i)} for i, row in enumerate(rows())]
    assert laws.power(subsets, x="unique_tokens", bootstrap=0).n == 7


def test_laws_about_a_difference_mix_it_by_themselves():
    other_corpus = with_odd_row(**{"corpus.hash": "b" * 64, "start.run": "pretrained/1"})
    assert laws.accuracy_from_loss(other_corpus, bootstrap=0).n == 8
    with pytest.raises(ValueError, match="data.tokenizer is bytes for"):
        laws.accuracy_from_loss(with_odd_row(**{"data.tokenizer": "bpe:512"}))
    base = {"E": 1.0, "A": 20.0, "B": 40.0, "alpha": 0.3}
    repeated = with_odd_row(**{"corpus.hash": "b" * 64})
    assert laws.data_constrained(repeated, base=base, bootstrap=0).n == 8
    scratch = laws.power(rows(), x="tokens", bootstrap=0)
    tuned = [row | {"start.run": "pretrained/1"} for row in repeated]
    gained = [row | {"eval.loss": 0.95 * row["eval.loss"]} for row in tuned]
    assert laws.transfer(gained, n=None, scratch=scratch, bootstrap=0).n >= 2


def test_refits_and_holdout_compare_rows():
    branch = {"start.run": "other/trunk", "start.restore": "full_state"}
    trunk = rows()[0] | {"name": "other/trunk"}
    fit = laws.power([trunk, *(row | branch for row in rows()[:2]), *rows()[2:]])
    assert fit.score.n_origins > 0  # the trunk run is not among the rows of a refit
    held_out = [rows()[0] | {"name": "other/x", "corpus.hash": "b" * 64}]
    plain = laws.power(rows(), bootstrap=0)
    with pytest.raises(ValueError, match="corpus.hash is aaaaaaaaaaaa for .*other/x"):
        laws.holdout(plain, held_out)
    assert len(laws.holdout(plain, held_out, mixed=True).predictions) == 1


def test_data_frames_are_rows():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows())
    fit = laws.power(frame, bootstrap=0)
    assert fit.params == laws.power(rows(), bootstrap=0).params
    assert fit.predict(frame.head(2)).value == pytest.approx(fit.fitted[:2])
    frame.loc[0, "corpus.hash"] = None
    assert laws.power(frame, bootstrap=0).n == 7
    assert len(laws.final_evaluations(frame, ["eval.loss"], run="name")) == 7
    assert len(laws.holdout(fit, frame.head(1)).predictions) == 1


def test_dicts_of_arrays_are_rows():
    table = {name: np.array([row[name] for row in rows()]) for name in rows()[0]}
    fit = laws.power(table, bootstrap=0)
    assert fit.params == laws.power(rows(), bootstrap=0).params
    assert fit.predict(table).value == pytest.approx(fit.fitted)
    row_with_list = rows()[0] | {"tasks": ["copy"], "nothing": []}
    assert fit.predict(row_with_list).value == pytest.approx(fit.fitted[0])
    as_lists = {name: list(column) for name, column in table.items()}
    assert laws.power(as_lists, bootstrap=0).params == fit.params
    with pytest.raises(ValueError, match="different lengths: .*'tokens': 2"):
        run_table.to_rows({"params": [1, 2, 3], "tokens": [1, 2]})


@pytest.mark.parametrize("data", [{"N": 1}, {}, "rows.csv", 7, [1, 2], [["N", 1]]])
def test_other_data_are_refused_with_a_remedy(data):
    with pytest.raises(
        ValueError, match="is of type .*: pass a list of dicts, one per run, a DataFrame"
    ):
        run_table.to_rows(data)
