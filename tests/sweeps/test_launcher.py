"""Order, prediction, failures and files of a sweep."""

import collections
import dataclasses
import json
import shlex

import jax
import pytest
from fixtures import predicted_sweep, verified_sweep

from lm.config import flops, model_sizes, schema
from lm.data import dataset
from lm.laws.forms import power_laws
from lm.reports.audit import prediction_audit, prediction_chain
from lm.runs import json_files, lock, records
from lm.sweeps import design, launcher, prediction, run_order
from lm.training import loop


@pytest.fixture
def sweep(tiny) -> list[schema.Run]:
    """Return five runs of different sizes. The second one is the target."""
    runs = []
    for size, d_ff in (("a", 16), ("b", 24), ("c", 32), ("d", 48), ("e", 64)):
        model = dataclasses.replace(tiny.model, d_ff=d_ff, n_layers=1)
        runs.append(
            dataclasses.replace(
                tiny, name=f"s/{size}", model=model, steps=4, is_prediction_target=size == "b"
            )
        )
    return runs


def read_prediction(sweep: list[schema.Run]) -> dict | None:
    file = launcher.sweep_folder(sweep) / "prediction.json"
    return json_files.read_object(file) if file.exists() else None


def test_pending_runs_train_and_target_is_predicted_first(sweep, monkeypatch):
    """The records of finished runs replace their training."""
    order = []
    prediction_at_start = {}
    sweep = [dataclasses.replace(run, steps=verified_sweep.STEPS) for run in sweep]

    def train(run, *reports):
        prediction_at_start[run.name] = read_prediction(sweep)
        predicted_sweep.write_records(run)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(records, "current_time", predicted_sweep.Clock())
    launcher.validate_sweep(sweep)
    assert [run.name for run in launcher.pending(sweep)] == ["s/a", "s/c", "s/d", "s/e", "s/b"]
    launcher.run_pending(sweep, on_start=lambda run: order.append(run.name))
    assert order == ["s/a", "s/c", "s/d", "s/e", "s/b"]
    stored = prediction_at_start["s/b"]
    assert prediction_at_start["s/c"] is None and stored["target"] == "s/b"
    assert stored["runs"] == ["s/a", "s/c", "s/d", "s/e"]
    n_params = model_sizes.count_parameters(sweep[1].model)["non_embedding"]
    assert stored[prediction.X] == n_params
    assert stored["lo"] <= stored["value"] <= stored["hi"]
    assert launcher.pending(sweep) == []
    launcher.run_pending(sweep, on_start=lambda run: pytest.fail("a finished run was started"))
    launcher.write_sweep_files("s.py", sweep, [])
    links = prediction_audit.audit_prediction(launcher.sweep_folder(sweep))
    assert not [link for link in links if link.status != prediction_chain.VERIFIED]


def test_prediction_is_of_the_law_and_fixed_after_start(sweep):
    for run, loss in zip(sweep, (3.0, 2.9, 2.8, 2.7, 2.65), strict=True):
        if not run.is_prediction_target:
            records.start_run(run, flops.run_facts(run))
            records.append_record(records.run_dir(run) / "evals.jsonl", {"step": 4, "loss": loss})
            records.write_facts(records.run_dir(run), status="done")
    target = sweep[1]
    prediction.write_prediction(sweep, launcher.sweep_folder(sweep))
    stored = read_prediction(sweep)
    rows = [
        row for row in records.load_runs(launcher.sweep_folder(sweep)) if row["name"] != target.name
    ]
    law = power_laws.power(rows, x=prediction.X, y=prediction.Y)
    predicted = law.predict(stored[prediction.X])
    expected = (predicted.value, predicted.lo, predicted.hi)
    assert (stored["value"], stored["lo"], stored["hi"]) == expected
    records.start_run(target, {})
    prediction.write_prediction(sweep[:3], launcher.sweep_folder(sweep[:3]))
    assert read_prediction(sweep) == stored
    assert "joint" not in stored  # the sweep has one token budget


def test_failed_law_fit_is_recorded_as_refused(sweep):
    prediction.write_prediction([sweep[1]], launcher.sweep_folder([sweep[1]]))
    assert read_prediction(sweep)["refused"]


