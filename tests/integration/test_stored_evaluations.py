"""Results that the command evaluate adds to the records of a run."""

import pytest
from fixtures import commands

from lm.runs import records
from lm.runs.items import task_items


@pytest.fixture
def evaluated(finished_copy, tmp_path):
    """Return a function that evaluates a task of a finished run, and the folder of the run."""
    folder = records.run_dir(finished_copy)
    permission = f"--allow_path={finished_copy.data.cache_dir}"

    def evaluate(*arguments: str):
        options = "--tasks=copy?n=6", "--keep", permission
        return commands.run_command(tmp_path, "evaluate", f"--run={folder}", *options, *arguments)

    return evaluate, folder


def test_results_of_another_context_are_not_stored(evaluated):
    evaluate, folder = evaluated
    stored = (folder / "evals.jsonl").read_text()
    result = evaluate("--seq_len=24")
    assert result.returncode == 2 and result.stderr.startswith(
        "error: --seq_len=24 must be data.se"
    )
    assert (folder / "evals.jsonl").read_text() == stored


def test_items_of_the_final_evaluation_remain(evaluated):
    """The results of an earlier checkpoint are stored at its step."""
    evaluate, folder = evaluated
    first = evaluate()
    assert first.returncode == 0, first.stderr
    (row,) = records.load_runs(folder)
    final_items = (folder / task_items.FILE).read_bytes()
    assert "copy?n=6" in task_items.load_items(row)
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    result = evaluate(f"--step={steps[0]}")
    assert result.returncode == 0, result.stderr
    assert f"step {steps[0]} is not the final evaluation" in result.stdout
    assert (folder / task_items.FILE).read_bytes() == final_items
    by_step = {row["step"]: row for row in records.load_evals(folder)}
    assert "task.copy?n=6.accuracy" in by_step[steps[0]]
