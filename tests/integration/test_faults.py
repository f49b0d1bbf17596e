"""What can go wrong with a run, done to it: the fast part here, the slow part by

uv run pytest tests/integration/test_faults.py -m slow -s
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

from lm.config import schema
from lm.model import transformer
from lm.parallel import mesh
from lm.runs import lock, records
from lm.sweeps import launcher
from lm.training import checkpoints, loaded_model, loop, metric_log, session, step

ROOT = pathlib.Path(__file__).parent.parent.parent


def params(run: schema.Run) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(loaded_model.restore_model(run)[1]["params"])
    ]


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


def same_bits(one: schema.Run, other: schema.Run) -> None:
    assert losses(one) == losses(other)
    for a, b in zip(params(one), params(other), strict=True):
        np.testing.assert_array_equal(a, b)


def events(run: schema.Run) -> list[str]:
    return [event["event"] for event in records.load_events(records.run_dir(run))]


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
    loop.train(tiny)
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    with checkpoints.CheckpointStore(tiny) as saved:
        truth = {
            step_index: saved.restore(step_index, program.abstract).state for step_index in (8, 12)
        }
        assert saved.steps() == [8, 12]
    newest = records.run_dir(tiny) / "checkpoints" / "12"
    names = [f.relative_to(newest) for f in sorted(newest.rglob("*")) if f.is_file()]
    found = collections.Counter()
    for name in names:
        copy = dataclasses.replace(tiny, dir=str(tmp_path / "copy"))
        shutil.rmtree(copy.dir, ignore_errors=True)
        shutil.copytree(tiny.dir, copy.dir)
        DAMAGE[how](records.run_dir(copy) / "checkpoints" / "12" / name)
        with checkpoints.CheckpointStore(copy) as damaged:
            restored = damaged.restore_newest(program.abstract)
        step_index, reasons = restored.step, restored.damage
        found[step_index] += 1
        jax.tree.map(np.testing.assert_array_equal, restored.state, truth[step_index])
        if step_index == 8:
            assert "checkpoint 12 is damaged" in reasons[0]
            assert (records.run_dir(copy) / "damaged" / "12").is_dir()  # never deleted
    assert found[8] >= 3, found  # at least the arrays, their index and the manifest are noticed


def test_a_run_goes_on_from_the_newest_checkpoint_that_proves_itself(tiny):
    whole = dataclasses.replace(tiny, name="whole")
    loop.train(whole)
    loop.train(tiny)
    folder = records.run_dir(tiny)
    for file in (folder / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            flip(file)
    records.write_facts(folder, status="lost")
    loop.train(tiny)
    assert records.read_facts(folder)["resumed_from"] == 8 and events(tiny) == ["damaged"]
    same_bits(tiny, whole)


def test_must_resume_refuses_to_start_afresh(tiny):
    tiny.resume = "required"
    with pytest.raises(ValueError, match="resume='required', but .* has no intact checkpoint"):
        loop.train(tiny)
    assert not (records.run_dir(tiny) / "config.json").exists()


def test_a_run_in_training_is_left_alone(tiny):
    (launched,) = [dataclasses.replace(tiny, name="s/tiny")]
    reasons = []
    with lock.Guard(records.run_dir(launched)):
        launcher.run_pending([launched], on_end=lambda run, reason: reasons.append(reason))
        with pytest.raises(lock.RunLocked, match="is being trained by process"):
            loop.train(launched)
    assert reasons == []  # not ready: another process has it
    assert not records.read_facts(records.run_dir(launched))  # neither failed nor started


def test_the_step_after_a_resume_must_give_the_loss_it_gave(tiny):
    whole = dataclasses.replace(tiny, name="whole")
    loop.train(whole)
    folder = records.run_dir(whole)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    loop.train(whole)  # 8 proves itself, and so does step 9
    shutil.rmtree(folder / "checkpoints" / "12")
    with open(folder / "checkpoints" / "proofs.jsonl", "a") as file:
        (proof,) = [p for p in records.parse_json_lines(pathlib.Path(file.name)) if p["step"] == 8]
        file.write(json.dumps(proof | {"next_loss": proof["next_loss"] + 1e-6}) + "\n")
    with pytest.raises(ValueError, match="step 9 gave loss .* after the restart and .* before it"):
        loop.train(whole)


def test_text_that_has_changed_is_noticed_before_a_step(tiny, tmp_path):
    tiny.data.cache_dir = str(tmp_path / "data")
    loop.train(tiny)
    folder = records.run_dir(tiny)
    shutil.rmtree(folder / "checkpoints" / "12")
    (binary,) = pathlib.Path(tiny.data.cache_dir).glob("*/train.bin")
    data = np.fromfile(binary, np.uint8)
    np.where(data == ord("e"), ord("a"), data).astype(np.uint8).tofile(binary)
    with pytest.raises(ValueError, match="the batch after step 8 differs from"):
        loop.train(tiny)


@pytest.fixture
def poisoned(tiny, built_anew, monkeypatch) -> schema.Run:
    """The loss of one batch in about eight is no number."""
    nats = transformer.cross_entropy

    def sick(logits, targets):
        found, log_z = nats(logits, targets)
        return jnp.where(targets[:, 3].sum() % 8 == 1, jnp.nan, found), log_z

    monkeypatch.setattr(transformer, "cross_entropy", sick)
    tiny.steps, tiny.log_interval, tiny.checkpoint_interval = 24, 4, 4
    return tiny


def test_stop_ends_a_run_at_the_first_number_that_is_none(poisoned):
    with pytest.raises(loop.Diverged):
        loop.train(poisoned)
    assert events(poisoned)[-1] == "nonfinite"


def test_skip_leaves_the_weights_and_goes_on(poisoned):
    poisoned.optim.on_nonfinite = "skip"
    loop.train(poisoned)
    assert records.read_facts(records.run_dir(poisoned))["status"] == "done"
    assert "skipped" in events(poisoned)
    assert np.isfinite(list(losses(poisoned).values())).all() and len(losses(poisoned)) == 6
    assert all(np.isfinite(leaf).all() for leaf in params(poisoned))


def test_rewind_goes_back_and_passes_over_the_batches(poisoned):
    poisoned.optim.on_nonfinite = "rewind"
    try:
        loop.train(poisoned)
    except loop.Diverged:
        pass  # more than MAX_REWINDS of sick batches: it depends on the text
    facts = records.read_facts(records.run_dir(poisoned))
    passed = facts["passed_over"]
    assert 1 <= len(passed) <= session.MAX_REWINDS and "rewound" in events(poisoned)
    assert all(p["batches"] == 4 and p["from_step"] % 4 == 0 for p in passed)
    assert facts["attempts"] == 1 + len(passed)
    assert np.isfinite(list(losses(poisoned).values())[:-1]).all()


def test_a_spike_is_far_above_the_rows_before_it():
    recent = collections.deque(maxlen=20)
    rng = np.random.default_rng(0)
    for step_index in range(40):
        row = {
            "loss": 4 - 0.02 * step_index + 0.01 * rng.normal(),
            "grad_norm": 1 + 0.1 * rng.normal(),
        }
        assert metric_log.find_spikes(recent, row) == []
    assert metric_log.find_spikes(recent, {"loss": 6.0, "grad_norm": 1.0}) == ["loss"]
    assert metric_log.find_spikes(recent, {"loss": 3.2, "grad_norm": 50.0}) == ["grad_norm"]


SCRIPT = """
import json, os, jax
run, cache, devices = json.loads(os.environ["RUN"])
jax.config.update("jax_num_cpu_devices", devices)
from experiments import cli
from lm.config import schema; from lm.parallel import mesh; from lm.training import loop

