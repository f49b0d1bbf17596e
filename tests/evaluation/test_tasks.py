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


def test_invalid_classification_is_rejected(tmp_path):
    rows = [{"text": "x", "label_name": "good"}, {"text": None, "label_name": "good"}]
    with pytest.raises(ValueError, match="all lines have the label good: .* at least two labels"):
        tasks.load_task(f"file:{write(tmp_path / 'x', rows)}")
    write(tmp_path / "x", [{"text": "x", "label_name": "bad"}], "train.jsonl")
    with pytest.raises(ValueError, match="line 2: text is NoneType, not text"):
        tasks.load_task(f"file:{tmp_path / 'x'}")


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


def test_shots_are_lines_of_the_same_task_and_labels(tmp_path):
    test = [
        {"text": f"{t} {i}", "label_name": f"{t}{i % 2}", "task": t} for t in "ab" for i in (0, 1)
    ]
    train = [
        {"text": f"{t} {i}", "label_name": f"{t}{i % 3}", "task": t} for t in "ba" for i in range(9)
    ]
    folder = write(tmp_path / "x", test)
    write(folder, train, "train.jsonl")
    for selection, n in (("", 4), ("&only=a", 2)):
        examples = tasks.load_task(f"file:{folder}?shots=3{selection}").examples
        assert len(examples) == n
        for example in examples:
            *shots, question = example.prompts[0].split("\n\n")
            assert len(shots) == 3 and {shot[0] for shot in shots} == {question[0]}
            assert example.answers == tuple(f" {question[0]}{i}" for i in range(3))


def test_subject_of_a_line_selects_it_and_its_shots(tmp_path):
    rows = [
        LINES["mmlu"] | {"subject": s, "question": f"{s}{i}"} for s in ("law", "art") for i in "12"
    ]
    folder = write(tmp_path / "x", rows)
    write(folder, [row | {"question": row["question"] + "!"} for row in rows], "train.jsonl")
    examples = tasks.load_task(f"file:{folder}?only=art&shots=2").examples
    assert len(examples) == 2 and not any("law" in example.prompts[0] for example in examples)


def test_more_shots_than_training_lines_are_rejected(tmp_path):
    rows = [{"context": f"q{i}", "continuation": f"a{i}"} for i in range(3)]
    folder = write(tmp_path / "x", rows)
    with pytest.raises(ValueError, match="shots=2 needs 2 .* there are 0 .* has no train.jsonl"):
        tasks.load_task(f"file:{folder}?shots=2")
    with pytest.raises(ValueError, match="there are 0 lines in .*test.jsonl.gz"):
        tasks.load_task(f"file:{folder}/test.jsonl.gz?shots=1")
    write(folder, [rows[0], {"context": "q4", "continuation": "a4"}], "train.jsonl")
    # The first training line is a test line, so it is no shot of this line.
    with pytest.raises(ValueError, match=r"shots=2 needs 2 .* there are 1 lines .*: use shots=1"):
        tasks.load_task(f"file:{folder}?shots=2")
    for example in tasks.load_task(f"file:{folder}?shots=1").examples:
        *shots, question = example.prompts[0].split("\n\n")
        assert len(shots) == 1 and not shots[0].startswith(question)


def test_more_shots_than_synthetic_instances_are_rejected():
    with pytest.raises(
        ValueError, match=r"shots=9 needs 9 .* there are 2 instances .* use shots=2"
    ):
        tasks.load_task("brackets?depth=1&shots=9")


def test_minimal_pair_has_no_prompt_and_no_space(tmp_path):
    row = {"sentence_good": "He runs.", "sentence_bad": "He run.", "UID": "agreement"}
    (example,) = tasks.load_task(f"file:{write(tmp_path / 'x', [row])}").examples
    assert example.prompts == ("", "") and example.answers == ("He runs.", "He run.")
    assert example.right == 0 and example.chance == 0.5
    for field, message in (("shots=1", "remove shots"), ("template=chat", "remove template")):
        write(tmp_path / "x", [row], "train.jsonl")
        with pytest.raises(ValueError, match=message):
            tasks.load_task(f"file:{tmp_path / 'x'}?{field}")
    with pytest.raises(ValueError, match="cannot be generated"):
        tasks.load_task(f"file:{tmp_path / 'x'}?generate=1")


def test_pattern_is_a_group_of_folders(tmp_path):
    for name, n in (("b", 2), ("a", 5), ("[c]", 3)):
        rows = [{"context": f"{name}{i}", "continuation": "x"} for i in range(n)]
        write(tmp_path / name, rows)
    (tmp_path / "README.md").write_text("no task")
    (task,) = tasks.load_tasks(f"file:{tmp_path}/*?n=3")
    assert [example.group for example in task.examples] == ["[c]"] * 3 + ["a"] * 3 + ["b"] * 2
    (example, *_) = tasks.load_task(f"file:{tmp_path}/[c]").examples
    assert example.group == "" and example.prompts[0].startswith("[c]")
    with pytest.raises(ValueError, match="no folder matches"):
        tasks.load_task(f"file:{tmp_path}/x*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no test.jsonl"):
        tasks.load_task(f"file:{tmp_path}/*")


def test_name_with_a_space_is_quoted(tmp_path):
    folder = write(tmp_path / "my set", [LINES["choice"]])
    (task, copy) = tasks.load_tasks(f'"file:{folder}?n=1" copy?n=2')
    assert task.name == f"file:{folder}?n=1" and copy.name == "copy?n=2"
    with pytest.raises(ValueError, match="A name with a space needs quotes"):
        tasks.load_tasks(f"file:{folder}")


