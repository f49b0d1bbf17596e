"""Tasks from synthetic families and files: formats, fixed shots, errors that name the line."""

import gzip
import json
import pathlib

import pytest

from lm.config import schema
from lm.data.sources import synthetic_tasks
from lm.evaluation import contamination, tasks

SHARED = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "tasks"
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
def test_the_fields_of_a_line_say_what_it_asks(tmp_path, kind):
    task = tasks.load_task(f"file:{write(tmp_path / kind, [LINES[kind]])}")
    (example,) = task.examples
    assert example.answers[example.right].strip() == "b"
    assert example.prompts[example.right].strip()
    assert len(example.prompts) == len(example.answers)
    assert example.chance == (1 / len(example.answers) if len(example.answers) > 1 else 0)
    assert task.is_translation == task.generate == (kind == "translation")


def test_the_labels_of_a_file_are_the_choices_of_each_line(tmp_path):
    rows = [{"text": f"t{label}", "label_name": label} for label in ("good", "bad", "good")]
    for example in tasks.load_task(f"file:{write(tmp_path / 'x', rows)}").examples:
        assert example.answers == (" bad", " good") and example.chance == 0.5
        assert example.prompts[0].startswith(f"t{example.answers[example.right].strip()}")


def test_an_answer_is_parted_from_its_prompt_by_one_space(tmp_path):
    rows = [{"context": "a", "continuation": c} for c in ("b", " b", "\nb")]
    rows += [{"context": "a\n", "continuation": "b"}]
    found = tasks.load_task(f"file:{write(tmp_path / 'x', rows)}").examples
    said = {e.prompts[0] + e.answers[0] for e in found}
    assert said == {"a b", "a\nb"}


def test_shots_are_solved_training_examples_and_the_same_again(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(20)]
    folder = write(tmp_path / "x", rows[:5])
    write(folder, rows[5:], "train.jsonl")
    name = f"file:{folder}?shots=2"
    found = tasks.load_task(name).examples
    assert found == tasks.load_task(name).examples
    assert found != tasks.load_task(f"{name}&seed=1").examples
    for example in found:
        *shots, asked = example.prompts[0].split("\n\n")
        assert len(shots) == 2 and asked in {f"q{i}" for i in range(5)}
        assert all(shot in {f"q{i} a{i}" for i in range(5, 20)} for shot in shots)


def test_without_a_training_part_no_example_is_its_own_shot(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(4)]
    for example in tasks.load_task(f"file:{write(tmp_path / 'x', rows)}?shots=3").examples:
        *shots, asked = example.prompts[0].split("\n\n")
        assert len(shots) == 3 and not any(shot.startswith(asked) for shot in shots)


def test_n_examples_are_fewer_of_the_same(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(30)]
    folder = write(tmp_path / "x", rows, "valid.jsonl")
    few, more = (tasks.load_task(f"file:{folder}?n={n}").examples for n in (5, 20))
    assert len(few) == 5 and few == more[:5]


def test_synthetic_examples_are_held_out_and_shots_are_not():
    task = tasks.load_task("reverse?length=4&shots=2&n=30")
    assert len(task.examples) == 30
    for example in task.examples:
        *shots, asked = example.prompts[0].split("\n")
        assert synthetic_tasks.is_heldout_instance(synthetic_tasks.Instance(asked, "", 0))
        for shot in shots:
            prompt, answer = shot.split("=")
            assert not synthetic_tasks.is_heldout_instance(
                synthetic_tasks.Instance(prompt + "=", "", 0)
            )
            assert answer == prompt.split()[1][::-1]
        assert example.answers[0] == asked.split()[1][-2::-1] + "\n"


def test_choices_are_answers_of_others_and_chance_is_one_of_them():
    for example in tasks.load_task("addition?digits=2&choices=4&n=20").examples:
        a, b = example.prompts[0].removeprefix("add ").removesuffix("=").split("+")
        assert len(set(example.answers)) == 4 and example.chance == 0.25
        assert int(example.answers[example.right]) == int(a) + int(b)


@pytest.mark.parametrize(
    "name, words",
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
def test_unknown_names_are_refused_with_near_names(tmp_path, name, words):
    write(tmp_path / "set", [LINES["choice"]])
    with pytest.raises(ValueError) as error:
        tasks.load_task(name.replace("TMP", str(tmp_path)))
    assert words in str(error.value).replace(str(tmp_path), "TMP")


@pytest.mark.parametrize(
    "line, words",
    [
        (b'{"query": ', "line 2: is not JSON"),
        (b"[1]", "line 2: must be a JSON object"),
        (b'{"a": 1}', "line 2: has fields a; a task has one of: query, choices, answer"),
        (b'{"query": "q", "choices": ["a"], "answer": 1}', "line 2: its query, choices, answer"),
        (b'{"context": "q", "continuation": 5}', "line 2: its context, continuation"),
        (b'{"context": "q", "continuation": " "}', "line 2: an empty answer: fill it in"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, line, words):
    write(tmp_path / "set", [LINES["choice"]], "test.jsonl")
    with open(tmp_path / "set" / "test.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError) as error:
        tasks.load_task(f"file:{tmp_path / 'set'}")
    assert words in str(error.value) and "test.jsonl" in str(error.value)


def test_overlap_finds_the_examples_that_training_text_holds(tmp_path):
    long = " ".join(f"word{i}" for i in range(30))
    (tmp_path / "seen.txt").write_text(f"before it {long} and after it\n")
    rows = [{"context": long, "continuation": "x"}, {"context": long[::-1], "continuation": "x"}]
    task = tasks.load_task(f"file:{write(tmp_path / 'set', [*rows, LINES['exact']])}")
    data = schema.Data(sources={f"text:{tmp_path}/seen.txt": 1.0}, heldout_fraction=0.0)
    assert contamination.count_overlaps([task], data)[task.name] == {
        "n_overlap": 1,
        "n_checkable": 2,
    }
    other = schema.Data(sources={f"text:{tmp_path}/seen.txt": 1.0}, heldout_fraction=1.0)
    assert (
        contamination.count_overlaps([task], other)[task.name]["n_overlap"] == 0
    )  # what is held out is not trained on


@pytest.mark.skipif(not SHARED.exists(), reason="the real tasks are not here")
def test_real_sets_load(tmp_path):
    loaded = []
    for folder in sorted(SHARED.iterdir()):
        if (folder / "test.jsonl.gz").exists() and folder.name != "wikitext2":
            loaded.append(tasks.load_task(f"file:{folder}?n=3&shots=1"))
    assert len(loaded) > 20 and all(len(task.examples) == 3 for task in loaded)
