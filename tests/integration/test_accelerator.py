"""The accelerator benchmark on CPU, with tiny sizes."""

import json
import os
import sys

import pytest

from experiments.benchmarks import accelerator, accelerator_parts, accelerator_runs
from lm.config import flops


def test_limits_of_all_parts_fit_into_ten_minutes():
    assert sum(accelerator.LIMITS.values()) <= 600


@pytest.mark.parametrize("size", ["125M", "350M", "1B"])
def test_sizes_have_their_number_of_parameters(size):
    run = accelerator_runs.benchmark_run(size, 1)
    n = flops.run_facts(run)["params.total"]
    assert n == pytest.approx(float(size.replace("M", "e6").replace("B", "e9")), rel=0.1)
    assert (run.data.seq_len, run.model.dtype) == (2048, "bfloat16")
    assert not run.data.attend_across_documents


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Measure all parts with tiny sizes in this process."""
    folder = tmp_path_factory.mktemp("accelerator")
    return {
        name: accelerator_parts.measure_part(name, str(folder), True)
        for name in accelerator.LIMITS
        if name not in ("train-350M", "train-1B")
    }


@pytest.mark.slow
def test_every_part_passes_on_cpu(results):
    assert results["device"]["platform"] == "cpu"
    assert results["train-125M"]["mfu"] > 0 and results["train-125M"]["tokens_per_second"] > 0
    assert results["train-125M"]["last_loss"] < results["train-125M"]["first_loss"]
    assert results["train-125M"]["compiled_gib"] > 0 < results["train-125M"]["planned_gib"]
    assert all(case["errors"] for case in results["kernels"]["cases"])
    assert 0 <= results["kernels"]["max_error"] < 0.05  # 0 on processors without AVX-512
    assert results["resume"]["resumed_from"] == 8 and results["resume"]["is_identical"]
    assert results["resume"]["relative_difference"] == 0.0 and results["resume"]["events"] == []
    assert results["evaluation"]["tokens_per_second"] > 0
    assert results["generation"]["tokens_per_second"] > 0
    assert results["vmapped"]["speedup"] > 0
    assert results["torch"].get("reason") or results["torch"]["tokens_per_second"] > 0
    json.dumps(results, allow_nan=False)


@pytest.mark.slow
def test_table_has_a_line_per_part(results):
    parts = {name: {"status": "ok"} | result for name, result in results.items()}
    lines = accelerator.table_lines(parts)
    assert [line["part"] for line in lines] == list(results)
    assert lines[1]["mfu"].endswith("%") and lines[0]["mfu"] == ""
    assert list(accelerator.table_lines({"a": {"status": "failed"}})[0]) == ["part", "status"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_failed_or_hanging_part_does_not_end_the_others(tmp_path, monkeypatch):
    commands = {
        "device": python('print(\'{"platform": "cpu"}\')'),
        "train-125M": python("raise MemoryError('out of memory')"),
        "kernels": python("import os; os.kill(os.getpid(), 9)"),
        "evaluation": python("import time; print('begins', flush=True); time.sleep(600)"),
        "torch": python('print(\'{"status": "skipped", "reason": "no torch"}\')'),
    }
    tiny = {}

    def command(name, folder, is_tiny):
        tiny[name] = is_tiny
        return commands[name]

    monkeypatch.setattr(accelerator, "part_command", command)
    monkeypatch.setitem(accelerator.LIMITS, "evaluation", 0.5)
    results = accelerator.measure_parts([*commands], str(tmp_path), 60.0, False)
    parts = results["parts"]
    statuses = {name: part["status"] for name, part in parts.items()}
    assert statuses == {
        "device": "ok", "train-125M": "failed", "kernels": "failed", "evaluation": "timeout",
        "torch": "skipped",
    }  # fmt: skip
    assert parts["train-125M"]["reason"] == "MemoryError: out of memory"
    assert parts["kernels"]["reason"] == "exit status -9"
    assert tiny == dict.fromkeys(commands, True) | {"device": False}
    assert results["is_tiny"] and results["device"] == {"platform": "cpu"}


def test_no_part_runs_without_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "part_command", lambda *_: python("raise SystemExit(2)"))
    results = accelerator.measure_parts(["device", "kernels"], str(tmp_path), 60.0, False)
    assert [*results["parts"]] == ["device"]
    assert results["parts"]["device"]["status"] == "failed"


def test_parts_after_the_time_limit_are_skipped(tmp_path):
    results = accelerator.measure_parts(["device", "torch"], str(tmp_path), 0.5, True)
    assert {part["status"] for part in results["parts"].values()} == {"skipped"}


def test_selected_parts_include_what_they_need():
    assert accelerator.select_parts(["resume"], []) == ["device", "resume-first", "resume"]
    assert accelerator.select_parts([], ["torch"]) == [*accelerator.LIMITS][:-1]
    with pytest.raises(ValueError, match="part train-2B does not exist: the parts are device,"):
        accelerator.check_parts(["train-2B"])


@pytest.mark.slow
def test_command_of_a_part_prints_one_object(tmp_path):
    command = accelerator.part_command("torch", str(tmp_path), True)
    result = accelerator.run_part(command, 100.0, dict(os.environ))
    assert result["status"] in ("ok", "skipped") and result["seconds"] > 0
