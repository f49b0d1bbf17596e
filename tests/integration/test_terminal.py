"""Output of the commands on terminals of several widths, and without a terminal."""

import io
import os
import re
import subprocess
import sys

import pytest
from fixtures import made_up_sweep

from experiments import __main__ as command_list
from experiments import status as status_command
from experiments.common import console, progress_view
from lm.runs import json_files, lock, records, status

TASK = {
    "run": "toy/1.6M-a-rather-long-name", "step": "1,000,000 of 2,000,000", "loss": "2.345 ± 0.006",
    "tokens/s": "1,234,567", "host": "node17", "note": "",
}  # fmt: skip


@pytest.fixture
def screen(monkeypatch):
    """Return a function that prints a value on a terminal of a width, or into a file (0)."""

    def show(width: int, print_value) -> str:
        file = io.StringIO()
        is_terminal = width > 0
        target = console.CommandConsole(
            file=file, width=width or None, force_terminal=is_terminal, color_system=None
        )
        monkeypatch.setattr(console, "console", target)
        monkeypatch.setattr(console, "wide_console", lambda: target if is_terminal else wide)
        wide = console.CommandConsole(file=file, width=console.MAX_WIDTH)
        print_value()
        return file.getvalue()

    return show


@pytest.mark.parametrize("width", [20, 40, 60, 80, 0])
def test_narrow_tables_drop_columns_and_keep_numbers(screen, width):
    text = screen(width, lambda: console.table([TASK, TASK], drop_first=["host", "tokens/s"]))
    lines = text.splitlines()
    assert "…" not in text and (not width or max(map(len, lines)) <= width)
    words = " ".join(text.split())
    dropped = re.findall(r"not shown at \d+ columns: (.*)", words)
    shown = [name for name in TASK if name != "note" and name not in ", ".join(dropped)]
    for name in shown[1:]:
        assert TASK[name] in words, (name, text)
    expected = {80: ["host"], 60: ["loss, tokens/s, host"], 0: []}
    assert dropped == expected.get(width, dropped) and "note" not in words.split("shown")[0]


def test_terminal_without_cursor_movement_has_its_own_width(monkeypatch):
    """TERM=dumb is the terminal of editors, which has any width."""
    monkeypatch.setenv("COLUMNS", "60")
    file = io.StringIO()
    target = console.CommandConsole(file=file, force_terminal=True, _environ={"TERM": "dumb"})
    monkeypatch.setattr(console, "console", target)
    monkeypatch.setattr(console, "wide_console", lambda: target)
    console.table([TASK, TASK], drop_first=["host", "tokens/s"])
    lines = file.getvalue().splitlines()
    assert target.width == 60 and max(map(len, lines)) <= 60 and "\x1b" not in file.getvalue()


def test_sentences_are_wrapped_at_spaces_on_a_terminal(screen):
    line = "25K: loss 2.0644 (A), 1.9788 (B), 2 pairs; m in FLOPs 1.65 [1.10, 2.46]"
    text = screen(60, lambda: console.print_sentence(line))
    assert max(map(len, text.splitlines())) <= 60 and text.split() == line.split()
    assert screen(0, lambda: console.print_sentence(line)) == f"{line}\n"


def test_states_of_stopped_runs_are_distinguished(tmp_path):
    stopped = ("lost", "60K stopped by SIGINT at step 5 of 300")
    folder = made_up_sweep.sweep(tmp_path, status={"60K": stopped}, predict=False)
    for size in ("120K", "300K", "700K"):
        records.write_facts(folder / size, status="running", ends_at=None)
    for size in ("300K", "700K"):
        (folder / size / "lock-1-a").write_text(lock._lock_contents(held=True))
    (folder / "700K" / "metrics.jsonl").unlink()
    (folder / "60K" / "checkpoints" / "128").mkdir(parents=True)
    config = json_files.read_object(folder / "30K" / "config.json")
    json_files.write_object(folder / "30K" / "config.json", config | {"steps": 10**6})
    runs = {run["name"].partition("/")[2]: run for run in status.run_statuses(folder)}
    states = {name: run["state"] for name, run in runs.items()}
    assert states == {
        **{"30K": "stopped", "60K": "interrupted", "120K": "crashed", "300K": "running"},
        **{"700K": "compiling", "1.6M": "done"},
    }
    line = console.describe_stop(runs["60K"])
    assert line.startswith("toy/60K: interrupted, resumes at step 128: 60K stopped by SIGINT")
    assert console.describe_stop(runs["1.6M"]) == console.describe_stop(runs["300K"]) == ""


