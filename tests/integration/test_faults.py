"""Faults of a run: corrupt files, killed processes, full disks, losses that are not finite.

The slow tests repeat random faults many times:

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

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import schema
from lm.model import transformer
from lm.parallel import mesh
from lm.runs import json_files, lock, records
from lm.sweeps import launcher
from lm.training import checkpoints, loaded_model, loop, metric_log, session, step
from lm.training.checkpointing import batch_hash

ROOT = pathlib.Path(__file__).parent.parent.parent


def params(run: schema.Run) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(loaded_model.restore_model(run)[1]["params"])
    ]


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


def assert_same_bits(run: schema.Run, other: schema.Run) -> None:
    assert losses(run) == losses(other)
    for a, b in zip(params(run), params(other), strict=True):
        np.testing.assert_array_equal(a, b)


def events(run: schema.Run) -> list[str]:
    return [event["event"] for event in records.load_events(records.run_dir(run))]


def flip_bit(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


DAMAGES = {
    "flipped": flip_bit,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "missing": pathlib.Path.unlink,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_never_changes_the_restored_state(finished_run, damage, tmp_path):
    """Each file of the newest checkpoint is damaged once. A harmless damage may be ignored."""
    functions = step.build_train_functions(finished_run, mesh.make_mesh(finished_run.mesh))
    with checkpoints.CheckpointStore(finished_run, read_only=True) as store:
        states = {n: store.restore(n, functions.abstract).state for n in (8, 12)}
        assert store.steps() == [8, 12]
    newest = records.run_dir(finished_run) / "checkpoints" / "12"
    names = [f.relative_to(newest) for f in sorted(newest.rglob("*")) if f.is_file()]
    restored_steps = collections.Counter()
    for name in names:
        copy = dataclasses.replace(finished_run, dir=str(tmp_path / "copy"))
        shutil.rmtree(copy.dir, ignore_errors=True)
        shutil.copytree(finished_run.dir, copy.dir)
        DAMAGES[damage](records.run_dir(copy) / "checkpoints" / "12" / name)
        with checkpoints.CheckpointStore(copy) as store:
            restored = store.restore_newest(functions.abstract)
        restored_steps[restored.step] += 1
        jax.tree.map(np.testing.assert_array_equal, restored.state, states[restored.step])
        if restored.step == 8:
            assert "checkpoint 12 is damaged" in restored.damage[0]
            assert (records.run_dir(copy) / "damaged" / "12").is_dir()
    # At least the damage of the arrays, their index and the manifest is detected.
    assert restored_steps[8] >= 3, restored_steps


def test_run_resumes_from_the_newest_intact_checkpoint(finished_copy, finished_run):
    folder = records.run_dir(finished_copy)
    for file in (folder / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            flip_bit(file)
    records.write_facts(folder, status="lost")
    loop.train(finished_copy)
    facts = records.read_facts(folder)
    assert facts["resumed_from"] == 8 and events(finished_copy) == ["damaged"]
    assert_same_bits(finished_copy, finished_run)


def test_checkpoint_whose_metadata_lacks_an_array_is_corrupt(finished_copy):
    file = records.run_dir(finished_copy) / "checkpoints" / "12" / "state" / "_METADATA"
    file.write_text(
        file.read_text().replace("params/blocks/attention/out", "params/blocks/attention/uut")
    )
    functions = step.build_train_functions(finished_copy, mesh.make_mesh(finished_copy.mesh))
    with checkpoints.CheckpointStore(finished_copy) as store:
        restored = store.restore_newest(functions.abstract)
    assert restored.step == 8 and "checkpoint 12 is damaged" in restored.damage[0]


def test_required_resume_rejects_a_run_without_checkpoint(tiny):
    tiny.resume = "required"
    with pytest.raises(ValueError, match="resume='required': .* has no intact checkpoint"):
        loop.train(tiny)
    assert not (records.run_dir(tiny) / "config.json").exists()


def test_locked_run_is_not_trained(tiny):
    run = dataclasses.replace(tiny, name="s/tiny")
    reasons = []
    with lock.RunLock(records.run_dir(run)):
        launcher.run_pending([run], on_end=lambda run, reason: reasons.append(reason))
        with pytest.raises(lock.RunLocked, match="is being trained by process"):
            loop.train(run)
    assert reasons == []
    assert not records.read_facts(records.run_dir(run))


def test_changed_loss_after_a_resume_is_rejected(finished_copy):
    """The run resumes at step 8 with the stored loss of step 9, and not with another loss."""
    folder = records.run_dir(finished_copy)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    loop.train(finished_copy)
    shutil.rmtree(folder / "checkpoints" / "12")
    file = folder / "checkpoints" / "proofs.jsonl"
    (row,) = [row for row in json_files.read_latest_rows(file) if row["step"] == 8]
    changed = row | {"next_loss": row["next_loss"] + 1e-6}
    records.append_record(file, changed)
    with pytest.raises(ValueError, match="step 9 has loss .* after the restart and .* before it"):
        loop.train(finished_copy)


def test_other_batch_is_rejected_before_a_step(finished_copy, monkeypatch):
    folder = records.run_dir(finished_copy)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    monkeypatch.setattr(batch_hash, "hash_again", lambda *_: "other")
    with pytest.raises(ValueError, match="the batch after step 8 differs from"):
        loop.train(finished_copy)


@pytest.fixture
def poisoned(tiny, text_file, built_anew, tmp_path, monkeypatch) -> schema.Run:
    """Return a run whose loss is nan for the batches 3 and 10, on every machine.

    The name of the source determines the order of the rows. A relative name is the same everywhere.
    """
    shutil.copytree(text_file, tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    tiny.data.sources, tiny.data.cache_dir = {"text:texts": 1.0}, str(tmp_path / "data")
    cross_entropy = transformer.cross_entropy

    def poisoned_cross_entropy(logits, targets):
        nats, log_z = cross_entropy(logits, targets)
        return jnp.where(targets[:, 3].sum() % 8 == 1, jnp.nan, nats), log_z

    monkeypatch.setattr(transformer, "cross_entropy", poisoned_cross_entropy)
    tiny.steps, tiny.log_interval, tiny.checkpoint_interval = 24, 4, 4
    return tiny


def test_on_nonfinite_stop_ends_the_run(poisoned):
    with pytest.raises(loop.Diverged):
        loop.train(poisoned)
    assert events(poisoned)[-1] == "nonfinite"


@pytest.mark.slow
def test_on_nonfinite_skip_preserves_the_weights(poisoned):
    poisoned.optim.on_nonfinite = "skip"
    loop.train(poisoned)
    assert records.read_facts(records.run_dir(poisoned))["status"] == "done"
    assert "skipped" in events(poisoned)
    assert np.isfinite(list(losses(poisoned).values())).all() and len(losses(poisoned)) == 6
    assert all(np.isfinite(leaf).all() for leaf in params(poisoned))


@pytest.mark.slow
def test_on_nonfinite_rewind_skips_the_batches(poisoned):
    """The number of rewinds depends on the text. It may exceed MAX_REWINDS."""
    poisoned.optim.on_nonfinite = "rewind"
    try:
        loop.train(poisoned)
    except loop.Diverged:
        pass
    facts = records.read_facts(records.run_dir(poisoned))
    skips = facts["passed_over"]
    assert 1 <= len(skips) <= session.MAX_REWINDS and "rewound" in events(poisoned)
    assert all(skip["batches"] == 4 and skip["from_step"] % 4 == 0 for skip in skips)
    assert facts["attempts"] == 1 + len(skips)
    assert np.isfinite(list(losses(poisoned).values())[:-1]).all()


def test_spike_is_far_above_the_rows_before_it():
    recent = collections.deque(maxlen=20)
    rng = np.random.default_rng(0)
    for step_number in range(40):
        row = {
            "loss": 4 - 0.02 * step_number + 0.01 * rng.normal(),
            "grad_norm": 1 + 0.1 * rng.normal(),
        }
        assert metric_log.find_spikes(recent, row) == []
    assert metric_log.find_spikes(recent, {"loss": 6.0, "grad_norm": 1.0}) == ["loss"]
    assert metric_log.find_spikes(recent, {"loss": 3.2, "grad_norm": 50.0}) == ["grad_norm"]


# The measurement of the peak takes seconds, and no test uses its result.
SCRIPT = """
import json, os, jax
run, cache, devices = json.loads(os.environ["RUN"])
jax.config.update("jax_num_cpu_devices", devices)
jax.config.update("jax_compilation_cache_dir", cache)
from experiments.common import cli
from lm.config import schema; from lm.parallel import mesh; from lm.training import loop

