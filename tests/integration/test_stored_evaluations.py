"""Results that the command evaluate adds to the records of a run."""

import pytest
from fixtures import commands

from lm.runs import records


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
