"""Task examples that occur in the training text are counted."""

import json

import pytest

from lm.config import schema
from lm.evaluation import contamination, tasks

LONG_TEXT = " ".join(f"word{i}" for i in range(30))


@pytest.fixture
def task(tmp_path) -> tasks.Task:
    """One example that is in the training text, one that is not, and one that is too short."""
    contexts = (LONG_TEXT, LONG_TEXT[::-1], "q")
    rows = [{"context": context, "continuation": "x"} for context in contexts]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.load_task(f"file:{tmp_path}")


@pytest.fixture
def sources(tmp_path) -> dict[str, float]:
    (tmp_path / "training.txt").write_text(f"before it {LONG_TEXT} and after it\n")
    return {f"text:{tmp_path}/training.txt": 1.0}


def test_examples_in_training_text_are_counted(task, sources):
    data = schema.Data(sources=sources, heldout_fraction=0.0)
    overlaps = contamination.count_overlaps([task], data)
    assert overlaps[task.name] == {"n_overlap": 1, "n_checkable": 2}


def test_heldout_documents_are_not_training_text(task, sources):
    data = schema.Data(sources=sources, heldout_fraction=1.0)
    assert contamination.count_overlaps([task], data)[task.name]["n_overlap"] == 0


def test_source_of_weight_zero_is_no_training_text(task, sources):
    data = schema.Data(sources=dict.fromkeys(sources, 0.0), heldout_fraction=0.0)
    assert contamination.count_overlaps([task], data)[task.name]["n_overlap"] == 0


def test_shots_are_no_part_of_an_example(tmp_path, sources):
    rows = [{"context": f"{i} {LONG_TEXT[::-1]}", "continuation": "x"} for i in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shot = {"context": LONG_TEXT, "continuation": "x"}
    (tmp_path / "train.jsonl").write_text(json.dumps(shot))
    data = schema.Data(sources=sources, heldout_fraction=0.0)
    for template in ("", "question"):
        task = tasks.load_task(f"file:{tmp_path}?shots=1&template={template}")
        assert LONG_TEXT in task.examples[0].prompts[0]
        overlaps = contamination.count_overlaps([task], data)
        assert overlaps[task.name] == {"n_overlap": 0, "n_checkable": 4}