def main():
    mesh.initialize_devices()
    mesh.peak_flops_per_second = lambda *_: 1e9
    loop.train(schema.from_dict(run), lambda row: print(row["step"], flush=True))

cli.run_main(main)
"""


def start(run: schema.Run, cache: pathlib.Path, devices: int = 4) -> subprocess.Popen:
    """Train the run in another process, which prints a line per log step."""
    environment = os.environ | {"RUN": json.dumps([schema.to_dict(run), str(cache), devices])}
    command = [sys.executable, "-c", SCRIPT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)


def wait_and_signal(
    process: subprocess.Popen, rng: np.random.Generator, number: int, max_rows: int
) -> None:
    """Send a signal after a random number of log rows and a random delay; wait for the end."""
    assert process.stdout
    for _ in range(rng.integers(1, max_rows)):
        process.stdout.readline()
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == exit_status(number), errors


def exit_status(number: int) -> int:
    """Return the exit status of a training process after a signal."""
    return -number if number == signal.SIGKILL else 128 + number


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGKILL],
        pytest.param([signal.SIGTERM, signal.SIGKILL, signal.SIGKILL], marks=pytest.mark.slow),
    ],
)
def test_killed_run_resumes_to_the_same_bits(tiny, signals):
    tiny.steps, tiny.checkpoint_interval, tiny.log_interval = 40 + 80 * len(signals), 10, 5
    uninterrupted = dataclasses.replace(tiny, name="uninterrupted", checkpoint_interval=tiny.steps)
    loop.train(uninterrupted)
    rng = np.random.default_rng()
    for number in signals:
        wait_and_signal(start(tiny, conftest.CACHE), rng, number, max_rows=10)
    loop.train(tiny)
    assert_same_bits(tiny, uninterrupted)


def make_immutable(folder: pathlib.Path) -> None:
    """Prevent every change of a folder and its files, also by root."""
    if os.geteuid() or not shutil.which("chattr"):
        pytest.skip("an immutable folder needs root and chattr")
    # Some files are deleted while chattr runs.
    subprocess.run(["chattr", "-R", "+i", folder], stderr=subprocess.DEVNULL)


def repair(folder: pathlib.Path) -> None:
    """Undo make_immutable and fill_disk."""
    subprocess.run(["chattr", "-R", "-i", folder], check=True)
    (folder.parents[1] / "ballast").unlink(missing_ok=True)


def test_save_into_an_immutable_folder_does_not_begin(tiny):
    with checkpoints.CheckpointStore(tiny) as store:
        make_immutable(store.folder)
        try:
            with pytest.raises(OSError, match="Operation not permitted"):
                store.save(1, {"step": jnp.int32(1)}, "hash", [], 0.0)
        finally:
            subprocess.run(["chattr", "-R", "-i", store.folder], check=True)
        store.save(1, {"step": jnp.int32(1)}, "hash", [], 0.0)
        assert store.steps() == [1]


def test_failed_command_does_not_wait_for_threads():
    script = (
        "import threading, time; from experiments.common import cli\n"
        "def main():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    raise OSError(30, 'Read-only file system', 'runs/x')\n"
        "cli.run_main(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 2 and "runs/x: Read-only file system. Saved files" in done.stderr


def run_main(main: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script that defines main() and calls cli.run_main. environment: changed variables."""
    imports = "import sys, threading, types\nfrom experiments.common import cli\n"
    command = [sys.executable, "-c", f"{imports}{main}cli.run_main(main)\n"]
    variables = os.environ | environment
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=variables
    )


