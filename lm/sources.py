"""Sources of text: a name becomes documents, in an order that is the same everywhere.

    for document in documents("jsonl:wiki/*.jsonl.gz?field=body"):
        print(document.name, len(document.text))

    code                     Python's standard library, a file a document (8 MB)
    docs                     the English of docstrings, a file a document (5 MB)
    text:PATH                a text file, or all below a folder, cut at blank lines every 16 KB
    jsonl:GLOB[?field=NAME]  JSON Lines, plain, .gz or .zst: a line a document; the field is "text"
    parquet:GLOB[?field=NAME]                        a row a document
    tfds:NAME[/CONFIG][:VERSION]/SPLIT[?field=NAME]  a prepared dataset of TFDS: see tfds_text
    hf:NAME[:CONFIG]/SPLIT[?field=NAME]              streamed from the Hugging Face hub (extra: hf)
    synthetic:machine[?states=N&...]                 a language of known entropy: see languages
    synthetic:grammar[?words=N&...]                  another, of phrases within phrases
    chat:GLOB[?template=NAME&only=TASK,...&cap=N]    JSON Lines of prompts and answers: see chat
    tasks:NAME[?DIAL=LOW-HIGH&...][+NAME...]         synthetic tasks to learn from: see families

A new kind of source is a function here and a row in each of the tables at the end.
"""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

from lm import chat, config, embedded, families, files, languages, tfds_text

Document = files.Document


def documents(source: str, refuse: files.Refuse = files.stop, start: int = 0) -> Iterator[Document]:
    """All documents of a source, newlines as \\n, duplicates included, one at a time.

    refuse: called with the file and the place of what is binary, not UTF-8 or malformed. Where it
    returns, that line of JSON is left out, or what is left of that file. start: the part to begin
    with. ValueError for a source that is missing, whatever `refuse` does.
    """
    for number, read in enumerate(parts(source)[start:], start):
        try:
            for document in read(refuse):
                yield document._replace(part=number)
        except ValueError as error:
            refuse(str(error))


def parts(source: str) -> list[files.Part]:
    """What a source is read in, each by itself: files, or so many examples; one if it is small."""
    prefix, rest = _parse(source)
    return READERS[prefix](rest)


def fingerprint(source: str) -> list:
    """Differs when the documents of a source do, and takes milliseconds: nothing is read.

    Versions for what is embedded; path, size and time of each file for the user's own text.
    """
    prefix, rest = _parse(source)
    if prefix in VERSIONS:
        return list(VERSIONS[prefix]().items())
    if prefix not in FILES:
        return [source]  # a language is its name; of what is streamed no more is known
    stats = [(path, path.stat()) for path in FILES[prefix](rest)]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def versions(source: str) -> dict[str, str]:
    """Of what an embedded source is taken from; {} for the user's own text."""
    return VERSIONS.get(_parse(source)[0], dict)()


def check_unseen(source: str, unseen: str) -> None:
    """ValueError if a source holds one of these tasks or categories, with commas between."""
    prefix, rest = _parse(source)
    if unseen and prefix == "chat":
        held = sorted(set(unseen.split(",")) & _tasks_of(rest, repr(fingerprint(source))))
        way = f"leave it out with without={','.join(held)}"
    elif unseen and prefix == "tasks":
        held, way = families.shared(families.parse_all(rest), unseen), "turn its dials elsewhere"
    else:
        return
    if held:
        raise ValueError(f"data.unseen: {source!r} holds {', '.join(held)}: {way}")


@functools.lru_cache(maxsize=64)
def _tasks_of(rest: str, fingerprint: str) -> set[str]:
    return chat.names(rest)


def _parse(source: str) -> tuple[str, str]:
    prefix, _, rest = source.partition(":")
    if prefix not in USAGE:
        raise ValueError("data.sources: " + config.unknown(prefix, list(USAGE)))
    if bool(rest) != (":" in USAGE[prefix]) or source.endswith("?field="):
        raise ValueError(f"data.sources: {source!r} must read {USAGE[prefix]}")
    return prefix, rest