def test_status_fits_80_columns_and_names_the_next_command(tmp_path, screen, monkeypatch):
    reason = ("failed", "RESOURCE_EXHAUSTED: " + "x" * 200 + "\nsecond line")
    folder = made_up_sweep.sweep(tmp_path, status={"60K": reason}, predict=False)
    monkeypatch.setattr(status_command, "_DIR", type("Flag", (), {"value": str(folder)}))
    runs = status.run_statuses(folder)

    def show():
        console.console.print(console.status_view(runs, status.sweep_progress(runs)))
        status_command.print_next_command(runs)

    text = screen(80, show)
    table = text.split("not shown")[0].splitlines()
    assert max(map(len, table)) <= 80 and "…" not in text and "second line" not in text
    assert "toy/60K: failed, resumes at step 0: RESOURCE_EXHAUSTED" in text
    assert "next: uv run python -m experiments.sweep --sweep=configs/sweeps/toy.py" in text


def test_status_suggests_to_continue_the_sweep_of_a_stopped_run(tmp_path, screen, monkeypatch):
    finished = made_up_sweep.sweep(tmp_path / "runs", "first", predict=False)
    stopped = made_up_sweep.sweep(
        tmp_path / "runs", "second", status={"60K": ("failed", "no memory")}, predict=False
    )
    monkeypatch.chdir(tmp_path)

    def suggestion(folder) -> str:
        monkeypatch.setattr(status_command, "_DIR", type("Flag", (), {"value": str(folder)}))
        runs = status.run_statuses(folder)
        text = screen(200, lambda: status_command.print_next_command(runs))
        return text.strip().removeprefix("next: uv run python -m experiments.")

    resume = "sweep --sweep=configs/sweeps/second.py"
    for folder in ("runs", "runs/second", stopped, stopped / "60K", tmp_path):
        assert suggestion(folder) == resume  # runs is the default folder of runs
    assert suggestion(finished) == f"report --dir={finished}"
    assert suggestion(stopped / "30K") == f"report --dir={stopped / '30K'}"
    (tmp_path / "runs").rename(tmp_path / "my runs")
    assert suggestion("my runs") == f"{resume} '--dir=my runs'"
    request = json_files.read_object(tmp_path / "my runs/second/sweep.json")
    request |= {"sweep": "s.py --target_size=4M --max_error=1%"}
    json_files.write_object(tmp_path / "my runs/second/sweep.json", request)
    options = "--sweep=s.py --target_size=4M --max_error=1%"
    assert suggestion("my runs/second") == f"sweep {options} '--dir=my runs'"
    monkeypatch.chdir(tmp_path / "my runs" / "second")
    assert suggestion(".") == f"sweep {options} '--dir={tmp_path}/my runs'"


def test_parallel_workers_show_progress_without_a_terminal(tmp_path, screen):
    folder = made_up_sweep.sweep(tmp_path, missing=("1.6M",), predict=False)

    def show():
        with progress_view.LiveStatus(folder) as live:
            live.update()
            live.update()

    text = screen(0, show)
    assert text.count("runs done: 5 of 6; FLOPs done:") == 1


def test_list_of_commands_is_folded_to_the_terminal(monkeypatch):
    commands = {"a": "Short.", "compare": "A purpose that is much longer than a narrow terminal."}
    monkeypatch.setenv("COLUMNS", "40")
    text = command_list._list_commands(commands)
    listed = text.partition("Commands:")[2].partition("Flags:")[0]
    assert max(map(len, listed.splitlines())) <= 40 and "narrow terminal." in text
    monkeypatch.delenv("COLUMNS")


def test_warning_before_a_restart_is_printed_once():
    code = (
        "import warnings\n"
        "from experiments.common import cli\n"
        "def main():\n"
        "    warnings.warn('first file')\n"
        "    cli.tune_memory()\n"
        "    warnings.warn('second file')\n"
        "cli.run_main(main)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert result.stderr.splitlines() == ["warning: first file", "warning: second file"]