@pytest.fixture
def branched(sweep) -> list[schema.Run]:
    """Return trunk runs of three sizes, each followed by its cooldown branches at two budgets.

    The longer branch of the second size is the predicted run.
    """
    runs = []
    for run in sweep[:3]:
        run.steps, run.optim.warmup, run.is_prediction_target = 40, 0.02, False
        per_step = run.data.batch_size * run.data.seq_len
        runs += design.cooldown_branches(run, (20 * per_step, 40 * per_step))
    runs[5].is_prediction_target = True
    return runs


def test_related_runs_wait_and_are_not_fitted(branched):
    """The law with the target's budget uses the longer branches of the other sizes, no trunks."""
    related = {run.name for run in branched[3:6]}
    assert prediction.related_runs(branched) == related
    assert {run.name for run in run_order.topological_order(branched)[-3:]} == related
    same_budget, any_budget = prediction.runs_to_fit(branched)
    assert same_budget == [branched[2].name, branched[8].name]
    assert any_budget == sorted(branched[i].name for i in (1, 2, 7, 8))
    assert not any(
        run.name in related for run in launcher.ready(branched, launcher.WorkerOptions())
    )


def test_runs_from_weights_of_another_sweep_are_not_related(sweep):
    for run in sweep:
        run.start = schema.Start(run="base/1M")
        run.is_prediction_target = run is sweep[-1]
    assert prediction.related_runs(sweep) == {sweep[-1].name}
    for run in sweep[-2:]:  # branches of a trunk run of another sweep
        run.start = schema.Start(run="base/1M", restore="full_state")
    assert prediction.related_runs(sweep) == {"base/1M", *(run.name for run in sweep[-2:])}


def test_joint_prediction_is_written_before_related_runs(branched, monkeypatch):
    prediction_at_start = {}

    def fake(run, *reports):
        prediction_at_start[run.name] = read_prediction(branched)
        records.start_run(run, flops.run_facts(run))
        records.write_facts(records.run_dir(run), status="done")

    monkeypatch.setattr(loop, "train", fake)
    launcher.run_pending(branched)
    names = list(prediction_at_start)
    assert all(prediction_at_start[name] is None for name in names[:6])
    stored = prediction_at_start[names[6]]
    assert names[6] == branched[3].name and stored["target"] == branched[5].name
    assert stored["joint"]["runs"] == prediction.runs_to_fit(branched)[1]
    assert "refused" in stored["joint"]  # the runs have no losses


def test_sweep_continues_after_divergence_or_failure(sweep, monkeypatch):
    def fake(run, *reports):
        records.start_run(run, flops.run_facts(run))
        if run.name == "s/a":
            records.write_facts(
                records.run_dir(run), status="diverged", reason="loss nan at step 2"
            )
            raise loop.Diverged("loss nan at step 2")
        if run.name == "s/c":
            raise RuntimeError("out of <memory>")
        records.write_facts(records.run_dir(run), status="done")

    monkeypatch.setattr(loop, "train", fake)
    reasons = {}
    launcher.run_pending(sweep, on_end=lambda run, reason: reasons.update({run.name: reason}))
    assert (
        reasons["s/a"] == "loss nan at step 2" and reasons["s/c"] == "RuntimeError: out of <memory>"
    )
    assert reasons["s/d"] == reasons["s/e"] == ""
    rows = {row["name"]: row["status"] for row in records.load_runs(launcher.sweep_folder(sweep))}
    assert rows == {"s/a": "diverged", "s/c": "failed", "s/b": "done", "s/d": "done", "s/e": "done"}
    assert "Traceback" in (records.run_dir(sweep[2]) / "error.txt").read_text()
    assert [run.name for run in launcher.pending(sweep)] == [
        "s/c"
    ]  # a new call retries failed runs


