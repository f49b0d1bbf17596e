"""Copies for TensorBoard and Weights & Biases."""

import importlib.util
import struct
import sys
import types
from pathlib import Path

import pytest
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2

from lm.config import schema
from lm.runs import records
from lm.training import loop, trackers


def open_trackers(run: schema.Run, first_step: int = 0) -> trackers.Trackers:
    """Open the trackers of the primary process."""
    return trackers.Trackers(run, records.Writer(records.run_dir(run)), first_step)


def read_events(folder: Path) -> list:
    """Return the events of all event files of a folder, in the order of the files."""
    events = []
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:  # each record has a length, its checksum, the event, and its checksum
            (size,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def read_numbers(folder: Path) -> dict[str, dict[int, float]]:
    """Return {tag: {step: number}} of the event files of a folder."""
    numbers = {}
    for event in read_events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                numbers.setdefault(value.tag, {})[event.step] = value.simple_value
    return numbers


def test_columns_have_grouped_names():
    row = {
        "attempt": 1,
        "step": 5,
        "tokens": 640,
        "flops": 9.0,
        "seconds": 3.0,
        "text": "no number",
    }
    row |= {"loss": 2.5, "lr": 0.1, "mfu": 0.5, "clock.save": 1.0, "experts.load": 2.0}
    assert trackers.group_metrics(row) == {
        "train/loss": 2.5,
        "train/lr": 0.1,
        "perf/mfu": 0.5,
        "time/save": 1.0,
        "experts/load": 2.0,
    }


def test_evaluations_have_short_grouped_names():
    row = {"attempt": 1, "step": 5, "loss": 2.5, "loss_se": 0.1, "bits_per_byte": 3.6}
    row |= {"loss.jsonl:my/wiki/*.gz": 2.0, "loss_se.jsonl:my/wiki/*.gz": 0.2, "n_sequences": 64}
    row |= {"task.file:my/tasks/piqa?shots=2.accuracy": 0.6, "task_se.copy.accuracy": 0.1}
    assert trackers.group_evaluation(row) == {
        "eval/loss": 2.5,
        "eval/bits_per_byte": 3.6,
        "eval/loss/wiki": 2.0,
        "tasks/piqa?shots=2/accuracy": 0.6,
    }


def test_trained_run_has_losses_by_steps_and_by_tokens(tiny):
    tiny.eval.interval = 4
    loop.train(tiny)
    folder = records.run_dir(tiny) / "tensorboard"
    by_step, by_token = read_numbers(folder), read_numbers(folder / "by_tokens")
    assert by_step.keys() == by_token.keys() >= {"train/loss", "eval/loss", "perf/mfu"}
    evals = {row["step"]: row["loss"] for row in records.load_evals(records.run_dir(tiny))}
    assert by_step["eval/loss"] == pytest.approx(evals)
    tokens = tiny.data.batch_size * tiny.data.seq_len
    assert list(by_token["train/loss"]) == [step * tokens for step in by_step["train/loss"]]


def test_event_file_has_the_config_as_text_and_hyperparameters(tiny):
    open_trackers(tiny).close("done")
    events = read_events(records.run_dir(tiny) / "tensorboard")
    values = {value.tag: value for event in events for value in event.summary.value}
    (text,) = values["config/text_summary"].tensor.string_val
    assert f"optim.lr = {tiny.optim.lr}" in text.decode()
    content = values["_hparams_/session_start_info"].metadata.plugin_data.content
    assert b"optim.lr" in content and b"data.sources" in content


def test_later_events_of_an_older_session_are_void(tiny):
    for first_step in (0, 40):
        copies = open_trackers(tiny, first_step)
        copies.write_metrics({"step": first_step + 10, "loss": 2.5})
        copies.close("running")
    folder = records.run_dir(tiny) / "tensorboard"
    starts = [e.step for e in read_events(folder) if e.HasField("session_log")]
    tokens = tiny.data.batch_size * tiny.data.seq_len
    token_starts = [e.step for e in read_events(folder / "by_tokens") if e.HasField("session_log")]
    assert (starts, token_starts) == ([0, 40], [0, 40 * tokens])
    assert read_numbers(folder) == {"train/loss": {10: 2.5, 50: 2.5}}


@pytest.mark.parametrize(("seconds", "n_values"), [(-1.0, 1), (1e9, 0)])
def test_events_are_on_disk_after_some_seconds(tiny, monkeypatch, seconds, n_values):
    monkeypatch.setattr(trackers, "FLUSH_SECONDS", seconds)
    copies = open_trackers(tiny)
    copies.write_metrics({"step": 5, "grad_norm": 2.5})
    (file,) = (records.run_dir(tiny) / "tensorboard").glob("events*")
    assert file.read_bytes().count(b"train/grad_norm") == n_values
    copies.close("done")
    assert file.read_bytes().count(b"train/grad_norm") == 1


@pytest.mark.timeout(20)
def test_full_disk_raises_an_error_and_does_not_block(tiny, monkeypatch):
    copies = open_trackers(tiny)

    def raise_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file_writer.EventsWriter, "_write_serialized_event", raise_full)
    with pytest.raises(OSError, match="No space left"):
        for step in range(100):
            copies.write_metrics({"step": step, "loss": 2.5})


