"""Tests of tasks of lm-evaluation-harness by name, and of their results in a run's records."""

import functools
import json
import os

import pytest
from fixtures import commands

from lm.evaluation.harness import harness_tasks
from lm.reports import transfer_analysis
from lm.reports.tuned_abilities import pretraining_gain
from lm.runs import records, short_names, task_results

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness")
TASK = """task: counting
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean}}, {{metric: acc_norm, aggregation: mean}}]
"""


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lines = [{"q": f"{n} +1 is", "choices": [f" {n + 1}", " x"], "gold": n % 2} for n in range(9)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "counting.yaml").write_text(TASK.format(file=tmp_path / "d.jsonl"))
    (folder / "absent.yaml").write_text(
        TASK.format(file=tmp_path / "absent.jsonl").replace("counting", "absent")
    )
    group = "group: numbers\ntask: [counting]\naggregate_metric_list: [{metric: acc}]\n"
    (folder / "numbers.yaml").write_text(group)
    return folder


def test_results_of_the_harness_are_in_the_records_of_the_run(task_folder, finished_copy):
    folder = records.run_dir(finished_copy)
    result = commands.run_command(
        task_folder,
        "evaluate",
        f"--run={folder}",
        "--harness=numbers",
        f"--include_path={task_folder}",
        "--limit=4",
        f"--allow_path={task_folder.parent}",
    )
    assert result.returncode == 0, result.stderr
    (row,) = records.load_runs(folder)
    metrics = task_results.task_results(row)["harness:counting?n=4"]
    assert metrics["n"]["value"] == 4 and metrics["accuracy"]["se"] > 0
    assert {"acc_norm", "n_truncated"} < metrics.keys()
    assert metrics["chance"]["value"] == 0.5
    assert task_results.task_value(row, "harness:numbers?n=4", "chance") == 0.5
    assert row["eval.loss"] > 0  # the other results of the step remain
    assert task_results.paradigm_means([row]) == ["harness:numbers?n=4"]
    assert "harness:counting?n=4" in result.stdout and "acc_norm" in result.stdout
    run_without_chat = commands.run_command(
        task_folder,
        "evaluate",
        f"--run={folder}",
        "--harness=counting",
        f"--include_path={task_folder}",
        "--apply_chat_template",
    )
    assert run_without_chat.returncode == 2
    assert "has no chat template" in run_without_chat.stderr


def test_options_of_the_harness_are_in_the_names_of_results(task_folder, finished_copy):
    """A second evaluation with another option does not replace the results of the first one."""
    folder = records.run_dir(finished_copy)
    options = "--harness=counting", f"--include_path={task_folder}"
    permission = f"--allow_path={task_folder.parent}"
    command = "evaluate", f"--run={folder}", *options, permission
    for limit in (3, 5):
        assert not commands.run_command(task_folder, *command, f"--limit={limit}").returncode
    (row,) = records.load_runs(folder)
    for limit in (3, 5):
        assert task_results.task_value(row, f"harness:counting?n={limit}", "n") == limit
    result = commands.run_command(task_folder, *command, "--seq_len=8")
    assert result.returncode == 2 and result.stderr.startswith("error: --seq_len=8 must be")
    both = harness_tasks.HarnessOptions(("a",), None, 5, "", uses_chat_template=True)
    task = both.result_name("a")
    assert task == "harness:a?shots=5&template=chat"
    assert harness_tasks.HarnessOptions(("a",)).result_name("a") == "harness:a"
    assert task_results.task_family(task) == "harness:a"
    assert short_names.shorten_task(task) == task
    assert pretraining_gain.task_label("harness:a?shots=5") == "harness:a (shots=5)"
    assert transfer_analysis.task_base_name(task) == "harness:a"


def test_unknown_tasks_and_missing_data_are_refused_in_one_line(task_folder, monkeypatch):
    """The index of all tasks of the harness takes seconds and is left out."""
    from lm_eval import tasks

    local_manager = functools.partial(tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", local_manager)
    for name, message in (
        ("countin", "is no task of lm-evaluation-harness: did you mean counting"),
        ("absent", "cannot be loaded .*absent.jsonl"),
    ):
        options = harness_tasks.HarnessOptions((name,), include_path=str(task_folder))
        with pytest.raises(ValueError, match=message) as error:
            harness_tasks.load_harness_tasks(options)
        assert "\n" not in str(error.value)
    options = harness_tasks.HarnessOptions(("a",), include_path="/no/tasks")
    with pytest.raises(ValueError, match="--include_path=/no/tasks does not exist"):
        harness_tasks.load_harness_tasks(options)


def test_random_accuracy_is_the_mean_over_examples():
    four, two = dict.fromkeys(range(4), False), {0: True, 1: True}
    with_mutual_information = {0: False, 1: False, 2: True, 3: True}
    assert harness_tasks._random_accuracy({0: four, 1: two}) == (0.25 + 0.5) / 2
    assert harness_tasks._random_accuracy({0: with_mutual_information}) == 0.5
    assert harness_tasks._random_accuracy({0: {0: False}}) == 0  # a text without choices
    assert harness_tasks._random_accuracy({}) == 0
    groups = {"all": ["some", "c"], "some": ["a", "b"]}
    assert harness_tasks._tasks_of_group("all", groups) == ["a", "b", "c"]


def test_metrics_have_the_names_and_errors_of_this_project():
    columns = {
        "alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict-match": 0.2,
        "exact_match_stderr,strict-match": "N/A", "sample_len": 4,
    }  # fmt: skip
    assert harness_tasks._convert_metrics(columns) == {
        "accuracy": {"value": 0.5, "se": 0.1},
        "exact_match_strict-match": {"value": 0.2},
    }
