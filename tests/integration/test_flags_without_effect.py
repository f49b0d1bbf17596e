"""Flags that have no effect together, and negated flags of fields, are rejected."""

import pytest
from fixtures import commands

NEGATED = [
    ("--noconfig.wandb=true", "--noconfig.wandb takes no value: write --config.wandb=true"),
    ("--noconfig.steps=7", "--noconfig.steps takes no value: write --config.steps=7"),
    ("--noconfig.steps", "--noconfig.steps needs a field that is true or false"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "flag"),
    [
        ("report", ["--verify=.", "--dir=a"], "dir"),
        ("report", ["--verify=.", "--watch"], "watch"),
        ("report", ["--verify=loss.png", "--archive_to=b"], "archive_to"),
        ("report", ["--archive_to=b", "--watch"], "watch"),
        ("report", ["--archive_to=b", "--watts_per_device=9"], "watts_per_device"),
        ("report", ["--megabytes=9"], "megabytes"),
        ("status", ["--json", "--watch"], "watch"),
        ("compare", ["a", "b", "--seeds=3"], "seeds"),
        ("compare", ["a", "b", "--time_budget=9s"], "time_budget"),
        ("compare", ["a", "b", "--verify=c"], "a"),
        ("compare", ["--verify=c", "--decide"], "decide"),
        ("plan", ["--advise=a", "--sweep=s.py"], "sweep"),
        ("plan", ["--advise=a", "--config=c.py"], "config"),
        ("plan", ["--advise=a", "--config.steps=9"], "config.FIELD"),
        ("plan", ["--advise=a", "--target=gpu:h100:8"], "target"),
        ("plan", ["--advise=a", "--search=3"], "search"),
    ],
)
def test_flags_without_effect_are_rejected(tmp_path, name, arguments, flag):
    result = commands.run_command(tmp_path, name, *arguments)
    assert result.returncode == 2 and result.stderr.startswith(f"error: --{flag} has "), (
        result.stderr
    )
    assert result.stderr.endswith(": remove it\n") and "effect" in result.stderr


@pytest.mark.parametrize(("argument", "message"), NEGATED)
def test_negated_field_has_no_value_and_is_a_bool(tmp_path, argument, message):
    (tmp_path / "base.py").write_text(
        "from lm.config import schema\n\ndef get_config():\n    return schema.Run()\n"
    )
    result = commands.run_command(tmp_path, "plan", "--config=base.py", argument)
    assert result.returncode == 2 and message in result.stderr