def test_other_processes_write_no_copies(tiny):
    folder = records.run_dir(tiny)
    copies = trackers.Trackers(tiny, records.Writer(folder, is_primary=False), 0)
    copies.write_metrics({"step": 5, "loss": 2.5})
    copies.close("done")
    assert not (folder / "tensorboard").exists()


class WandbError(Exception):
    """Error of W&B."""


class WandbUsageError(WandbError):
    """W&B has no login."""


class SimulatedWandb(types.ModuleType):
    """W&B without network: calls of init fail `n_failures` times, and are recorded."""

    errors = types.SimpleNamespace(Error=WandbError, UsageError=WandbUsageError)

    def __init__(self, n_failures: int = 0, has_login: bool = True):
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.n_failures, self.has_login = n_failures, has_login
        self.settings, self.rows, self.metrics, self.summary = [], [], {}, {}
        self.exit_code = None

    def login(self, verify: bool) -> None:
        """Raise UsageError without a login."""
        if not self.has_login:
            raise self.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    def init(self, **settings) -> "SimulatedWandb":
        """Record the settings and return the run."""
        self.settings.append(settings)
        if len(self.settings) <= self.n_failures:
            raise self.errors.Error("Timed out:\n no such host")
        return self

    def teardown(self) -> None:
        """Permit another call of init."""

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        """Record the x axis of a metric."""
        self.metrics[name] = step_metric

    def log(self, row: dict) -> None:
        """Record a row."""
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        """Record the exit code."""
        self.exit_code = exit_code


def use_simulated_wandb(run: schema.Run, monkeypatch, **settings) -> SimulatedWandb:
    """Replace the package wandb, and return its simulation."""
    run.wandb = True
    simulated = SimulatedWandb(**settings)
    monkeypatch.setitem(sys.modules, "wandb", simulated)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return simulated


def test_missing_wandb_package_is_rejected(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tiny.wandb = True
    with pytest.raises(ValueError, match="uv sync --extra wandb"):
        trackers.check_trackers(tiny)
    tiny.wandb = False
    trackers.check_trackers(tiny)


def test_missing_login_is_one_line_and_offline_needs_none(tiny, monkeypatch):
    use_simulated_wandb(tiny, monkeypatch, has_login=False)
    with pytest.raises(ValueError, match="wandb login.*WANDB_MODE=offline") as error:
        trackers.check_trackers(tiny)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check_trackers(tiny)


@pytest.mark.parametrize(("name", "group"), [("sweep/10K", "sweep"), ("single", "single")])
def test_runs_of_a_sweep_are_one_group_of_one_project(tiny, monkeypatch, name, group):
    simulated = use_simulated_wandb(tiny, monkeypatch)
    tiny.name = name
    copies = open_trackers(tiny)
    copies.write_metrics({"step": 5, "tokens": 640, "loss": 2.5, "clock.save": 1.0})
    copies.write_evaluation({"step": 5, "loss": 2.4})
    copies.write_metrics({"step": 3, "loss": 2.6})  # after a rewind
    copies.close("diverged")
    (settings,) = simulated.settings
    assert (settings["project"], settings["group"], settings["name"]) == ("lm-scaling", group, name)
    assert settings["resume"] == "allow" and settings["config"]["optim.lr"] == tiny.optim.lr
    tokens = tiny.data.batch_size * tiny.data.seq_len
    assert simulated.rows == [
        {"step": 5, "tokens": 640, "train/loss": 2.5, "time/save": 1.0},
        {"step": 5, "tokens": 5 * tokens, "eval/loss": 2.4},
        {"step": 3, "tokens": 3 * tokens, "train/loss": 2.6},
    ]
    assert simulated.metrics["eval/*"] == "step"
    assert (simulated.exit_code, simulated.summary) == (1, {"status": "diverged"})


def test_lost_connection_continues_offline_with_a_warning(tiny, monkeypatch):
    simulated = use_simulated_wandb(tiny, monkeypatch, n_failures=1)
    copies = open_trackers(tiny)
    assert "wandb sync" in copies.warning and "\n" not in copies.warning
    assert simulated.settings[1]["mode"] == "offline"
