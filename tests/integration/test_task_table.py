"""The printed tables of task results."""

import re

from experiments.common import console
from lm.runs import task_results

ROW = {
    "step": 100,
    "loss": 2.5,
    "task.copy?length=4.accuracy": 0.25,
    "task_se.copy?length=4.accuracy": 0.0433,
    "task.copy?length=4.n": 100.0,
    "task.copy?length=4.chance": 0.042,
    "task.copy?length=4.n_truncated": 3.0,
    "task.copy?length=4.n_skipped": 0.0,
    "task.file:my/v1.5/en_de.accuracy": 0.0,
    "task.file:my/v1.5/en_de.n": 20.0,
    "task.file:my/v1.5/en_de.edit_distance": 0.5,
    "task.file:my/v1.5/en_de.said_exactly": 0.125,
    "task.file:my/v1.5/en_de.bleu": 16.5,
    "task_se.file:my/v1.5/en_de.bleu": 1.25,
    "task.file:my/v1.5/en_de.chrf": 40.0,
    "task.file:my/too_long.n": 0.0,
    "task.file:my/too_long.n_skipped": 7.0,
}


def test_task_table_shows_the_records_of_a_run(capsys):
    console.tasks(task_results.task_results(ROW))
    first, second = capsys.readouterr().out.split("generated answers of task")
    assert re.search(r"copy.length=4 +100 +0.042 +0.250 ± 0.043 +3 +0\n", first)
    assert re.search(r"too_long +0 +7\n", first)  # nothing was evaluated
    assert "BLEU" not in first and "chrF" in second and "F1" not in second
    assert re.search(r"en_de +0.125 ± 0.000 +0.500 ± 0.000 +40.000 .* 16.500 ± 1.250\n", second)


def test_run_without_tasks_prints_no_task_table(capsys):
    console.tasks(task_results.task_results({"step": 100, "loss": 2.5}))
    assert capsys.readouterr().out == ""


def test_long_task_name_loses_its_folders(capsys):
    results = {"accuracy": {"value": 0.5, "se": 0.1}}
    folder = "/home/somebody/a/folder/with/a/long/name"
    names = [f"file:{folder}/piqa?shots=2", f"file:{folder}/blimp/*?n=10", "apply?" + "x" * 50]
    console.tasks(dict.fromkeys(names, results))
    titles = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert titles == ["piqa?shots=2", "blimp", "apply?" + "x" * 27 + "..."]


def test_table_of_minimal_pairs_has_phenomena_and_baselines(capsys):
    values = {"accuracy": {"value": 0.75, "se": 0.1}, "baseline_bigram": {"value": 0.5}}
    mean = values | {"n_paradigms": {"value": 2}}
    results = {"pair:my/blimp?n=9": mean, "pair:my/blimp?n=9#islands": mean}
    results |= {f"pair:my/blimp?n=9#islands/{number}": values for number in (1, 2)}
    console.tasks(results)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["blimp", "blimp/islands"]
    assert "bigram 0.5" in lines[1] and lines[3] == "not shown: 2 paradigms of minimal pairs"
