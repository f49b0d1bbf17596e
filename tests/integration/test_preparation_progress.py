"""Progress of the preparation of text, in a terminal and in a log file."""

import io

import pytest
from rich.console import Console

from experiments.common import console, progress_view


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by a list whose first item is the time, and start without lines."""
    now = [100.0]
    monkeypatch.setattr(progress_view.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress_view, "_line_times", {})
    return now


def capture(monkeypatch, is_terminal):
    text = io.StringIO()
    view = Console(file=text, force_terminal=is_terminal, width=80)
    monkeypatch.setattr(console, "console", view)
    return text


def test_log_has_a_line_every_few_seconds(monkeypatch, clock):
    text = capture(monkeypatch, is_terminal=False)
    for second in range(0, 26):
        clock[0] = 100.0 + second
        progress_view.preparing("books", 1000 * second, 10**6 * second, second / 50)
    assert text.getvalue().splitlines() == [
        "preparing books: 20%, 10,000 documents, 10.0 MB",
        "preparing books: 40%, 20,000 documents, 20.0 MB",
    ]


def test_terminal_has_one_line(monkeypatch, clock):
    text = capture(monkeypatch, is_terminal=True)
    for share in (0.25, 0.5):
        progress_view.preparing("books" * 30, 5, 10, share)
    lines = text.getvalue().split("\r")
    assert "25%  5 documents, 0.0 MB  books" in lines[0]
    assert "50%  5 documents" in lines[1]
    assert "\n" not in text.getvalue()