def _code(rest: str) -> list[files.Part]:
    # The home is the file for code and docs alike: what one holds out, the other must not train on.
    return [lambda refuse: (Document(text, name, home=name) for name, text in embedded.code())]


def _docs(rest: str) -> list[files.Part]:
    return [lambda refuse: (Document(text, name, home=name) for name, text in embedded.docs())]


def _jsonl(rest: str) -> list[files.Part]:
    return files.jsonl(*_split(rest))


def _parquet(rest: str) -> list[files.Part]:
    return files.parquet(*_split(rest))


def _matching(rest: str) -> list[Path]:
    return files.matching(_split(rest)[0])


def _tfds(rest: str) -> list[files.Part]:
    return tfds_text.parts(*_split(rest))


def _tfds_files(rest: str) -> list[Path]:
    return tfds_text.files(_split(rest)[0])


def _hf(rest: str) -> list[files.Part]:
    where, field = _split(rest)
    name, _, split = where.rpartition("/")
    name, _, config_name = name.partition(":")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(f"hf:{rest} needs: pip install 'lm-scaling[hf]'") from None
    try:
        rows = datasets.load_dataset(name, config_name or None, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"hf:{where}: {files.one_line(str(error))}") from None

    def read(refuse: files.Refuse) -> Iterator[Document]:
        try:
            for number, row in enumerate(rows):
                if isinstance(row.get(field), str):
                    yield Document(files.newlines(row[field]), f"{where} row {number}")
                else:
                    names = ", ".join(row)
                    refuse(
                        f"hf:{where} row {number}: has no text in {field!r} but {names}: "
                        f"choose with ?field="
                    )
        except OSError as error:
            files.stop(f"hf:{where}: cannot be read to its end ({files.one_line(str(error))})")

    return [read]


def _synthetic(rest: str) -> list[files.Part]:
    language = languages.parse(rest)

    def read(block: int, refuse: files.Refuse) -> Iterator[Document]:
        texts = enumerate(languages.block(language, block), block * languages.BLOCK)
        return (Document(text, f"{rest} document {number}") for number, text in texts)

    return [functools.partial(read, block) for block in range(languages.blocks(language))]


def _chat(rest: str) -> list[files.Part]:
    chat.parse(rest)
    return [functools.partial(chat.documents, rest)]  # one: a cap counts over all files


def _tasks(rest: str) -> list[files.Part]:
    members = families.parse_all(rest)

    def read(refuse: files.Refuse) -> Iterator[Document]:
        texts = enumerate(families.documents(members))
        return (Document(text, f"{rest} document {number}") for number, text in texts)

    return [read]


def _split(rest: str) -> tuple[str, str]:
    """What stands before ?field=NAME, and the name."""
    where, _, field = rest.partition("?field=")
    return where, field or "text"


USAGE = {
    "code": "code",
    "docs": "docs",
    "text": "text:PATH",
    "jsonl": "jsonl:GLOB[?field=NAME]",
    "parquet": "parquet:GLOB[?field=NAME]",
    "tfds": "tfds:NAME[/CONFIG][:VERSION]/SPLIT[?field=NAME]",
    "hf": "hf:NAME[:CONFIG]/SPLIT[?field=NAME]",
    "synthetic": "synthetic:machine[?states=N&...] or synthetic:grammar[?words=N&...]",
    "chat": "chat:GLOB[?template=NAME&only=TASK,...&without=TASK,...&cap=N&shots=N]",
    "tasks": "tasks:NAME[?DIAL=LOW-HIGH&megabytes=N&seed=N][+NAME...]",
}
READERS = {
    "code": _code,
    "docs": _docs,
    "text": files.text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "tfds": _tfds,
    "hf": _hf,
    "synthetic": _synthetic,
    "chat": _chat,
    "tasks": _tasks,
}
VERSIONS = {"code": embedded.code_versions, "docs": embedded.docs_versions}
FILES = {
    "text": files.of_text,
    "jsonl": _matching,
    "parquet": _matching,
    "tfds": _tfds_files,
    "chat": chat.matching,
}