def test_characters_beyond_the_encoding_of_the_output_are_replaced():
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_main("def main():\n    print('loss 2 \\xb1 1')\n", **ascii_only)
    assert (done.returncode, done.stdout, done.stderr) == (0, "loss 2 ? 1\n", "")


def test_exceptions_in_callbacks_of_a_library_are_not_printed():
    """Tensorstore calls the hook in the main thread and in its own threads."""
    done = run_main(
        "def main():\n"
        "    error = RuntimeError('Event loop is closed')\n"
        "    arguments = (RuntimeError, error, None)\n"
        "    sys.excepthook(*arguments)\n"
        "    thread = threading.Thread(target=sys.excepthook, args=arguments)\n"
        "    thread.start(); thread.join()\n"
        "    ignored = types.SimpleNamespace(exc_type=RuntimeError, exc_value=error,"
        " exc_traceback=None, err_msg=None, object=None)\n"
        "    sys.unraisablehook(ignored)\n"
        "    raise OSError(27, 'File too large', 'runs/x')\n"
    )
    assert done.returncode == 2 and "runs/x: File too large. Saved files" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_exception_that_ends_a_command_is_printed():
    done = run_main("def main():\n    raise RuntimeError('fault of the code')\n")
    assert done.returncode == 1 and "RuntimeError: fault of the code" in done.stderr