def main():
    mesh.initialize_devices(cache)
    loop.train(schema.from_dict(run), lambda row: print(row["step"], flush=True))

cli.run_main(main)
"""


def start(run: schema.Run, cache: pathlib.Path, devices: int = 4) -> subprocess.Popen:
    """The run in a process of its own; a line on stdout each log step."""
    asked = os.environ | {"RUN": json.dumps([schema.to_dict(run), str(cache), devices])}
    command = [sys.executable, "-c", SCRIPT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=asked, cwd=ROOT, **pipes)


def kill(process: subprocess.Popen, rng: np.random.Generator, number: int, most: int) -> None:
    """Sends a signal after a random number of log steps and a random moment; waits for the end."""
    assert process.stdout
    for _ in range(rng.integers(1, most)):
        process.stdout.readline()
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(number)
    process.communicate(timeout=120)


def test_killed_at_random_moments_it_ends_with_the_same_bits(tiny, tmp_path):
    tiny.steps, tiny.checkpoint_interval, tiny.log_interval = 300, 20, 10
    whole = dataclasses.replace(tiny, name="whole")
    loop.train(whole)
    rng = np.random.default_rng()
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        kill(start(tiny, tmp_path / "cache"), rng, number, most=10)
    loop.train(tiny)
    same_bits(tiny, whole)


def freeze(folder: pathlib.Path) -> None:
    """Neither a file in it nor a name can change, for root as well."""
    if os.geteuid() or not shutil.which("chattr"):
        pytest.skip("no folder can be frozen here: it takes root, and chattr")
    subprocess.run(["chattr", "-R", "+i", folder], stderr=subprocess.DEVNULL)  # some files vanish


def mend(folder: pathlib.Path) -> None:
    subprocess.run(["chattr", "-R", "-i", folder], check=True)
    (folder.parents[1] / "ballast").unlink(missing_ok=True)


def test_a_save_into_a_folder_that_cannot_be_written_is_not_begun(tiny):
    with checkpoints.CheckpointStore(tiny) as saved:
        freeze(saved.folder)
        try:
            with pytest.raises(OSError, match="Operation not permitted"):
                saved.save(1, {"step": jnp.int32(1)}, "hash", [], 0.0)
        finally:
            subprocess.run(["chattr", "-R", "-i", saved.folder], check=True)
        saved.save(1, {"step": jnp.int32(1)}, "hash", [], 0.0)
        assert saved.steps() == [1]


def test_a_command_that_fails_waits_for_no_thread():
    script = (
        "import threading, time; from experiments import cli\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    raise OSError(30, 'Read-only file system', 'runs/x')\n"
        "cli.run_main(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert done.returncode == 2 and "runs/x: Read-only file system. Saved files" in done.stderr


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, to be filled."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", place])
    if made.returncode:
        pytest.skip("no disk can be mounted here: it takes root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(folder: pathlib.Path) -> None:
    with open(folder.parents[1] / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            pass


def flip_newest(folder: pathlib.Path) -> None:
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    if len(steps) > 1:
        arrays = (folder / "checkpoints" / str(steps[-1]) / "state").rglob("*")
        flip(max((f for f in arrays if f.is_file()), key=lambda f: f.stat().st_size))


# What ends the process: a signal, or what is done to its folder until it gives up by itself.
FAULTS = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGKILL, a flipped bit": signal.SIGKILL,
    "SIGKILL, on 2 and 4 devices": signal.SIGKILL,
    "full disk": fill,
    "read-only folder": freeze,
}
TRIES = dict.fromkeys(FAULTS, 6) | {"SIGKILL": 14, "SIGTERM": 8, "one of these": 18}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_many_times(tiny, disk, tmp_path):
    """A run for each fault is interrupted as often as TRIES says, and then compared."""
    tiny.dir = str(disk / "runs")
    tiny.steps, tiny.checkpoint_interval, tiny.log_interval = 2400, 20, 10
    whole = dataclasses.replace(tiny, name="whole")
    loop.train(whole)
    seed = int(time.time())
    rng = np.random.default_rng(seed)
    table, waits = [], []
    for kind, n in TRIES.items():
        run = dataclasses.replace(tiny, name=kind.replace(" ", "-").replace(",", ""))
        folder, lost, two = records.run_dir(run), 0.0, False
        for trial in range(n):
            any_of = [fault for fault in FAULTS if "devices" not in fault]
            fault = str(rng.choice(any_of)) if kind == "one of these" else kind
            two = "devices" in fault and trial % 2 == 0
            process = start(run, tmp_path / "cache", devices=2 if two else 4)
            for _ in range(rng.integers(1, 8)):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            began = time.monotonic()
            if callable(end := FAULTS[fault]):
                end(folder)
            else:
                process.send_signal(end)
            _, errors = process.communicate(timeout=120)
            waits += [time.monotonic() - began] if end == signal.SIGTERM else []
            if callable(end):
                mend(folder)
                assert process.returncode == 2 and "repeat the command to continue" in errors, (
                    errors
                )
            else:
                assert process.returncode == (-end if end == signal.SIGKILL else 128 + end)
            if "flipped" in fault:
                flip_newest(folder)
            assert not records.is_finished(run), "more steps are needed for so many tries"
            checkpoints = (folder / "checkpoints").iterdir()
            kept = max((int(p.name) for p in checkpoints if p.name.isdigit()), default=0)
            rows = records.load_metrics(folder)
            done = rows[-1]["seconds"] if rows else 0.0
            lost += done - max((r["seconds"] for r in rows if r["step"] <= kept), default=0.0)
        process = start(run, tmp_path / "cache")
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
        assert [row["step"] for row in records.load_metrics(folder)] == list(range(10, 2401, 10))
        if "devices" in kind:
            ours, theirs = losses(run)[2400], losses(whole)[2400]
            assert ours == pytest.approx(theirs, rel=0.05)
        else:
            same_bits(run, whole)
        table.append((kind, n, n, lost / n, events(run).count("damaged")))
        print("\n{}: tried {}, survived {}, {:.2f} s lost a try, {} set aside".format(*table[-1]))
    print(f"\nseed {seed}: {sum(line[1] for line in table)} faults, all survived")
    print("fault | tries | survived | training seconds lost a try | checkpoints set aside")
    for line in table:
        print("{} | {} | {} | {:.2f} | {}".format(*line))
    print(
        f"SIGTERM to the end, with its save: median {np.median(waits):.2f} s, {max(waits):.2f} most"
    )
