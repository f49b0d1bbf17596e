import importlib.util
import struct
import sys
import types

import pytest
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2

from lm.runs import records
from lm.training import metric_log


def test_every_number_of_a_row_is_in_the_event_file(tiny):
    write, close = metric_log.open_writers(tiny, 0)
    write({"attempt": 1, "step": 5, "loss": 2.5, "words": "no number"})
    close()
    (file,) = (records.run_dir(tiny) / "tensorboard").glob("events*")
    content = file.read_bytes()
    assert b"loss" in content and b"attempt" in content and b"words" not in content


def test_a_viewer_finds_the_steps_and_where_an_attempt_began(tiny):
    write, close = metric_log.open_writers(tiny, 40)
    write({"step": 50, "loss": 2.5})
    close()
    (file,) = (records.run_dir(tiny) / "tensorboard").glob("events*")
    data, found = file.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    assert (found[1].step, found[1].session_log.status) == (40, event_pb2.SessionLog.START)
    (value,) = found[2].summary.value
    assert (found[2].step, value.tag, value.simple_value) == (50, "loss", 2.5)


@pytest.mark.timeout(20)
def test_a_full_disk_is_an_error_and_no_standstill(tiny, monkeypatch):
    write, _ = metric_log.open_writers(tiny, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file_writer.EventsWriter, "_write_serialized_event", full)
    with pytest.raises(OSError, match="No space left"):
        for step in range(100):
            write({"step": step, "loss": 2.5})


def test_a_viewer_that_is_not_installed_is_refused_with_the_extra(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tiny.wandb = True
    with pytest.raises(ValueError, match="uv sync --extra wandb"):
        metric_log.check_writers(tiny)
    tiny.wandb = False
    metric_log.check_writers(tiny)


def test_weights_and_biases_gets_each_row_at_its_step(tiny, monkeypatch):
    seen = []
    cloud = types.SimpleNamespace(
        log=lambda row, step: seen.append((step, row)), finish=lambda: seen.append("finished")
    )
    fake = types.ModuleType("wandb")
    fake.__dict__["init"] = lambda **kwargs: seen.append(kwargs["name"]) or cloud
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tiny.wandb = True
    write, close = metric_log.open_writers(tiny, 0)
    write({"step": 5, "loss": 2.5})
    close()
    assert seen == [tiny.name, (5, {"loss": 2.5}), "finished"]