@pytest.mark.parametrize("length", [1, 100_000], ids=["at the end", "during the command"])
def test_output_to_a_full_disk_gives_one_line(length):
    script = (
        "from experiments.common import cli\n"
        f"def main():\n    print('x' * {length})\n"
        "cli.run_main(main)\n"
    )
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=buffered,
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "error: a file or the standard output: No space left on device. " in done.stderr


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", folder])
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill_disk(folder: pathlib.Path) -> None:
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
        flip_bit(max((f for f in arrays if f.is_file()), key=lambda f: f.stat().st_size))


# Each fault is a signal, or a function of the run directory that makes the process fail.
FAULTS = {
    "SIGKILL": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGKILL, a flipped bit": signal.SIGKILL,
    "SIGKILL, on 2 and 4 devices": signal.SIGKILL,
    "full disk": fill_disk,
    "read-only folder": make_immutable,
}
ANY = "any of these"
N_TRIALS = dict.fromkeys(FAULTS, 6) | {"SIGKILL": 14, "SIGTERM": 8, ANY: 18}


@dataclasses.dataclass
class FaultSeries:
    """A run that is interrupted by faults. cache: folder of compiled programs."""

    run: schema.Run
    kind: str
    cache: pathlib.Path
    rng: np.random.Generator
    lost_seconds: float = 0.0
    stop_seconds: list[float] = dataclasses.field(default_factory=list)

    def interrupt(self, trial: int) -> None:
        """Start the run, let a fault end it at a random time, and check its exit status."""
        folder = records.run_dir(self.run)
        fault = self.kind
        if fault == ANY:
            fault = str(self.rng.choice([name for name in FAULTS if "devices" not in name]))
        has_two_devices = "devices" in fault and trial % 2 == 0
        process = start(self.run, self.cache, devices=2 if has_two_devices else 4)
        assert process.stdout
        for _ in range(self.rng.integers(1, 8)):
            process.stdout.readline()
        time.sleep(self.rng.uniform(0, 0.05))
        began = time.monotonic()
        action = FAULTS[fault]
        if callable(action):
            action(folder)
        else:
            process.send_signal(action)
        _, errors = process.communicate(timeout=120)
        if action == signal.SIGTERM:
            self.stop_seconds.append(time.monotonic() - began)
        if callable(action):
            repair(folder)
            assert process.returncode == 2, errors
            assert "repeat the command to continue" in errors, errors
        else:
            assert process.returncode == exit_status(action), errors
        if "flipped" in fault:
            flip_newest(folder)
        assert not records.is_finished(self.run), "the run needs more steps for all trials"
        self.lost_seconds += self._lost_seconds(folder)

    def _lost_seconds(self, folder: pathlib.Path) -> float:
        """Return the training seconds after the newest checkpoint."""
        names = [path.name for path in (folder / "checkpoints").iterdir()]
        newest = max((int(name) for name in names if name.isdigit()), default=0)
        rows = records.load_metrics(folder)
        total = rows[-1]["seconds"] if rows else 0.0
        saved = max((row["seconds"] for row in rows if row["step"] <= newest), default=0.0)
        return total - saved


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_run_survives_every_fault_many_times(tiny, disk, tmp_path):
    """A run per fault is interrupted N_TRIALS times and compared with an uninterrupted run."""
    tiny.dir = str(disk / "runs")
    tiny.steps, tiny.checkpoint_interval, tiny.log_interval = 2400, 20, 10
    uninterrupted = dataclasses.replace(tiny, name="uninterrupted")
    loop.train(uninterrupted)
    seed = int(time.time())
    rng = np.random.default_rng(seed)
    table, stop_seconds = [], []
    for kind, n_trials in N_TRIALS.items():
        run = dataclasses.replace(tiny, name=kind.replace(" ", "-").replace(",", ""))
        series = FaultSeries(run, kind, tmp_path / "cache", rng)
        for trial in range(n_trials):
            series.interrupt(trial)
        process = start(run, tmp_path / "cache")
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
        rows = records.load_metrics(records.run_dir(run))
        assert [row["step"] for row in rows] == list(range(10, 2401, 10))
        if "devices" in kind:
            assert losses(run)[2400] == pytest.approx(losses(uninterrupted)[2400], rel=0.05)
        else:
            assert_same_bits(run, uninterrupted)
        stop_seconds += series.stop_seconds
        n_damaged = events(run).count("damaged")
        table.append((kind, n_trials, series.lost_seconds / n_trials, n_damaged))
    print(f"\nseed {seed}: {sum(line[1] for line in table)} faults, all survived")
    print("fault | trials | training seconds lost per trial | quarantined checkpoints")
    for line in table:
        print("{} | {} | {:.2f} | {}".format(*line))
    median, longest = np.median(stop_seconds), max(stop_seconds)
    print(f"SIGTERM to exit, with a save: median {median:.2f} s, at most {longest:.2f} s")
