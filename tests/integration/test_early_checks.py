"""Commands reject invalid values before they compute anything."""

import pytest
from fixtures import commands

from lm.runs import records

BASE = "from lm.config import schema\n\ndef get_config():\n    return schema.Run()\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules=standard,foo"], "--rules=standard,foo must be one or more of standard, mup, c"),
        (["--rules="], "--rules= must be one or more of standard"),
        (["--widths=", "--depths="], "--widths and --depths are both empty"),
        (["--out=base.py/x"], "base.py"),
    ],
)
def test_coordinate_check_measures_only_valid_runs(tmp_path, arguments, message):
    (tmp_path / "base.py").write_text(BASE)
    result = commands.run_command(tmp_path, "coordinate_check", "--config=base.py", *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stderr.startswith("error: ") and not result.stdout


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("answers", "is a folder: name a file in it"),
        ("nowhere/a.jsonl", "is in a folder that does not exist: create the folder"),
        ("gs://bucket/a.jsonl", "must be a local file"),
    ],
)
def test_output_files_are_checked_before_the_model_is_loaded(
    tmp_path, finished_run, name, problem, monkeypatch
):
    (tmp_path / "answers").mkdir()
    monkeypatch.setattr("lm.training.loaded_model.restore_model", None)
    run = f"--run={records.run_dir(finished_run)}"
    for command, *arguments in (
        ("evaluate", "--tasks=copy?generate=1", f"--answers={name}"),
        ("sample", f"--feedback_file={name}", "--prompt=a"),
    ):
        result = commands.run_command(tmp_path, command, run, *arguments)
        assert result.returncode == 2 and f"={name} {problem}" in result.stderr, result.stderr
