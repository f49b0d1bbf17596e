import copy
import dataclasses

import pytest

from lm import config, guard, halving, launch, prediction, records, standing, train

LOSSES = {"s/0": 3.0, "s/1": 2.0, "s/2": 4.0, "s/3": 2.5, "s/4": 5.0}  # whatever the step


@pytest.fixture
def sweep(tiny) -> list[config.Run]:
    """Five learning rates, and one run of another size."""
    runs = []
    for number in range(6):
        run = copy.deepcopy(tiny)
        run.name, run.halve, run.optim.lr = f"s/{number}", 2, 1e-3 * (1 + number)
        runs.append(run)
    runs[5].model.d_ff = 64
    return runs


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """What was trained, and to which step: in place of training, an evaluation is written."""
    seen = []

    def fake(run, report, until):
        seen.append((run.name, until))
        folder = records.folder(run)
        records.start(run, {})
        row = {"step": until, "loss": LOSSES.get(run.name, 1.0)}
        records.append(folder / "evals.jsonl", row)
        records.append(folder / "metrics.jsonl", row | {"seconds": 1.0, "flops": 5})
        status = "done" if until == run.steps else "waiting"
        records.write_facts(folder, status=status, flops=20)

    monkeypatch.setattr(train, "train", fake)
    return seen


def statuses(runs: list[config.Run]) -> dict[str, str]:
    return {run.name: records.read_facts(records.folder(run))["status"] for run in runs}


def test_rungs_are_at_twice_the_steps_of_the_last(tiny):
    tiny.halve, tiny.steps = 3, 100
    assert halving.rungs(tiny) == [12, 25, 50]
    tiny.halve = 0
    assert halving.rungs(tiny) == [] and halving.groups([tiny, tiny]) == []


def test_the_worse_half_ends_at_each_rung_and_other_sizes_are_never_compared(sweep, trained):
    launch.check(sweep)
    launch.here(sweep)
    first, second = halving.rungs(sweep[0])
    assert trained[:5] == [(f"s/{number}", first) for number in range(5)]
    assert trained[5:8] == [("s/0", second), ("s/1", second), ("s/3", second)]
    assert trained[8:] == [("s/1", 12), ("s/3", 12), ("s/5", 12)]  # the last is alone
    ends = ["stopped", "done", "stopped", "done", "stopped", "done"]
    assert list(statuses(sweep).values()) == ends
    facts = records.read_facts(records.folder(sweep[2]))
    assert facts["reason"] == "loss 4.0000 at step 3 of 12: place 4 of 5 by optim.lr"
    assert launch.left(sweep) == []
    launch.here(sweep, started=lambda run: pytest.fail("all was done"))


def test_what_is_stopped_is_counted_apart_and_in_no_law(sweep, trained):
    launch.here(sweep)
    total = standing.total(standing.runs(launch.folder(sweep)))
    assert (total["runs"], total["done"], total["stopped"]) == (6, 3, 3)
    assert total["share"] == 1.0 and total["device_hours_left"] == 0.0
    sweep[5] = dataclasses.replace(sweep[5], name="s/6", predict=True)
    prediction.predict(sweep, launch.folder(sweep))
    said = records.read_json(launch.folder(sweep) / "prediction.json")
    assert said["runs"] == ["s/1", "s/3"]


def test_a_run_that_diverged_or_failed_is_among_the_worse_half_and_nobody_waits_for_it(
    sweep, trained, monkeypatch
):
    fake = train.train

    def sometimes(run, report, until):
        if run.name == "s/1":
            records.start(run, {})
            records.write_facts(records.folder(run), status="diverged", reason="loss nan")
            raise train.Diverged("loss nan")
        if run.name == "s/3":
            raise RuntimeError("broken")
        fake(run, report, until)

    monkeypatch.setattr(train, "train", sometimes)
    launch.here(sweep[:5])
    assert [name for name, step in trained if step == 12] == ["s/0", "s/2"]
    assert statuses(sweep[:5])["s/4"] == "done" or trained.count(("s/4", 6)) == 1


def test_a_verdict_stands_when_one_that_failed_comes_late(sweep, trained, monkeypatch):
    fake = train.train

    def broken(run, report, until):
        if run.name == "s/1":
            raise RuntimeError("broken")
        fake(run, report, until)

    monkeypatch.setattr(train, "train", broken)
    launch.here(sweep[:5])
    before = statuses(sweep[:5])
    assert before["s/1"] == "failed" and sorted(before.values()).count("done") == 2
    monkeypatch.setattr(train, "train", fake)
    launch.here(sweep[:5])
    after = statuses(sweep[:5])
    assert after == before | {"s/1": "done"}  # the best of all, as it turns out


def test_a_rung_waits_for_what_another_process_trains(sweep, trained, monkeypatch):
    looks = []

    def look(seconds):
        looks.append(len(trained))
        if len(looks) == 2:
            other.__exit__()
            train.train(sweep[4], print, halving.rungs(sweep[4])[0])

    other = guard.Guard(records.folder(sweep[4]))
    other.__enter__()
    monkeypatch.setattr(launch.time, "sleep", look)
    launch.here(sweep[:5])
    assert looks == [4, 4] and sorted(statuses(sweep[:5]).values()).count("done") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda runs: setattr(runs[1], "halve", -1), "halve=-1 must be at least 0"),
        (lambda runs: setattr(runs[1], "halve", 4), "steps=12 are too few"),
        (lambda runs: setattr(runs[1], "halve_by", "model.d_ff"), "must be a knob of optim"),
        (lambda runs: setattr(runs[1], "halve_by", "optim.rate"), "must be a knob of optim"),
        (
            lambda runs: (
                setattr(runs[5], "start", config.Start(run="s/1"))
                or setattr(runs[5].model, "d_ff", 48)
            ),
            "s/1 may be stopped by halve=2",
        ),
    ],
)
def test_what_cannot_be_halved_is_refused(sweep, change, words):
    change(sweep)
    with pytest.raises(ValueError, match=words):
        launch.check(sweep)


def test_a_run_waits_at_a_rung_and_goes_on_to_the_same_bits(tiny):
    whole = dataclasses.replace(tiny, name="whole")
    train.train(whole)
    train.train(tiny, until=6)
    facts = records.read_facts(records.folder(tiny))
    assert facts["status"] == "waiting" and facts["reason"].startswith("at step 6 of 12, for runs")
    assert not records.is_finished(tiny)
    assert [row["step"] for row in records.evals(records.folder(tiny))] == [6]
    train.train(tiny)
    losses = [
        {row["step"]: row["loss"] for row in records.metrics(records.folder(run))}
        for run in (whole, tiny)
    ]
    assert losses[0] == losses[1]
