"""Files of minimal pairs in all layouts, and the errors of invalid lines."""

import gzip
import json

import pytest

from lm.evaluation import tasks

GOOD, BAD = "They run.", "They runs."


def blimp_line(number: int, paradigm: str, phenomenon: str) -> str:
    row = {"sentence_good": f"They run {number}.", "sentence_bad": f"They runs {number}."}
    row |= {"field": "syntax", "linguistics_term": phenomenon, "UID": paradigm}
    return json.dumps(row) + "\n"


def test_layouts_of_a_set_give_the_same_paradigms(tmp_path):
    """One folder per paradigm, one file per paradigm, and one file with all paradigms."""
    folders, files, all_lines = tmp_path / "folders", tmp_path / "files", ""
    files.mkdir()
    for paradigm, phenomenon in (("wh_1", "islands"), ("wh_2", "islands"), ("npi", "npi/x")):
        lines = "".join(blimp_line(n, paradigm, phenomenon) for n in range(5))
        all_lines += lines
        (folders / paradigm).mkdir(parents=True)
        with gzip.open(folders / paradigm / "test.jsonl.gz", "wt") as file:
            file.write(lines)
        (files / f"{paradigm}.jsonl").write_text(lines)
    (tmp_path / "all.jsonl").write_text(all_lines)
    loaded = [
        tasks.load_task(f"pair:{tmp_path}/{path}?n=3")
        for path in ("folders", "folders/*", "files", "all.jsonl")
    ]
    groups = sorted({example.group for example in loaded[0].examples})
    assert groups == ["islands/wh_1", "islands/wh_2", "npi-x/npi"]
    assert all(task.is_pairs and task.examples == loaded[0].examples for task in loaded)
    assert len(loaded[0].examples) == 9
    selected = tasks.load_task(f"pair:{tmp_path}/folders?only=wh_2,npi/x")
    assert {example.group for example in selected.examples} == {"islands/wh_2", "npi-x/npi"}
    assert tasks.load_task(f"pair:{tmp_path}/all.jsonl?only=syntax").examples


def test_text_files_have_two_sentences_per_line(tmp_path):
    lines = f"sentence_good\tsentence_bad\n{GOOD}\t{BAD}\n\nA b.\tB a.\n"
    (tmp_path / "agreement.tsv").write_text(lines)
    task = tasks.load_task(f"pair:{tmp_path}")
    assert sorted(example.answers for example in task.examples) == [("A b.", "B a."), (GOOD, BAD)]
    assert {example.group for example in task.examples} == {"agreement"}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("a.tsv", "one sentence\n", "a.tsv line 1: has 1 columns: write two sentences"),
        ("a.jsonl", '{"sentence_good": "A."}\n', "a.jsonl line 1: a pair needs two sentences"),
        ("a.jsonl", '{"sentence_good": "A", "sentence_bad": 3}\n', "line 1: a pair needs two"),
        ("a.jsonl", "[1]\n", "a.jsonl"),
        ("a.jsonl", "\n", "has no pairs: use another folder"),
        ("a.csv", "", "has no file of pairs: use a file that ends in"),
    ],
)
def test_invalid_files_are_rejected_with_their_line(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        tasks.load_task(f"pair:{tmp_path}")


def test_invalid_names_are_rejected(tmp_path):
    (tmp_path / "a#b.tsv").write_text(f"{GOOD}\t{BAD}\n")
    for name, message in (
        (f"pair:{tmp_path}/missing", "does not exist: correct the path"),
        (f"pair:{tmp_path}/*.x", "does not exist: correct the path"),
        (f"pair:{tmp_path}?shots=2", "shots does not exist"),
        (f"pair:{tmp_path}?only=other", "has no pairs of other"),
        (f"pair:{tmp_path}/a#b.tsv", "rename the folder"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.load_task(name)
