"""Headline, tables and laws of finished and unfinished sweeps."""

import pytest
from fixtures import made_up_sweep

from lm.laws.forms import power_laws
from lm.reports import summary
from lm.runs import json_files, records


def test_headline_of_a_correct_prediction_contains_inside(tmp_path):
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path))
    state, text = summary.headline(sweep)
    assert sweep.target and sweep.prediction
    assert state == "held" and "inside its own 95% interval" in text
    assert (
        f"{sweep.target['eval.loss']:#.4g}" in text and f"{sweep.prediction['value']:#.4g}" in text
    )


@pytest.mark.parametrize("miss, side", [(0.05, "above"), (-0.05, "below")])
def test_headline_of_a_wrong_prediction_contains_outside(tmp_path, miss, side):
    state, text = summary.headline(summary.load_summary(made_up_sweep.sweep(tmp_path, miss=miss)))
    assert state == "missed" and "outside its own 95% interval" in text and side in text


def test_unfinished_target_leaves_the_prediction_open(tmp_path):
    # No process holds the lock of the running target, so its status is lost.
    running = made_up_sweep.sweep(tmp_path, "a", status={"1.6M": ("running", "")})
    missing = made_up_sweep.sweep(tmp_path, "b", missing=("1.6M",))
    for folder, text in ((running, "lost"), (missing, "not started")):
        sweep = summary.load_summary(folder)
        assert summary.headline(sweep)[0] == "open" and text in summary.headline(sweep)[1]
        assert sweep.measured is None


def test_refused_prediction_states_its_reason(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, missing=("60K", "120K", "300K", "700K", "1.6M"))
    sweep = summary.load_summary(folder)
    assert sweep.prediction is None and sweep.fit is None
    assert sweep.refused and sweep.refused in summary.headline(sweep)[1]
    assert summary.summary_table(sweep.rows, json_files.read_object(folder / "prediction.json"))


def test_law_uses_the_runs_of_the_prediction(tmp_path):
    folder = made_up_sweep.sweep(tmp_path)
    sweep = summary.load_summary(folder)
    assert sweep.prediction
    assert sorted(sweep.fit.data.names) == sorted(sweep.prediction["runs"])
    assert sweep.fit.params == pytest.approx(sweep.prediction["fit"]["params"])
    alone = summary.load_summary(made_up_sweep.sweep(tmp_path, "alone", predict=False))
    assert "alone/1.6M" not in alone.fit.data.names  # the target is not in its own law


def test_final_table_has_the_same_columns_in_every_line(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"60K": ("diverged", "")}, missing=("120K",))
    sweep = summary.load_summary(folder)
    lines = summary.summary_table(sweep.rows, sweep.prediction)
    assert len(lines) == 5 and len({tuple(line) for line in lines}) == 1
    by_run = {line["run"]: line for line in lines}
    loss = next(row for row in sweep.rows if row["name"] == "toy/30K")["eval.loss"]
    assert by_run["30K"]["loss"] == f"{loss:.3f} ± 0.006"
    assert by_run["60K"]["loss"] == "" and by_run["60K"]["status"] == "diverged"
    assert [bool(line["predicted loss"]) for line in lines] == [False] * 4 + [True]
    assert all(isinstance(value, str) for line in lines for value in line.values())


def test_unfinished_run_has_the_cost_of_its_last_metrics(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, status={"700K": ("running", "")})
    row = next(row for row in summary.load_summary(folder).rows if row["name"] == "toy/700K")
    last = records.load_metrics(folder / "700K")[-1]
    assert [row[k] for k in ("tokens", "flops", "seconds")] == [
        last[k] for k in ("tokens", "flops", "seconds")
    ]


def test_runs_that_have_not_started_are_missing(tmp_path):
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path, missing=("30K", "700K")))
    assert sweep.missing == ["toy/30K", "toy/700K"]


def test_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} contains no runs"):
        summary.load_summary(tmp_path)


def test_durations_have_two_units():
    durations = {0.5: "0.5 s", 59: "59 s", 60: "1 min 0 s", 95: "1 min 35 s"}
    durations |= {3599: "59 min 59 s", 7260: "2 h 1 min", 100_000: "1 d 3 h"}
    for seconds, text in durations.items():
        assert summary.format_duration(seconds) == text


def test_damaged_plan_and_missing_prediction_are_named(tmp_path):
    folder = made_up_sweep.sweep(tmp_path, noise=0.0)
    (folder / "plan.json").write_text("{")
    (folder / "prediction.json").unlink()
    sweep = summary.load_summary(folder)
    assert sweep.fit and sweep.plan == []
    plan_note, prediction_note = sweep.notes[-2:]
    assert "plan.json is not valid JSON" in plan_note
    assert prediction_note.startswith("prediction.json is missing, and toy/1.6M has started")
    assert summary.load_notes(folder) == sweep.notes


def test_run_without_final_evaluation_is_in_no_law(tmp_path):
    """The other runs give the law, and the reason is in the fit and in the notes."""
    folder = made_up_sweep.sweep(tmp_path)
    last = max(row["step"] for row in records.load_evals(folder / "300K"))
    records.write_facts(folder / "300K", ends_at=last + 1)
    sweep = summary.load_summary(folder)
    reason = f"evals.jsonl has no evaluation of the final step {last + 1}"
    assert ("toy/300K", f"has no eval.loss: {reason}") in sweep.fit.excluded
    assert any(f"300K has no result and is excluded: {reason}" in note for note in sweep.notes)


def test_refused_law_of_size_and_tokens_has_no_resamples(tmp_path, monkeypatch):
    options, chinchilla = [], power_laws.chinchilla

    def fit(rows, **arguments):
        options.append(arguments)
        return chinchilla(rows, **arguments)

    monkeypatch.setattr(power_laws, "chinchilla", fit)
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path))
    assert sweep.laws["size and tokens"][0] is None
    assert [arguments["bootstrap"] for arguments in options] == [0]