def test_failed_run_is_retried_and_blocks_its_children(sweep, monkeypatch):
    child = dataclasses.replace(sweep[4], start=schema.Start(run="s/c"))
    grandchild = dataclasses.replace(sweep[3], start=schema.Start(run="s/e"))
    sweep, started = [*sweep[:3], grandchild, child], []

    def fake(run, *reports):
        records.start_run(run, flops.run_facts(run))
        started.append(run.name)
        if run.name == "s/c":
            raise RuntimeError("broken")
        records.write_facts(records.run_dir(run), status="done")

    monkeypatch.setattr(loop, "train", fake)
    launcher.run_pending(sweep, options=launcher.WorkerOptions("1", retries=2))
    assert started == ["s/a", "s/c", "s/c", "s/c", "s/b"]
    started.clear()
    launcher.run_pending(sweep)  # failures of another submission do not count
    assert started == ["s/c"]
    started.clear()
    launcher.run_pending(sweep, options=launcher.WorkerOptions("1", retries=2))
    assert started == []


def test_locked_runs_are_skipped_and_prediction_waits(sweep, monkeypatch):
    started = []

    def fake(run, *reports):
        records.start_run(run, flops.run_facts(run))
        started.append(run.name)
        if run.name == "s/d":
            raise lock.RunLocked("another process has the lock")
        records.write_facts(records.run_dir(run), status="done")

    monkeypatch.setattr(loop, "train", fake)
    with lock.RunLock(records.run_dir(sweep[0])):
        launcher.run_pending(sweep)
    assert started == ["s/c", "s/d", "s/e"]


def write_done(run: schema.Run) -> None:
    records.start_run(run, flops.run_facts(run))
    records.write_facts(records.run_dir(run), status="done")


def test_records_of_a_finished_run_are_read_once(tiny, monkeypatch):
    runs = [dataclasses.replace(tiny, name=f"s/{number}") for number in range(20)]
    runs[1:] = [dataclasses.replace(run, start=schema.Start(run="s/0")) for run in runs[1:]]
    n_reads, is_finished = collections.Counter(), records.is_finished

    def count_finished(run: schema.Run) -> bool:
        if has_finished := is_finished(run):
            n_reads[run.name] += 1
        return has_finished

    monkeypatch.setattr(records, "is_finished", count_finished)
    monkeypatch.setattr(loop, "train", lambda run, *reports: write_done(run))
    launcher.run_pending(runs, options=launcher.WorkerOptions("1", wait="always"))
    assert n_reads == {run.name: 1 for run in runs}


def test_waiting_worker_takes_over_a_run_that_died(sweep, monkeypatch):
    """The other process dies during the wait. Without a wait, the call ends before it."""
    runs, started = sweep[2:3], []
    other_process = lock.RunLock(records.run_dir(runs[0]))
    monkeypatch.setattr(
        loop, "train", lambda run, *reports: (started.append(run.name), write_done(run))
    )
    monkeypatch.setattr(launcher.time, "sleep", lambda seconds: other_process.__exit__())
    other_process.__enter__()
    launcher.run_pending(runs)
    assert started == []
    launcher.run_pending(runs, options=launcher.WorkerOptions("1", wait="always"))
    assert started == ["s/c"]


