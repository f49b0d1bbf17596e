"""Files of minimal pairs: two sentences per line, the grammatical sentence first.

    examples = pair_files.load_examples("pair:my/blimp", Path("my/blimp"), {"n": 200})
    examples[0].answers                     # (grammatical, ungrammatical)
    examples[0].group                       # "island_effects/wh_island"

A file contains JSON objects or lines of text:

    {"sentence_good": "They run.", "sentence_bad": "They runs.", ...}      .jsonl
    They run.<tab>They runs.                                               .tsv, .txt

JSON objects may have the fields of BLiMP (Warstadt et al. 2020, arXiv:1912.00582). UID names the
paradigm of a pair and linguistics_term its phenomenon. Without UID, the paradigm is the name of the
file, or of the folder that contains test.jsonl. A folder contains test.jsonl, or one file or one
such folder per paradigm. All files may be compressed with gzip or zstd. Pairs have no prompt. A
sentence is a document, so it begins without a space. lm-evaluation-harness 0.4 scores the sentence
after a space, which the field space=1 of the task name selects.
"""

import dataclasses
import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.sources import example_formats, readers, source_files

SPLITS = ("test", "valid")
COMPRESSION = ("", ".gz", ".zst")
JSON_SUFFIXES = tuple(f".jsonl{suffix}" for suffix in COMPRESSION)
TEXT_SUFFIXES = tuple(f"{kind}{suffix}" for kind in (".tsv", ".txt") for suffix in COMPRESSION)
SENTENCES = ("sentence_good", "sentence_bad")
PARADIGM, PHENOMENON = "UID", "linguistics_term"
SELECTORS = (PARADIGM, PHENOMENON, "field")  # fields whose values `only` may name


def load_examples(
    name: str, path: Path, values: Mapping[str, Any]
) -> list[example_formats.TaskExample]:
    """Return the selected pairs of a file, a folder or a pattern, as examples without prompt.

    name: task name for error messages. values: fields of the task name. n is the largest number of
    pairs per paradigm, seed selects them, split names the files, and only names paradigms,
    phenomena or fields. space=1 puts a space before each sentence. The group of an example is
    PHENOMENON/PARADIGM, or PARADIGM if the pairs have no phenomenon. Raises ValueError for a line
    without two sentences, and without any pair.
    """
    by_group: dict[str, list[example_formats.TaskExample]] = {}
    files = _list_files(name, path, values.get("split", ""))
    for paradigm, file in files:
        for example in _read_file(file, paradigm, values.get("only")):
            by_group.setdefault(example.group, []).append(example)
    if not by_group:
        only = values.get("only")
        selection = f" of {','.join(sorted(only))}" if only else ""
        raise ValueError(f"task {name}: {path} has no pairs{selection}: use another folder")
    selected = []
    for group in sorted(by_group):
        pairs = by_group[group]
        order = np.random.default_rng((values.get("seed", 0), 3)).permutation(len(pairs))
        selected += [pairs[i] for i in order[: values.get("n") or None]]
    if not values.get("space"):
        return selected
    return [
        dataclasses.replace(pair, answers=tuple(f" {text}" for text in pair.answers))
        for pair in selected
    ]


def _list_files(name: str, path: Path, split: str) -> list[tuple[str, Path]]:
    """Return (paradigm, file) of each file of a path, in the order of their names.

    Raises ValueError if the path does not exist or has no file of pairs.
    """
    if not path.exists() and glob.has_magic(str(path)):
        members = [Path(match) for match in sorted(glob.glob(str(path)))]
    elif path.is_dir() and _split_file(path, split) is None:
        members = sorted(path.iterdir())
    else:
        members = [path]
    files = []
    for member in members:
        file = _split_file(member, split) if member.is_dir() else member
        if file is not None and file.is_file() and _suffix(file):
            paradigm = member.name if member.is_dir() else member.name.removesuffix(_suffix(file))
            files.append((paradigm, file))
    if not files:
        if not path.exists():
            raise ValueError(f"task {name}: {path} does not exist: correct the path")
        raise ValueError(
            f"task {name}: {path} has no file of pairs: use a file that ends in .jsonl, .tsv or"
            " .txt, also with .gz or .zst, or a folder of such files"
        )
    return files


def _split_file(folder: Path, split: str) -> Path | None:
    """Return the file of a split in a folder, None without such a file."""
    for stem in (split,) if split else SPLITS:
        for suffix in (*JSON_SUFFIXES, *TEXT_SUFFIXES):
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def _suffix(file: Path) -> str:
    """Return the suffix of a file of pairs, "" for any other file."""
    suffixes = (*JSON_SUFFIXES, *TEXT_SUFFIXES)
    return next((suffix for suffix in suffixes if file.name.endswith(suffix)), "")


def _read_file(
    file: Path, paradigm: str, only: frozenset[str] | None
) -> Iterator[example_formats.TaskExample]:
    """Yield the pairs of a file. paradigm: name of the paradigm of pairs without UID."""
    rows = readers.read_json_lines(file) if _suffix(file) in JSON_SUFFIXES else _text_rows(file)
    for where, row in rows:
        if only and not only & {paradigm, *(str(row.get(field)) for field in SELECTORS)}:
            continue
        values = [row.get(field) for field in SENTENCES]
        sentences = tuple(text for text in values if isinstance(text, str) and text.strip())
        if len(sentences) < len(SENTENCES):
            raise ValueError(
                f"{where}: a pair needs two sentences, {' and '.join(SENTENCES)}: correct the line"
            )
        parts = [_part_name(row.get(PHENOMENON)), _part_name(row.get(PARADIGM)) or paradigm]
        yield example_formats.TaskExample(
            ("", ""), sentences, 0, 0.5, group="/".join(filter(None, parts))
        )


def _part_name(value: object) -> str:
    """Return a name of a paradigm or phenomenon without characters that separate names."""
    return re.sub(r"[/#?&\s]+", "-", str(value)).strip("-") if value is not None else ""


def _text_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield ("FILE line N", row) of each line of text: two sentences with a tab between them."""
    for number, line in enumerate(source_files.read_lines(file), 1):
        text = line.decode("utf-8").strip("\r\n\ufeff")
        sentences = text.split("\t")
        if text.strip() and not (number == 1 and sentences == list(SENTENCES)):
            where = f"{file} line {number}"
            if len(sentences) != len(SENTENCES):
                raise ValueError(
                    f"{where}: has {len(sentences)} columns: write two sentences with a tab between"
                    " them"
                )
            yield where, dict(zip(SENTENCES, sentences, strict=True))
