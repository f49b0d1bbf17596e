"""What can go wrong with a run, done to it: the fast part here, the slow part by

uv run pytest tests/test_faults.py -m slow -s
"""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint, config, guard, launch, mesh, model, programs, records, train

ROOT = pathlib.Path(__file__).parent.parent


def params(run: config.Run) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(train.restore(run)[1]["params"])]


def losses(run: config.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.metrics(records.folder(run))}


def same_bits(one: config.Run, other: config.Run) -> None:
    assert losses(one) == losses(other)
    for a, b in zip(params(one), params(other), strict=True):
        np.testing.assert_array_equal(a, b)


def events(run: config.Run) -> list[str]:
    return [event["event"] for event in records.events(records.folder(run))]


def flip(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "missing": pathlib.Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_whatever_happens_to_a_file_what_is_restored_is_what_was_saved(tiny, how, tmp_path):
    train.train(tiny)
    program = programs.build(tiny, mesh.make(tiny.mesh))
    with checkpoint.Checkpoints(tiny) as saved:
        truth = {step: saved.restore(step, program.abstract)[0] for step in (8, 12)}
        assert saved.steps() == [8, 12]
    newest = records.folder(tiny) / "checkpoints" / "12"
    names = [f.relative_to(newest) for f in sorted(newest.rglob("*")) if f.is_file()]
    found = collections.Counter()
    for name in names:
        copy = dataclasses.replace(tiny, dir=str(tmp_path / "copy"))
        shutil.rmtree(copy.dir, ignore_errors=True)
        shutil.copytree(tiny.dir, copy.dir)
        DAMAGE[how](records.folder(copy) / "checkpoints" / "12" / name)
        with checkpoint.Checkpoints(copy) as damaged:
            step, state, _, reasons = damaged.restore_newest(program.abstract)
        found[step] += 1
        jax.tree.map(np.testing.assert_array_equal, state, truth[step])
        if step == 8:
            assert "checkpoint 12 is damaged" in reasons[0]
            assert (records.folder(copy) / "damaged" / "12").is_dir()  # never deleted
    assert found[8] >= 3, found  # at least the arrays, their index and the manifest are noticed


def test_a_run_goes_on_from_the_newest_checkpoint_that_proves_itself(tiny):
    whole = dataclasses.replace(tiny, name="whole")
    train.train(whole)
    train.train(tiny)
    folder = records.folder(tiny)
    for file in (folder / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            flip(file)
    records.write_facts(folder, status="lost")
    train.train(tiny)
    assert records.read_facts(folder)["resumed_from"] == 8 and events(tiny) == ["damaged"]
    same_bits(tiny, whole)


def test_must_resume_refuses_to_start_afresh(tiny):
    tiny.resume = "must"
    with pytest.raises(ValueError, match="resume='must', but .* has no checkpoint that proves"):
        train.train(tiny)
    assert not (records.folder(tiny) / "config.json").exists()


def test_a_run_in_training_is_left_alone(tiny):
    (launched,) = [dataclasses.replace(tiny, name="s/tiny")]
    reasons = []
    with guard.Guard(records.folder(launched)):
        launch.here([launched], ended=lambda run, reason: reasons.append(reason))
    assert "is being trained by process" in reasons[0]
    assert not records.read_facts(records.folder(launched))  # neither failed nor started


def test_the_step_after_a_resume_must_give_the_loss_it_gave(tiny):
    whole = dataclasses.replace(tiny, name="whole")
    train.train(whole)
    folder = records.folder(whole)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    train.train(whole)  # 8 proves itself, and so does step 9
    shutil.rmtree(folder / "checkpoints" / "12")
    with open(folder / "checkpoints" / "proofs.jsonl", "a") as file:
        (proof,) = [p for p in records.lines(pathlib.Path(file.name)) if p["step"] == 8]
        file.write(json.dumps(proof | {"next_loss": proof["next_loss"] + 1e-6}) + "\n")
    with pytest.raises(ValueError, match="step 9 gave loss .* after a resume and .* before it"):
        train.train(whole)


def test_text_that_has_changed_is_noticed_before_a_step(tiny, tmp_path):
    tiny.data.cache = str(tmp_path / "data")
    train.train(tiny)
    folder = records.folder(tiny)
    shutil.rmtree(folder / "checkpoints" / "12")
    (binary,) = pathlib.Path(tiny.data.cache).glob("*/train.bin")
    data = np.fromfile(binary, np.uint8)
    np.where(data == ord("e"), ord("a"), data).astype(np.uint8).tofile(binary)
    with pytest.raises(ValueError, match="the batch after step 8 is not the one it was"):
        train.train(tiny)


@pytest.fixture
def poisoned(tiny, monkeypatch) -> config.Run:
    """The loss of one batch in about eight is no number."""
    nats = model.nats

    def sick(logits, targets):
        found, log_z = nats(logits, targets)
        return jnp.where(targets[:, 3].sum() % 8 == 1, jnp.nan, found), log_z

    monkeypatch.setattr(model, "nats", sick)
    tiny.steps, tiny.log_every, tiny.checkpoint_every = 24, 4, 4
    return tiny


def test_stop_ends_a_run_at_the_first_number_that_is_none(poisoned):
    with pytest.raises(train.Diverged):
        train.train(poisoned)
    assert events(poisoned)[-1] == "nonfinite"


def test_skip_leaves_the_weights_and_goes_on(poisoned):
    poisoned.optim.nonfinite = "skip"
    train.train(poisoned)
    assert records.read_facts(records.folder(poisoned))["status"] == "done"
    assert "skipped" in events(poisoned)
    assert np.isfinite(list(losses(poisoned).values())).all() and len(losses(poisoned)) == 6
    assert all(np.isfinite(leaf).all() for leaf in params(poisoned))


def test_rewind_goes_back_and_passes_over_the_batches(poisoned):
    poisoned.optim.nonfinite = "rewind"
    try:
        train.train(poisoned)
    except train.Diverged:
        pass  # more than MAX_REWINDS of sick batches: it depends on the text
    facts = records.read_facts(records.folder(poisoned))
    passed = facts["passed_over"]
    assert 1 <= len(passed) <= train.MAX_REWINDS and "rewound" in events(poisoned)
    assert all(p["batches"] == 4 and p["from_step"] % 4 == 0 for p in passed)
    assert facts["attempts"] == 1 + len(passed)
    assert np.isfinite(list(losses(poisoned).values())[:-1]).all()


def test_a_spike_is_far_above_the_rows_before_it():
    recent = collections.deque(maxlen=20)
    rng = np.random.default_rng(0)
    for step in range(40):
        row = {"loss": 4 - 0.02 * step + 0.01 * rng.normal(), "grad_norm": 1 + 0.1 * rng.normal()}
        assert train._spikes(recent, row) == []
    assert train._spikes(recent, {"loss": 6.0, "grad_norm": 1.0}) == ["loss"]
    assert train._spikes(recent, {"loss": 3.2, "grad_norm": 50.0}) == ["grad_norm"]


SCRIPT = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
from lm import config, mesh, train
mesh.start(sys.argv[2])
train.train(config.from_dict(json.loads(sys.argv[1])), lambda row: print(row["step"], flush=True))
"""


def start(run: config.Run, cache: pathlib.Path, devices: int = 4) -> subprocess.Popen:
    """The run in a process of its own; a line on stdout each log step."""
    words = [json.dumps(config.to_dict(run)), str(cache), str(devices)]
    command = [sys.executable, "-c", SCRIPT, *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def kill(process: subprocess.Popen, rng: np.random.Generator, number: int, most: int) -> None:
    """Sends a signal after a random number of log steps and a random moment; waits for the end."""
    assert process.stdout
    for _ in range(rng.integers(1, most)):
        process.stdout.readline()
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(number)
    process.communicate(timeout=120)


def test_killed_at_random_moments_it_ends_with_the_same_bits(tiny, tmp_path):
    tiny.steps, tiny.checkpoint_every, tiny.log_every = 300, 20, 10
    whole = dataclasses.replace(tiny, name="whole")
    train.train(whole)
    rng = np.random.default_rng()
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        kill(start(tiny, tmp_path / "cache"), rng, number, most=10)
    train.train(tiny)
    same_bits(tiny, whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_many_times(tiny, tmp_path):
    """Runs are interrupted until each fault was tried as often as TRIES says; then compared."""
    tries = {"SIGKILL": 26, "SIGTERM": 12, "SIGKILL and a flipped bit": 8, "SIGKILL, 2 devices": 6}
    tiny.steps, tiny.checkpoint_every, tiny.log_every = 4000, 20, 10
    whole = dataclasses.replace(tiny, name="whole")
    train.train(whole)
    rng = np.random.default_rng(int(time.time()))
    table = []
    for fault, n in tries.items():
        run = dataclasses.replace(tiny, name=fault.replace(" ", "-").replace(",", ""))
        lost = 0.0
        for trial in range(n):
            devices = 2 if "2 devices" in fault and trial % 2 else 4
            number = signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL
            kill(start(run, tmp_path / "cache", devices), rng, number, most=12)
            folder = records.folder(run)
            rows = records.metrics(folder)
            assert not records.is_finished(run), "more steps are needed for so many kills"
            steps = sorted(
                int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()
            )
            if "flipped" in fault and len(steps) > 1:
                arrays = folder / "checkpoints" / str(steps.pop()) / "state"
                flip(
                    max(
                        (f for f in arrays.rglob("*") if f.is_file()),
                        key=lambda f: f.stat().st_size,
                    )
                )
            kept = max(steps, default=0)
            done = rows[-1]["seconds"] if rows else 0.0
            lost += done - max((r["seconds"] for r in rows if r["step"] <= kept), default=0.0)
        process = start(run, tmp_path / "cache")
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        if "devices" in fault:
            ours, theirs = losses(run), losses(whole)
            assert list(ours) == list(theirs)
            np.testing.assert_allclose(
                list(ours.values())[-1], list(theirs.values())[-1], rtol=0.05
            )
        else:
            same_bits(run, whole)
        assert records.read_facts(records.folder(run))["attempts"] == n + 1
        table.append((fault, n, n, lost / n, events(run).count("damaged")))
    print("\nfault, tries, survived, training seconds lost a try, damaged checkpoints set aside")
    for line in table:
        print("{}, {}, {}, {:.2f}, {}".format(*line))
