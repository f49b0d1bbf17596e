import importlib.util
import sys
import types

import pytest

from lm import mirrors, records


def test_every_number_of_a_row_is_in_the_event_file(tiny):
    from tensorboardX import SummaryWriter  # it is there: the file below was written by it

    assert SummaryWriter
    write, close = mirrors.follow(tiny, 0)
    write({"attempt": 1, "step": 5, "loss": 2.5, "words": "no number"})
    close()
    (file,) = (records.folder(tiny) / "tensorboard").glob("events*")
    content = file.read_bytes()
    assert b"loss" in content and b"attempt" in content and b"words" not in content


def test_a_viewer_that_is_not_installed_is_refused_with_the_extra(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tiny.wandb = True
    with pytest.raises(ValueError, match="uv sync --extra wandb"):
        mirrors.check(tiny)
    tiny.wandb = False
    mirrors.check(tiny)


def test_weights_and_biases_gets_each_row_at_its_step(tiny, monkeypatch):
    seen = []
    cloud = types.SimpleNamespace(
        log=lambda row, step: seen.append((step, row)), finish=lambda: seen.append("finished")
    )
    fake = types.ModuleType("wandb")
    fake.__dict__["init"] = lambda **kwargs: seen.append(kwargs["name"]) or cloud
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tiny.wandb = True
    write, close = mirrors.follow(tiny, 0)
    write({"step": 5, "loss": 2.5})
    close()
    assert seen == [tiny.name, (5, {"loss": 2.5}), "finished"]
