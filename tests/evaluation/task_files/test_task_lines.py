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
    before = task_lines.file_versions(uri)
    write_rows(folder / name, "good", "bad", "neutral", "neutral")
    after = task_lines.file_versions(uri)
    assert {version[0] for version in set(after) - set(before)} >= {str(folder / name)}
    assert task_lines.file_versions(uri) == after


def test_versions_of_other_names():
    assert task_lines.file_versions("copy?length=4") == ()
    assert task_lines.file_versions("file:no/such/folder") == ()


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


def write_instructions(folder):
    rows = [
        *({"prompt": f"judge {i}", "target": t, "task": "judge"} for i, t in enumerate("yny")),
        *({"prompt": f"name {i}", "target": t, "task": "name"} for i, t in enumerate("abcd")),
        *({"prompt": f"same {i}", "target": "x", "task": "same"} for i in range(2)),
        {"prompt": "any", "target": "y", "other_references": ["n"], "task": "judge"},
        {"prompt": "other", "target": "d", "other_references": ["a"], "task": "name"},
        {"query": "q", "choices": ["a", "b", "c", "d", "e"], "answer": 1, "task": "given"},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "test.jsonl").write_text(text)
    return folder


def test_answers_of_a_task_become_its_choices(tmp_path):
    folder = write_instructions(tmp_path / "set")
    task = tasks.load_task(f"file:{folder}?choices=3")
    by_prompt = {example.question.strip(): example for example in task.examples}
    # All answers to "any" are correct, so it is left out.
    assert sorted(by_prompt) == ["judge 0", "judge 1", "judge 2", "q"]
    judge = by_prompt["judge 1"]
    assert [answer.strip() for answer in judge.answers] == ["n", "y"]
    assert (judge.right, judge.chance, judge.has_fixed_choices) == (0, 0.5, True)
    assert judge.prompts == (judge.prompts[0],) * 2
    assert len(by_prompt["q"].answers) == 5  # given choices are kept
    more = tasks.load_task(f"file:{folder}?choices=4&only=name&template=chat")
    # Another correct answer is no wrong candidate.
    assert [len(example.answers) for example in more.examples].count(3) == 1
    assert [len(example.answers) for example in more.examples].count(4) == 4
    assert all(answer.endswith(more.stop) for answer in more.examples[0].answers)


@pytest.mark.parametrize(
    "query, message",
    [
        ("choices=2&only=name", "selects no example.*2 to 2 different.*smallest number is 4"),
        ("choices=9&only=same", "selects no example.*smallest number is 1"),
        ("choices=1", "choices=1 must be"),
    ],
)
def test_choices_without_examples(tmp_path, query, message):
    folder = write_instructions(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        tasks.load_task(f"file:{folder}?{query}")
