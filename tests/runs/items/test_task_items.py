"""Tests of the points of task examples in tasks.npz."""

import numpy as np
import pytest

from lm.runs import records
from lm.runs.items import task_items


def make_items(task="t", n=20, seed=0, groups=None, documents=None):
    """Return items with random points."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 2, n).astype(float)
    documents = documents or [str(i) for i in range(n)]
    return task_items.make_items(task, points, documents, groups or [""] * n, "digest")


def write(folder, items):
    """Write the items of a run, and return its row with the accuracies."""
    records.Writer(folder).write_file(task_items.FILE, task_items.encode_items(items))
    return {"dir": str(folder)} | {f"eval.task.{i.task}.accuracy": i.accuracy for i in items}


def test_items_are_read_as_written_in_few_bytes(tmp_path):
    halves = make_items("ties", 3)._replace(points=np.array([0.5, 1.0, 1 / 3]))
    shared = make_items("shared", 4, documents=["a", "a", "b", "b"])
    many = make_items("many", 8000)
    row = write(tmp_path, [many, halves, shared])
    loaded = task_items.load_items(row)
    for item in (many, halves, shared):
        np.testing.assert_allclose(loaded[item.task].points, item.points, atol=1e-7)
        assert (loaded[item.task].documents == item.documents).all()
    assert (tmp_path / task_items.FILE).stat().st_size < 5000


def test_parts_of_minimal_pairs_are_loaded_by_their_names(tmp_path):
    groups = ["island/wh"] * 8 + ["island/adjunct"] * 6 + ["binding/c"] * 6
    items = make_items("pair:x", groups=groups)
    means = [items.points[:8].mean(), items.points[8:14].mean(), items.points[14:].mean()]
    assert items.accuracy == pytest.approx(np.mean(means))
    row = write(tmp_path, [items])
    row |= {"eval.task.pair:x#island.accuracy": np.mean(means[:2])}
    row |= {"eval.task.pair:x#island/wh.accuracy": means[0]}
    loaded = task_items.load_items(row)
    assert set(loaded) == {"pair:x", "pair:x#island", "pair:x#island/wh"}
    assert len(loaded["pair:x#island"].points) == 14


def test_items_of_another_evaluation_are_left_out(tmp_path):
    row = write(tmp_path, [make_items("a"), make_items("b", seed=1)])
    row["eval.task.b.accuracy"] += 0.05
    assert set(task_items.load_items(row)) == {"a"}
    assert task_items.load_items({"dir": str(tmp_path / "none")}) == {}


def test_damaged_items_give_a_warning(tmp_path):
    row = write(tmp_path, [make_items("a")])
    path = tmp_path / task_items.FILE
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="damaged and not used"):
        assert task_items.load_items(row) == {}


def test_later_tasks_extend_the_items(tmp_path):
    write(tmp_path, [make_items("a"), make_items("b")])
    task_items.extend_items(tmp_path, [make_items("b", seed=3), make_items("c")])
    items = task_items.read_items(tmp_path / task_items.FILE)
    assert list(items) == ["a", "b", "c"]
    assert (items["b"].points == make_items("b", seed=3).points).all()
