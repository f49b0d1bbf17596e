"""Synthetic tasks and tasks from files: formats, reproducible shots, errors that name the line."""

import gzip
import json
import pathlib

import pytest

from lm.data.sources import synthetic_tasks
from lm.evaluation import tasks

SHARED_TASKS = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "tasks"
LINES = {
    "choice": {"query": "q", "choices": ["a", "b"], "answer": 1},
    "mmlu": {"question": "q", "choices": ["a", "b"], "answer": 1, "subject": "s"},
    "schema": {"context_options": ["x is", "y is"], "continuation": "b", "answer": 1},
    "exact": {"context": "q", "continuation": "b", "aliases": ["c"]},
    "code": {"prompt": "def f():\n", "canonical_solution": "    b"},
    "translation": {"src": "q", "tgt": "b", "other_references": ["c"]},
    "sum": {"question": "q", "solution": "s", "answer": "b"},
    "words": {"instruction": "i", "input": "q", "output": "b"},
    "instruction": {"prompt": "q", "target": "b", "task": "t"},
}


def write(folder, rows, name="test.jsonl.gz"):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder


@pytest.mark.parametrize("kind", LINES)
def test_fields_of_a_line_determine_its_format(tmp_path, kind):
    task = tasks.load_task(f"file:{write(tmp_path / kind, [LINES[kind]])}")
    (example,) = task.examples
    assert example.answers[example.right].strip() == "b"
    assert example.prompts[example.right].strip()
    assert len(example.prompts) == len(example.answers)
    assert example.chance == (1 / len(example.answers) if len(example.answers) > 1 else 0)
    assert task.is_translation == task.generate == (kind == "translation")


def test_labels_of_a_file_are_choices_of_each_line(tmp_path):
    rows = [{"text": f"t{label}", "label_name": label} for label in ("good", "bad", "good")]
    for example in tasks.load_task(f"file:{write(tmp_path / 'x', rows)}").examples:
        assert example.answers == (" bad", " good") and example.chance == 0.5
        assert example.prompts[0].startswith(f"t{example.answers[example.right].strip()}")


def test_one_space_separates_prompt_and_answer(tmp_path):
    rows = [{"context": "a", "continuation": c} for c in ("b", " b", "\nb")]
    rows += [{"context": "a\n", "continuation": "b"}]
    examples = tasks.load_task(f"file:{write(tmp_path / 'x', rows)}").examples
    texts = {example.prompts[0] + example.answers[0] for example in examples}
    assert texts == {"a b", "a\nb"}


def test_shots_are_reproducible_training_examples(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(20)]
    folder = write(tmp_path / "x", rows[:5])
    write(folder, rows[5:], "train.jsonl")
    name = f"file:{folder}?shots=2"
    examples = tasks.load_task(name).examples
    assert examples == tasks.load_task(name).examples
    assert examples != tasks.load_task(f"{name}&seed=1").examples
    for example in examples:
        *shots, question = example.prompts[0].split("\n\n")
        assert len(shots) == 2 and question in {f"q{i}" for i in range(5)}
        assert all(shot in {f"q{i} a{i}" for i in range(5, 20)} for shot in shots)


def test_no_example_is_its_own_shot_without_training_file(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(4)]
    for example in tasks.load_task(f"file:{write(tmp_path / 'x', rows)}?shots=3").examples:
        *shots, question = example.prompts[0].split("\n\n")
        assert len(shots) == 3 and not any(shot.startswith(question) for shot in shots)


def test_smaller_n_selects_a_prefix_of_the_examples(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(30)]
    folder = write(tmp_path / "x", rows, "valid.jsonl")
    five, twenty = (tasks.load_task(f"file:{folder}?n={n}").examples for n in (5, 20))
    assert len(five) == 5 and five == twenty[:5]


def test_synthetic_examples_are_held_out_and_shots_are_not():
    task = tasks.load_task("reverse?length=4&shots=2&n=30")
    assert len(task.examples) == 30
    for example in task.examples:
        *shots, question = example.prompts[0].split("\n")
        assert synthetic_tasks.is_heldout_instance(synthetic_tasks.Instance(question, "", 0))
        for shot in shots:
            prompt, answer = shot.split("=")
            assert not synthetic_tasks.is_heldout_instance(
                synthetic_tasks.Instance(prompt + "=", "", 0)
            )
            assert answer == prompt.split()[1][::-1]
        assert example.answers[0] == question.split()[1][-2::-1] + "\n"


def test_wrong_choices_are_answers_of_other_examples():
    for example in tasks.load_task("addition?digits=2&choices=4&n=20").examples:
        a, b = example.prompts[0].removeprefix("add ").removesuffix("=").split("+")
        assert len(set(example.answers)) == 4 and example.chance == 0.25
        assert int(example.answers[example.right]) == int(a) + int(b)


@pytest.mark.parametrize(
    "name, message",
    [
        ("additoin?digits=2", "task additoin does not exist: did you mean addition"),
        ("copy?shots=x", "shots=x must be a whole number"),
        ("copy?size=3", "size does not exist"),
        ("file:TMP/nowhere", "did you mean file:TMP/set"),
        ("file:TMP", "has no test.jsonl; subfolders that have it: set"),
        ("file:TMP/set?digits=2", "digits does not exist: use one of the fields shots"),
        ("file:TMP/set?split=dev", "has no dev.jsonl"),
    ],
)
def test_unknown_name_is_rejected_with_similar_names(tmp_path, name, message):
    write(tmp_path / "set", [LINES["choice"]])
    with pytest.raises(ValueError) as error:
        tasks.load_task(name.replace("TMP", str(tmp_path)))
    assert message in str(error.value).replace(str(tmp_path), "TMP")


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"query": ', "line 2: is not JSON"),
        (b"[1]", "line 2: must be a JSON object"),
        (b'{"a": 1}', "line 2: has fields a; a task has one of: query, choices, answer"),
        (b'{"query": "q", "choices": ["a"], "answer": 1}', "line 2: its query, choices, answer"),
        (b'{"context": "q", "continuation": 5}', "line 2: its context, continuation"),
        (b'{"context": "q", "continuation": " "}', "line 2: an empty answer: fill it in"),
    ],
)
def test_error_names_the_invalid_line(tmp_path, line, message):
    write(tmp_path / "set", [LINES["choice"]], "test.jsonl")
    with open(tmp_path / "set" / "test.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError) as error:
        tasks.load_task(f"file:{tmp_path / 'set'}")
    assert message in str(error.value) and "test.jsonl" in str(error.value)


@pytest.mark.skipif(not SHARED_TASKS.exists(), reason="the real task files are missing")
def test_real_task_files_load():
    loaded = []
    for folder in sorted(SHARED_TASKS.iterdir()):
        if (folder / "test.jsonl.gz").exists() and folder.name != "wikitext2":
            loaded.append(tasks.load_task(f"file:{folder}?n=3&shots=1"))
    assert len(loaded) > 20 and all(len(task.examples) == 3 for task in loaded)
