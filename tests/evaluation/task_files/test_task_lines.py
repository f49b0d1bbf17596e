"""Versions of the files of tasks: a task is loaded again exactly when one of its files changes."""

import json

import pytest

from lm.data.sources import chat
from lm.evaluation import tasks
from lm.evaluation.task_files import task_lines


def write_rows(path, *answers):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"text {a}", "label_name": a} for a in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "set" / "test.jsonl", "good", "bad")
    write_rows(tmp_path / "set" / "train.jsonl", "good", "bad", "good")
    return tmp_path / "set"


def test_unchanged_tasks_are_loaded_once(folder, monkeypatch):
    loaded = []
    load = tasks.load_task
    monkeypatch.setattr(tasks, "load_task", lambda name: loaded.append(name) or load(name))
    names = f"copy?n=3 file:{folder}?n=1"
    first, second = tasks.load_tasks(names), tasks.load_tasks(names)
    assert loaded == names.split()
    assert first == second
    first.clear()  # The caller owns the list.
    assert len(tasks.load_tasks(names)) == 2


@pytest.mark.parametrize("kind", ["file", "pair"])
@pytest.mark.parametrize("name", ["test.jsonl", "train.jsonl", "deep/test.jsonl"])
def test_each_file_has_a_version(folder, kind, name):
    uri = f"{kind}:{folder}?n=1"
    before = task_lines.file_versions([uri])
    write_rows(folder / name, "good", "bad", "neutral", "neutral")
    after = task_lines.file_versions([uri])
    assert {version[0] for version in set(after) - set(before)} >= {str(folder / name)}
    assert task_lines.file_versions([uri]) == after


def test_versions_of_other_names():
    assert task_lines.file_versions(["copy?length=4", "file:no/such/folder"]) == ()


def test_changed_file_is_loaded_again(folder):
    name = f"file:{folder}"
    assert len(tasks.load_tasks(name)[0].examples) == 2
    write_rows(folder / "test.jsonl", "good", "bad", "bad")
    assert len(tasks.load_tasks(name)[0].examples) == 3
    write_rows(folder / "train.jsonl", "good", "bad", "neutral")
    assert len(tasks.load_tasks(name)[0].examples[0].answers) == 3
    (folder / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no test\.jsonl"):
        tasks.load_tasks(name)


def test_new_member_of_a_group_is_loaded(folder):
    name = f"file:{folder.parent}/s*"
    assert {e.group for e in tasks.load_tasks(name)[0].examples} == {"set"}
    write_rows(folder.parent / "second" / "test.jsonl", "good", "bad")
    assert {e.group for e in tasks.load_tasks(name)[0].examples} == {"set", "second"}


def test_prompt_of_all_choices_is_rendered_once(folder, monkeypatch):
    rendered = []
    render = chat.render_prompt

    def count(template, prompt):
        rendered.append(prompt)
        return render(template, prompt)

    monkeypatch.setattr(chat, "render_prompt", count)
    task = tasks.load_task(f"file:{folder}?template=chat")
    assert len(task.examples[0].prompts) == 2
    assert len(rendered) == len(task.examples) + len(task.training_examples)