@pytest.mark.parametrize(
    ("wait", "n_children", "n_waits"), [("children", 1, 0), ("children", 2, 1), ("always", 1, 1)]
)
def test_worker_waits_for_children_that_others_cannot_train(
    sweep, monkeypatch, wait, n_children, n_waits
):
    """The process that trains the parent can train one child, so a second worker trains others."""
    parent, *children = sweep[2:][: n_children + 1]
    children = [dataclasses.replace(run, start=schema.Start(run="s/c")) for run in children]
    waits, started = [], []
    other_process = lock.RunLock(records.run_dir(parent))

    def finish_parent(seconds: float) -> None:
        waits.append(seconds)
        write_done(parent)
        other_process.__exit__()

    monkeypatch.setattr(
        loop, "train", lambda run, *reports: (started.append(run.name), write_done(run))
    )
    monkeypatch.setattr(launcher.time, "sleep", finish_parent)
    other_process.__enter__()
    launcher.run_pending([parent, *children], options=launcher.WorkerOptions("1", wait=wait))
    assert len(waits) == n_waits
    assert started == ([run.name for run in children] if n_waits else [])
    if not n_waits:
        other_process.__exit__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: setattr(runs[1], "name", "s/a"), "name=s/a is the name of two runs"),
        (lambda runs: setattr(runs[2].data, "sources", {"text:nowhere": 1.0}), "text:nowhere"),
        (lambda runs: setattr(runs[2].data, "sources", {"synthetic:machine?x=1": 1.0}), "x"),
        (lambda runs: setattr(runs[2].data, "tokenizer", "file:no.json"), "file:no.json"),
        (lambda runs: setattr(runs[2].eval, "tasks", "copie"), "copie does not exist"),
        (
            lambda runs: setattr(runs[3].mesh, "data", 4),
            "mesh.data=4 must be the number of devices",
        ),
        (lambda runs: setattr(runs[2].data, "batch_size", 6), "multiple of mesh.data=8"),
    ],
)
def test_configs_are_checked_without_devices_or_text(sweep, change, message, monkeypatch):
    for run in sweep:
        run.data, run.eval = dataclasses.replace(run.data), dataclasses.replace(run.eval)
        run.mesh = dataclasses.replace(run.mesh)
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("a device was used"))
    monkeypatch.setattr(dataset, "open_dataset", lambda *_: pytest.fail("text was read"))
    launcher.validate_configs(sweep, 8)
    change(sweep)
    with pytest.raises(ValueError, match=message):
        launcher.validate_configs(sweep, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.clear(), "the sweep has no runs"),
        (lambda runs: setattr(runs[1], "name", "s/a"), "name=s/a is the name of two runs"),
        (lambda runs: setattr(runs[1], "name", "t/a"), "must be SWEEP/RUN with one SWEEP"),
        (lambda runs: setattr(runs[1], "name", "a"), "must be SWEEP/RUN with one SWEEP"),
        (
            lambda runs: setattr(runs[0], "is_prediction_target", True),
            "is_prediction_target=True in more than one run",
        ),
        (lambda runs: setattr(runs[4].optim, "lr", -1.0), "optim.lr=-1.0 must be above 0"),
        (lambda runs: setattr(runs[2].data, "sources", {"text:nowhere": 1.0}), "text:nowhere"),
        (
            lambda runs: [setattr(run.data, "batch_size", 6) for run in runs],
            "multiple of mesh.data=4",
        ),
        (lambda runs: setattr(runs[2].data, "sources", {"txt:x": 1.0}), "text"),
    ],
)
def test_invalid_sweep_is_refused_before_it_starts(sweep, change, message):
    for run in sweep:
        run.optim, run.data = dataclasses.replace(run.optim), dataclasses.replace(run.data)
    change(sweep)
    with pytest.raises(ValueError, match=message):
        launcher.validate_sweep(sweep)
    assert not sweep or not records.run_dir(sweep[0]).parent.exists()


def test_sweep_files_are_written(sweep):
    launcher.write_sweep_files("configs/x.py", sweep, [{"name": "s/a", "seconds": 1.0}])
    folder = launcher.sweep_folder(sweep)
    assert json.loads((folder / "sweep.json").read_text())["runs"][0] == "s/a"
    assert json_files.read_object(folder / "plan.json")["runs"][0]["seconds"] == 1.0


@pytest.mark.parametrize("location", ["configs/x.py:2", "my sweep.py", "a&b/$HOME.py:'x'"])
def test_stored_command_is_quoted_for_a_shell(sweep, location):
    launcher.write_sweep_files(location, sweep, [])
    request = json_files.read_object(launcher.sweep_folder(sweep) / "sweep.json")
    assert shlex.split(request["command"])[-2:] == ["experiments.sweep", f"--sweep={location}"]
    assert request["sweep"] == location


def test_max_epochs_are_those_of_the_longest_run(sweep):
    sweep[3] = dataclasses.replace(sweep[3], steps=40)
    ((source, max_epochs),) = launcher.max_epochs_by_source(sweep).items()
    assert source in sweep[0].data.sources
    n_epochs = launcher.max_epochs_by_source(sweep[:1])[source]
    assert max_epochs == pytest.approx(10 * n_epochs) and n_epochs > 0


def test_runs_of_equal_tokens_per_parameter_are_fallback(sweep):
    for run in sweep:
        run.steps = model_sizes.steps_for_budget(run, tokens_per_param=3)
    longer = dataclasses.replace(sweep[0], name="s/longer", steps=3 * sweep[0].steps)
    same_ratio, any_ratio = prediction.runs_to_fit([*sweep, longer])
    assert same_ratio == ["s/a", "s/c", "s/d", "s/e"] and "s/longer" in any_ratio
