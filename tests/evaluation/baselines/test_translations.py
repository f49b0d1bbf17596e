"""Translations by simple methods: of each group, cached and verified."""

import json

import pytest

from lm.evaluation import tasks
from lm.evaluation.baselines import translations

WORDS = {"red": "rot", "house": "Haus", "blue": "blau", "tree": "Baum"}


@pytest.fixture
def task(tmp_path) -> tasks.Task:
    for group in ("b", "a"):
        folder = tmp_path / "sets" / group
        folder.mkdir(parents=True)
        pairs = [(f"{x} {y} {group}", f"{WORDS[x]} {WORDS[y]} {group}!") for x in ("red", "blue")
                 for y in ("house", "tree")]  # fmt: skip
        for name, rows in (("train", pairs), ("test", [(f"red house {group}", "x")])):
            lines = [json.dumps({"src": source, "tgt": target}) for source, target in rows]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return tasks.load_task(f"file:{tmp_path}/sets/*?template=chat")


def test_each_group_is_translated_from_its_own_pairs(task):
    texts = translations.translate_task(task)
    assert texts["copy"] == ["red house a", "red house b"]
    assert texts["nearest"] == ["rot Haus a!", "rot Haus b!"]
    assert [text.split()[:2] for text in texts["word_by_word"]] == [["Rot", "Haus"]] * 2
    without = tasks.Task(task.name, task.examples, is_translation=True)
    assert translations.translate_task(without).keys() == {"copy"}


def test_cache_is_used_and_damaged_translations_are_replaced(task, tmp_path, capsys, monkeypatch):
    texts = translations.translate_task(task, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("translations-*.json")
    path.write_text(path.read_text().replace("rot Haus a!", "rot Haus b!"))
    assert translations.translate_task(task, tmp_path / "cache") == texts
    assert "is damaged: the translations are computed again" in capsys.readouterr().err
    monkeypatch.setattr(translations, "_translate", lambda *_: pytest.fail("cache is not used"))
    assert translations.translate_task(task, tmp_path / "cache") == texts
