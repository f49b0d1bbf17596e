"""Translations of the test sentences of a task by simple methods, cached with a checksum.

    translations.translate_task(task, folder)["word_by_word"]       # text for each example

The methods are:

    copy            the source text
    nearest         the translation of the most similar training source (nearest_translation.py)
    word_by_word    IBM model 1 of the training pairs (word_translation.py)

The last two need training examples. Members of a group of tasks are separate. The texts are stored
in the folder as translations-KEY.json. KEY depends on the texts of the task and of its training
examples.
"""

import hashlib
import json
from pathlib import Path

from lm.data.prepared import block_checksums
from lm.evaluation import tasks
from lm.evaluation.baselines import nearest_translation, word_translation
from lm.runs import json_files

FORMAT = 1  # part of the key; increase it if the translations of equal texts change
SOURCE_SUFFIX = "\n=>"  # end of the prompt of a translation, see example_formats.py
Pair = tuple[str, str]  # source and target


def translate_task(task: tasks.Task, folder: Path | None = None) -> dict[str, list[str]]:
    """Return {method: text for each example} of a task of translations.

    folder: place of the cache; None computes the texts. A damaged file is replaced, after a line on
    stderr.
    """
    texts = {"copy": [_source_text(example) for example in task.examples]}
    train_pairs: dict[str, list[Pair]] = {}
    for example in task.training_examples:
        answer = example.answers[example.right].removesuffix(task.stop).strip()
        train_pairs.setdefault(example.group, []).append((_source_text(example), answer))
    groups = {example.group for example in task.examples}
    if not groups <= train_pairs.keys():
        return texts
    key = _cache_key(task, texts["copy"], train_pairs)
    path = folder / f"translations-{key[:12]}.json" if folder else None
    stored = _load(path, key) if path else None
    if stored is None:
        stored = _translate(task, texts["copy"], train_pairs)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            json_files.write_record(path, {"key": key, "texts": stored})
    return texts | stored


def _translate(
    task: tasks.Task, sources: list[str], train_pairs: dict[str, list[Pair]]
) -> dict[str, list[str]]:
    """Return the texts of the methods that use training pairs. sources: text of each example."""
    texts = {"nearest": [""] * len(sources), "word_by_word": [""] * len(sources)}
    for group, pairs in train_pairs.items():
        rows = [row for row, example in enumerate(task.examples) if example.group == group]
        group_sources = [sources[row] for row in rows]
        train_sources, train_targets = (list(column) for column in zip(*pairs, strict=True))
        nearest = nearest_translation.find_nearest(train_sources, group_sources)
        table = word_translation.fit_table(train_sources, train_targets)
        answers = word_translation.translate_words(table, group_sources)
        for row, index, answer in zip(rows, nearest, answers, strict=True):
            texts["nearest"][row] = train_targets[index]
            texts["word_by_word"][row] = answer
    return texts


def _cache_key(task: tasks.Task, sources: list[str], train_pairs: dict[str, list[Pair]]) -> str:
    """Return the hash of all texts on which the translations depend."""
    groups = [example.group for example in task.examples]
    facts = json.dumps([FORMAT, groups, sources, train_pairs])
    return hashlib.sha256(facts.encode(errors="replace")).hexdigest()


def _load(path: Path, key: str) -> dict[str, list[str]] | None:
    """Return the stored texts, None if the file does not exist or is damaged."""
    if not path.exists():
        return None
    try:
        record = json_files.read_record(path)
        if record["key"] == key:
            return record["texts"]
    except (ValueError, KeyError):
        pass
    block_checksums.print_note(f"note: {path} is damaged: the translations are computed again")
    return None


def _source_text(example: tasks.Example) -> str:
    """Return the text to translate."""
    return example.question.strip().removesuffix(SOURCE_SUFFIX.strip()).strip()
