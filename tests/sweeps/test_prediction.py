"""Check of the sizes of a sweep before it trains."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from fixtures import predicted_sweep

from lm.config import model_sizes, schema
from lm.reports.audit import target_prediction
from lm.runs import json_files, lock, records
from lm.runs.integrity import prediction_log
from lm.sweeps import design, prediction

SIZES = ("10K", "15K", "25K", "40K", "60K")


def runs(sizes, seeds=1, target="60K") -> list[schema.Run]:
    """Return runs of the given sizes, and the target."""
    made = [
        schema.Run(name=f"s/{size}-{seed}", seed=seed, model=model_sizes.ladder_model(size))
        for size in sizes
        for seed in range(seeds)
    ]
    predicted = schema.Run(name=f"s/{target}", model=model_sizes.ladder_model(target))
    return [*made, dataclasses.replace(predicted, is_prediction_target=True)]


@pytest.mark.parametrize("n", range(4))
def test_too_few_sizes_for_an_interval_are_refused(n):
    sizes = "size" if n == 1 else "sizes"
    expected = f"to predict s/60K from {n} other {sizes}: a law of 3 parameters needs at least 5"
    with pytest.raises(ValueError, match=expected) as error:
        prediction.check_prediction(runs(SIZES[:n]))
    assert "is_prediction_target=False" in str(error.value) and "\n" not in str(error.value)


def test_enough_sizes_and_no_target_are_accepted():
    assert prediction.check_prediction(runs(SIZES[:4])) == ""
    few = [dataclasses.replace(run, is_prediction_target=False) for run in runs(SIZES[:1])]
    assert prediction.check_prediction(few) == ""
    assert prediction.check_prediction([]) == ""


def test_seeds_of_one_size_count_once():
    with pytest.raises(ValueError, match="from 2 other sizes"):
        prediction.check_prediction(runs(SIZES[:2], seeds=3))
    assert "only their seeds give an interval" in prediction.check_prediction(
        runs(SIZES[:3], seeds=2)
    )


def test_learning_rates_of_one_size_are_no_seeds():
    sizes = SIZES[:3]
    made = [run for i in range(2) for run in runs(sizes)[: len(sizes)]]
    for i, run in enumerate(made):
        run.name, run.optim.lr = f"{run.name}-{i}", 0.01 * (1 + i // len(sizes))
    with pytest.raises(ValueError, match="from 3 other sizes"):
        prediction.check_prediction([*made, runs([])[0]])


def test_runs_on_other_budgets_do_not_count():
    made = runs(SIZES[:4])
    made[0].steps *= 2
    with pytest.raises(ValueError, match="from 3 other sizes.*equal training tokens"):
        prediction.check_prediction(made)


def size_of(run) -> int:
    return model_sizes.count_parameters(model_sizes.resolved_model(run))["non_embedding"]


def store_prediction(runs, losses, folder, monkeypatch) -> dict:
    """Return the prediction of a sweep whose runs other than the target have these losses."""
    rows = [
        schema.flatten(run)
        | {"name": run.name, "status": "done", prediction.Y: losses[run.name]}
        | {prediction.X: size_of(run)}
        | {records.TOKENS: model_sizes.training_tokens(run)}
        for run in runs
        if run.name in losses
    ]
    monkeypatch.setattr(records, "load_folder", lambda path: records.FolderRuns(rows, [], {}))
    monkeypatch.setattr(records, "read_facts", lambda path: {})
    prediction.write_prediction(runs, folder)
    return json.loads((folder / "prediction.json").read_text())


def test_prediction_uses_the_tuned_learning_rate_of_each_size(tmp_path, monkeypatch):
    made, losses, tuned = [], {}, []
    for i, run in enumerate(runs(SIZES[:4])[:4]):
        n_params = size_of(run)
        for k, rate in enumerate((0.003, 0.01, 0.03)):
            for seed in range(2):
                name = f"{run.name}-{rate}-{seed}"
                optim = dataclasses.replace(run.optim, lr=rate)
                made.append(dataclasses.replace(run, name=name, seed=seed, optim=optim))
                excess = 0.05 * abs(k - (i + 1) % 3)
                losses[name] = 1.5 + 20 * n_params**-0.3 + excess + 0.001 * seed
                tuned += [name] if not excess else []
    # The tokens of another batch size differ by rounding.
    data = dataclasses.replace(made[0].data, batch_size=2 * made[0].data.batch_size)
    made[0] = dataclasses.replace(made[0], data=data, steps=made[0].steps // 2 + 1)
    stored = store_prediction([*made, runs([])[0]], losses, tmp_path, monkeypatch)
    assert stored["runs"] == sorted(tuned) and len(tuned) == 8
    assert stored["fit"]["n"] == 8 and "joint" not in stored
    assert all(p["name"] in tuned for p in stored["fit"]["backtest"]["predictions"])
    exact = 1.5 + 20 * stored[prediction.X] ** -0.3
    assert stored["value"] == pytest.approx(exact, rel=0.002)


def test_backtest_of_a_prediction_excludes_trunks_of_its_targets(tmp_path, monkeypatch):
    made, losses, rng = [], {}, np.random.default_rng(0)
    for run in runs(("10K", "15K", "25K", "40K", "60K", "100K", "150K"))[:7]:
        branches = design.cooldown_branches(run, tokens=[1e6, 2e6, 4e6])
        made += branches
        n_params = size_of(run)
        for branch in branches[1:]:
            n_tokens = model_sizes.training_tokens(branch)
            loss = 1.5 + 20 * n_params**-0.3 + 60 * n_tokens**-0.35
            losses[branch.name] = loss * np.exp(0.001 * rng.standard_normal())
    target = runs([], target="250K")[0]
    target.steps = model_sizes.steps_for_budget(target, tokens=4e6)
    stored = store_prediction([*made, target], losses, tmp_path, monkeypatch)
    assert len(stored["runs"]) == 7 and len(stored["joint"]["runs"]) == 21
    tested = stored["joint"]["fit"]["backtest"]["predictions"]
    assert tested
    for p in tested:
        # A fit to k sizes contains the three branches of each of them, and of no larger size.
        assert p["trained_on"] % 3 == 0 and p["distance"] > 1


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """Return the configs and the folder of a sweep whose target has not started."""
    folder = predicted_sweep.write_sweep(tmp_path, monkeypatch)
    shutil.rmtree(folder / "target")
    (folder / prediction_log.FILE).unlink()
    (folder / "prediction.json").unlink()
    monkeypatch.setattr(target_prediction, "predict_target", lambda *rest, **options: {"runs": []})
    return predicted_sweep.make_runs(tmp_path), folder


def n_registered(folder) -> tuple[int, int]:
    """Return the numbers of entries in the log and in the target."""
    entries = prediction_log.read_entries(folder)
    return len(entries), len(prediction_log.predicted_events(folder / "target"))


def test_equal_prediction_is_registered_once(predicted):
    made, folder = predicted
    for _ in range(2):
        prediction.write_prediction(made, folder)
        assert n_registered(folder) == (1, 1)
    records.write_facts(folder / "b", seconds=2.0)  # changes the hash of an input
    prediction.write_prediction(made, folder)
    assert n_registered(folder) == (2, 2)
    assert not prediction_log.find_broken_entry(prediction_log.read_entries(folder))


def test_damaged_prediction_is_written_again_before_the_start(predicted):
    made, folder = predicted
    (folder / "prediction.json").write_text("{")
    prediction.write_prediction(made, folder)
    assert json_files.read_record(folder / "prediction.json")["target"] == "s/target"
    (folder / "prediction.json").write_text("{")
    prediction.write_prediction(made, folder)
    assert n_registered(folder) == (2, 2)


def test_prediction_of_an_earlier_target_is_preserved(predicted):
    made, folder = predicted
    prediction.write_prediction(made, folder)
    first = (folder / "prediction.json").read_bytes()
    larger = predicted_sweep.make_run(folder.parent, "s/larger", 16)
    extended = [dataclasses.replace(run, is_prediction_target=False) for run in made]
    larger = dataclasses.replace(larger, is_prediction_target=True)
    prediction.write_prediction([*extended, larger], folder)
    assert (folder / "prediction-target.json").read_bytes() == first
    assert json_files.read_record(folder / "prediction.json")["target"] == "s/larger"
    prediction.write_prediction([*extended, larger], folder)
    assert (folder / "prediction-target.json").read_bytes() == first
    assert len(list(folder.glob("prediction-*.json"))) == 1


def test_prediction_waits_for_another_process(predicted, monkeypatch):
    made, folder = predicted
    monkeypatch.setattr(prediction, "LOCK_SECONDS", 0.0)
    enter, n_waits = lock.RunLock.__enter__, []

    def refuse_once(self):
        n_waits.append(1)
        if len(n_waits) == 1:
            raise lock.RunLocked("another process")
        return enter(self)

    monkeypatch.setattr(lock.RunLock, "__enter__", refuse_once)
    prediction.write_prediction(made, folder)
    assert len(n_waits) == 2 and n_registered(folder) == (1, 1)


def test_result_is_registered_once_per_attempt(predicted):
    made, folder = predicted
    prediction.write_prediction(made, folder)
    prediction.register_result(made, folder)  # the target has not started
    predicted_sweep.write_records(made[-1])
    for _ in range(2):
        prediction.register_result(made, folder)
        assert n_registered(folder) == (2, 1)
    records.write_facts(folder / "target", attempts=2)
    prediction.register_result(made, folder)
    assert n_registered(folder) == (3, 1)


def test_first_attempt_follows_the_hash_of_the_prediction(predicted):
    made, folder = predicted
    prediction.write_prediction(made, folder)
    assert records.start_run(made[-1], {}, -1) == 1
    content = json_files.read_file(folder / "target" / "events.jsonl")
    assert not content.corrupt_lines and content.rows[1]["event"] == "predicted"