def test_passage_and_aliases_are_used(tmp_path):
    row = {"question": "Who?", "passage": "Ann met Bob.", "answer": "Ann", "aliases": "Ann, of X"}
    (example,) = tasks.load_task(f"file:{write(tmp_path / 'x', [row])}").examples
    assert example.prompts == ("Ann met Bob.\nQuestion: Who?\nAnswer:",)
    assert example.others == (" Ann, of X",)
    row = LINES["choice"] | {"context": "Ann met Bob."}
    (example,) = tasks.load_task(f"file:{write(tmp_path / 'y', [row])}").examples
    assert example.prompts == ("Ann met Bob.\nq",) * 2
    row = {"src": "Hallo", "tgt": "Hello", "other_references": "Hi there"}
    (example,) = tasks.load_task(f"file:{write(tmp_path / 'z', [row])}").examples
    assert example.others == (" Hi there",)


def test_template_mark_ends_each_answer(tmp_path):
    folder = write(tmp_path / "x", [LINES["translation"]])
    task = tasks.load_task(f"file:{folder}?template=chat")
    assert task.examples[0].answers == ("b\x03",) and task.stop == "\x03"


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
        ("hellaswag", "Built-in tasks are synthetic (copy, reverse"),
        ("hellaswag", "Real tasks are file:FOLDER, pair:FOLDER, and those of"),
        ("copy?lenght=4", "did you mean length? The fields are shots, n, seed, template, generate"),
        ("copy?megabytes=4", "megabytes does not exist"),
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
        (b'{"query": "q", "choices": ["a"], "answer": 1}', "line 2: choices has 1 texts: it mu"),
        (b'{"query": "q", "choices": ["a", "b"], "answer": 2}', "answer=2 must be the index"),
        (b'{"query": "q", "choices": ["a", "b"], "answer": true}', "answer=True must be the index"),
        (b'{"query": "q", "choices": ["a", "b"], "answer": "B"}', "answer='B' must be the index"),
        (b'{"query": "q", "choices": "ab", "answer": 1}', "choices is str, not a list of texts"),
        (b'{"query": "q", "choices": {"a": "b"}, "answer": 0}', "choices is dict, not a list"),
        (b'{"query": null, "choices": ["a", "b"], "answer": 0}', "query is NoneType, not text"),
        (b'{"context": "q", "continuation": 5}', "line 2: continuation is int, not text"),
        (b'{"context": "q", "continuation": "b", "aliases": 3}', "aliases is int, not a list"),
        (b'{"context": "q", "continuation": "b", "aliases": [" "]}', "an empty answer"),
        (b'{"prompt": "q", "target": "b", "passage": "c"}', "passage is not used by the format"),
        (b'{"text": "q", "label_name": ["a"]}', "label_name is list, not text"),
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


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_TASKS.exists(), reason="the real task files are missing")
def test_real_task_files_load():
    loaded = []
    for folder in sorted(SHARED_TASKS.iterdir()):
        if (folder / "test.jsonl.gz").exists() and folder.name != "wikitext2":
            n_shots = int((folder / "train.jsonl.gz").exists())
            loaded.append(tasks.load_task(f"file:{folder}?n=3&shots={n_shots}"))
    assert len(loaded) > 20 and all(len(task.examples) == 3 for task in loaded)


@pytest.mark.skipif(not SHARED_TASKS.exists(), reason="the real task files are missing")
def test_real_minimal_pairs_are_one_group():
    task = tasks.load_task(f"file:{SHARED_TASKS}/blimp/principle_*?n=2")
    assert len({example.group for example in task.examples}) == len(task.examples) / 2 > 3


def test_instances_of_a_synthetic_task_are_limited(monkeypatch):
    """Each example has its own shots. The default number of examples has no n."""
    monkeypatch.setattr(tasks, "MAX_INSTANCES", 30)
    monkeypatch.setattr(tasks, "DEFAULT_SYNTHETIC_EXAMPLES", 12)
    assert len(tasks.load_task("reverse?length=4").examples) == 12
    assert len(tasks.load_task("reverse?length=4&n=10&shots=2").examples) == 10
    with pytest.raises(ValueError, match="n=11 examples with shots=2 have more than 30"):
        tasks.load_task("reverse?length=4&n=11&shots=2")


def test_instruction_is_before_the_shots_and_no_part_of_the_question(tmp_path):
    for name, words in (("train", ("un", "deux", "trois")), ("test", ("quatre",))):
        lines = [json.dumps({"question": f"Say {word}", "answer": word}) for word in words]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (example,) = tasks.load_task(f"file:{tmp_path}?shots=2&instruction=Repeat+this:").examples
    assert example.prompts[0].startswith("Repeat this:\nQuestion: Say ")
    assert example.prompts[0].removeprefix(example.shots) == "Question: Say quatre\nAnswer:"
    assert example.question == "Question: Say quatre\nAnswer:"
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "a", "sentence_bad": "b"}')
    with pytest.raises(ValueError, match="no prompt: remove instruction"):
        tasks.load_task(f"file:{tmp_path}/pairs.jsonl?instruction=Choose")
    with pytest.raises(ValueError, match="instruction does not exist"):
        tasks.load_task("copy?instruction=Repeat")
