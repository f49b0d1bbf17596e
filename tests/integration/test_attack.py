"""Quick part of the attack of experiments/benchmarks/attack. The slow part is its command:

uv run python -m experiments.benchmarks.attack --minutes=30
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from experiments.benchmarks.attack import children, outcomes, subjects
from experiments.benchmarks.attack.areas import damage, kills, mutated_configs

SHA = "e3b0"
RESULTS = {"losses": {"1": 4.5, "2": 4.25}, "parameters": SHA}


@pytest.mark.parametrize(
    ("actual", "notes", "kind"),
    [
        (RESULTS, "", "same"),
        (RESULTS, "data/x was prepared again", "repaired"),
        ({"losses": {"1": 4.5, "2": 4.250000001}, "parameters": SHA}, "", "failed"),
        ({"losses": {"1": 4.5, "2": 4.250000001}, "parameters": SHA}, "a note", "failed"),
        ({"losses": {"1": 4.5}, "parameters": SHA}, "metrics.jsonl has no step 2", "excluded"),
        ({"losses": {"1": 4.5}, "parameters": SHA}, "a note about another file", "failed"),
        ({"losses": {"1": 4.5}, "parameters": SHA}, "", "failed"),
        ({"losses": RESULTS["losses"], "parameters": "other"}, "a note", "failed"),
        (None, "a note", "failed"),
    ],
)
def test_only_equal_or_reported_results_are_permitted(actual, notes, kind):
    assert outcomes.judge_results(RESULTS, actual, notes, ["metrics.jsonl"]).kind == kind


@pytest.mark.parametrize(
    ("status", "errors", "kind"),
    [
        (0, "", "same"),
        (0, "data/x was damaged and is prepared again\n", "repaired"),
        (2, "error: runs/10K/facts.json is damaged: restore it\n", "refused"),
        (2, "error: steps=0 must be at least 1\n", "refused"),
        (2, "error: index 3 is out of bounds\n", "failed"),
        (2, "warning: a line\nerror: runs/10K/facts.json is damaged\n", "failed"),
        (2, "facts.json: restored from a\nerror: facts.json is damaged\n", "refused"),
        (2, "other.json: restored from a\nerror: facts.json is damaged\n", "failed"),
        (2, "facts.json: restored from a\nerror: index 3 is out of bounds\n", "failed"),
        (2, "error: facts.json " + "x" * 2000, "failed"),
        (1, "facts.json is damaged", "failed"),
        (0, "Traceback (most recent call last):\n  facts.json\n", "failed"),
        (-9, "", "failed"),
        (None, "", "failed"),
    ],
)
def test_only_one_line_with_the_file_is_a_refusal(status, errors, kind):
    assert outcomes.judge_command(status, "", errors, ["facts.json"]).kind == kind


def test_message_about_a_file_must_name_it():
    message = "runs/10K: steps=0 must be at least 1"
    assert outcomes.judge_message(message, ["facts.json"]).kind == "refused"
    assert outcomes.judge_message(message, ["facts.json"], may_name_field=False).kind == "failed"


def damaged_records(loss: float | None, reason: str, law: float) -> dict:
    """Return the records of two runs. The first is without a result if loss is None."""
    first = {"status": "done", "eval.loss": loss} if loss else {"status": "done", "reason": reason}
    rows = {"attack/10K": first, "attack/12K": {"status": "done", "eval.loss": 3.0}}
    return {"value": {"runs": rows, "laws": {"size": law}}, "notes": ""}


@pytest.mark.parametrize(
    ("loss", "reason", "law", "kind"),
    [
        (4.0, "", 2.0, "same"),
        (4.1, "", 2.0, "failed"),
        (None, "evals.jsonl is damaged", 1.0, "excluded"),
        (None, "evals.jsonl is damaged", 1.5, "failed"),
        (None, "", 1.0, "failed"),
        (None, "unknown", 1.0, "failed"),
    ],
)
def test_excluded_run_is_absent_from_the_law(loss, reason, law, kind):
    expected = damaged_records(4.0, "", 2.0)
    without = {"value": {"runs": {"attack/12K": expected["value"]["runs"]["attack/12K"]}}}
    without["value"]["laws"] = {"size": 1.0}
    result = damaged_records(loss, reason, law)
    outcome = damage.judge_records(expected, without, result, "attack/10K", ["evals.jsonl"])
    assert outcome.kind == kind


def test_every_damage_changes_the_file(tmp_path):
    for kind in damage.DAMAGES:
        file, other = tmp_path / "facts.json", tmp_path / "other"
        other.mkdir(exist_ok=True)
        file.write_text('{"loss": 1.25}')
        (other / "facts.json").write_text('{"loss": 2.25}')
        assert damage.damage(file, kind, random.Random(3), other, "facts.json")
        assert not file.exists() or file.read_text() != '{"loss": 1.25}', kind


def test_files_of_document_hashes_are_damaged(tmp_path):
    files = {"data/a/seen.u64", "data/.b/hashes/000001.u64", "data/c/seen.sqlite"}
    for name in (*files, "data/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    chosen = {damage.choose_file(random.Random(seed), tmp_path) for seed in range(50)}
    assert chosen == files | {"compiled"}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    subjects.write_inputs(tmp_path / "inputs")
    monkeypatch.chdir(tmp_path / "inputs")


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_mutated_configs_are_valid_or_give_one_line(inputs, seed):
    result = mutated_configs.validate_mutations(seed)
    assert not result["failures"], result["failures"]
    assert sum(result["counts"].values()) == mutated_configs.N_CONFIGS


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> subjects.Subjects:
    """Return subjects with a single run."""
    return subjects.build(tmp_path_factory.mktemp("attack"), n_runs=1)


@pytest.mark.slow  # test_faults.py has a quick test of a killed run
def test_killed_training_resumes_to_the_same_bits(attacked):
    folder = attacked.copy("prepared")
    options = children.Options(children.Moment(signal.SIGKILL, 40))
    ended = children.run_command(folder, *kills.TRAIN[1:3], options)
    assert ended.status == -signal.SIGKILL
    assert kills.repeat(folder, kills.TRAIN, attacked) == outcomes.Outcome("same")


@pytest.mark.slow  # test_damaged_records.py and test_session.py have quick tests of damaged files
@pytest.mark.parametrize("kind", ["emptied", "digit"])
def test_damaged_facts_never_change_a_result(attacked, kind):
    outcome = damage.read_damaged_records(
        random.Random(0), f"{subjects.RUN}/facts.json", kind, attacked
    )
    assert outcome.kind in ("same", "repaired", "refused", "excluded"), outcome.detail


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_attack_has_no_failures(tmp_path):
    """40 cases of each area, some of them with many inputs."""
    flags = ["--cases=40", "--minutes=100", f"--folder={tmp_path / 'attack'}"]
    command = [sys.executable, "-m", "experiments.benchmarks.attack", *flags]
    environment = os.environ | {"PYTHONPATH": str(children.REPOSITORY)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    shutil.rmtree(tmp_path / "attack", ignore_errors=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "failed cases: 0" in ended.stdout, json.dumps(ended.stdout)
