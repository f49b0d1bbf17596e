"""Text sources: a name such as `jsonl:wiki/*.jsonl.gz` becomes documents in a fixed order.

    for document in documents("jsonl:wiki/*.jsonl.gz?field=body"):
        print(document.name, len(document.text))

    code                     Python's standard library, one document per file (8 MB)
    docs                     English paragraphs of docstrings, one document per file (5 MB)
    text:PATH                a text file or all text files below a folder, split at blank lines
                             about every 16 KB
    jsonl:GLOB[?field=NAME]  JSON Lines, plain, .gz or .zst, one document per line; the default
                             field is "text"
    parquet:GLOB[?field=NAME]                        one document per row
    tfds:NAME[/CONFIG][:VERSION]/SPLIT[?field=NAME]  a prepared TFDS dataset: see tfds_text
    hf:NAME[:CONFIG]/SPLIT[?field=NAME]              streamed from the Hugging Face hub (extra: hf)
    synthetic:machine[?states=N&...]                 language of known entropy: see languages
    synthetic:grammar[?words=N&...]                  language of nested phrases: see languages
    chat:GLOB[?template=NAME&only=TASK,...&cap=N]    JSON Lines of conversations: see chat
    tasks:NAME[?FIELD=LOW-HIGH&...][+NAME...]        training text of synthetic tasks: see families

A new kind of source needs one function here and one row in each of the tables at the end.
"""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

from lm.config import schema
from lm.data.sources import builtin, chat, readers, synthetic_languages, synthetic_tasks, tfds, uri

Document = readers.Document


def open_source(
    source: str, refuse: readers.ErrorHandler = readers.raise_error, start: int = 0
) -> Iterator[Document]:
    """Yield all documents of a source, duplicates included, with newlines normalized to \\n.

    `refuse` is called with one line for each input that is binary, not UTF-8 or malformed. If it
    returns, that JSON line, or the rest of that file, is skipped. `start` is the first part to
    read. Raises ValueError for a missing source in any case.
    """
    for number, read in enumerate(list_shards(source)[start:], start):
        try:
            for document in read(refuse):
                yield document._replace(part=number)
        except ValueError as error:
            refuse(str(error))


def list_shards(source: str) -> list[readers.Shard]:
    """Return the parts of a source, which can be read separately: files or blocks of examples."""
    prefix, rest = _parse(source)
    return READERS[prefix](rest)


def source_fingerprint(source: str) -> list:
    """Return values that change whenever the documents of a source change.

    Built-in text: package versions. Files: path, size and modification time. No text is read, so
    this takes milliseconds.
    """
    prefix, rest = _parse(source)
    if prefix in VERSIONS:
        return list(VERSIONS[prefix]().items())
    if prefix not in FILES:
        return [source]  # generated text depends on its name only; streamed text is assumed fixed
    stats = [(path, path.stat()) for path in FILES[prefix](rest)]
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def source_versions(source: str) -> dict[str, str]:
    """Return the package versions of a built-in source; {} for any other source."""
    return VERSIONS.get(_parse(source)[0], dict)()


def validate_forbidden_tasks(source: str, unseen: str) -> None:
    """Raise ValueError if a source contains one of these tasks or categories.

    `unseen` is a list of names separated by commas.
    """
    prefix, rest = _parse(source)
    if unseen and prefix == "chat":
        forbidden = sorted(
            set(unseen.split(",")) & _tasks_of(rest, repr(source_fingerprint(source)))
        )
        remedy = f"exclude it with without={','.join(forbidden)}"
    elif unseen and prefix == "tasks":
        forbidden = synthetic_tasks.overlapping_tasks(synthetic_tasks.parse_tasks(rest), unseen)
        remedy = "choose other parameter ranges"
    else:
        return
    if forbidden:
        raise ValueError(
            f"data.forbidden_tasks: {source!r} contains {', '.join(forbidden)}: {remedy}"
        )


@functools.lru_cache(maxsize=64)
def _tasks_of(rest: str, fingerprint: str) -> set[str]:
    return chat.chat_task_names(rest)


def _parse(source: str) -> tuple[str, str]:
    """Return the prefix of a source name and the text after it."""
    prefix, _, rest = source.partition(":")
    if prefix not in USAGE:
        raise ValueError("data.sources: " + schema.suggest_names(prefix, list(USAGE)))
    if bool(rest) != (":" in USAGE[prefix]):
        raise ValueError(f"data.sources: {source!r} must have the form {USAGE[prefix]}")
    return prefix, rest


def _split(rest: str) -> tuple[str, str]:
    """Return the path or dataset name, and the value of ?field=NAME (default "text")."""
    name, values = uri.parse_uri(rest, {"field": uri.text("the name of a field")})
    return name, values.get("field", "text")


def _code(rest: str) -> list[readers.Shard]:
    # Code and docs of a file have the same home, so both are held out or both are trained on.
    return [
        lambda refuse: (Document(text, name, home=name) for name, text in builtin.python_code())
    ]


def _docs(rest: str) -> list[readers.Shard]:
    return [
        lambda refuse: (Document(text, name, home=name) for name, text in builtin.python_docs())
    ]


def _jsonl(rest: str) -> list[readers.Shard]:
    return readers.jsonl_files(*_split(rest))


def _parquet(rest: str) -> list[readers.Shard]:
    return readers.parquet_files(*_split(rest))


def _matching(rest: str) -> list[Path]:
    return readers.expand_glob(_split(rest)[0])


def _tfds(rest: str) -> list[readers.Shard]:
    return tfds.tfds_shards(*_split(rest))


def _tfds_files(rest: str) -> list[Path]:
    return tfds.tfds_files(_split(rest)[0])


def _hf(rest: str) -> list[readers.Shard]:
    dataset, field = _split(rest)
    name, _, split = dataset.rpartition("/")
    name, _, config_name = name.partition(":")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(f"hf:{rest} needs: pip install 'lm-scaling[hf]'") from None
    try:
        rows = datasets.load_dataset(name, config_name or None, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"hf:{dataset}: {readers.first_line(str(error))}") from None

    def read(refuse: readers.ErrorHandler) -> Iterator[Document]:
        try:
            for number, row in enumerate(rows):
                if isinstance(row.get(field), str):
                    yield Document(
                        readers.normalize_newlines(row[field]), f"{dataset} row {number}"
                    )
                else:
                    names = ", ".join(row)
                    refuse(
                        f"hf:{dataset} row {number}: has no text in {field!r} but {names}: "
                        f"choose with ?field="
                    )
        except OSError as error:
            readers.raise_error(
                f"hf:{dataset}: reading failed ({readers.first_line(str(error))}): try again"
            )

    return [read]


def _synthetic(rest: str) -> list[readers.Shard]:
    language = synthetic_languages.parse_language(rest)

    def read(block: int, refuse: readers.ErrorHandler) -> Iterator[Document]:
        texts = enumerate(
            synthetic_languages.generate_block(language, block), block * synthetic_languages.BLOCK
        )
        return (Document(text, f"{rest} document {number}") for number, text in texts)

    return [
        functools.partial(read, block)
        for block in range(synthetic_languages.generate_blocks(language))
    ]


def _chat(rest: str) -> list[readers.Shard]:
    chat.parse_chat_source(rest)
    return [
        functools.partial(chat.chat_documents, rest)
    ]  # a single part: `cap` counts over all files


def _tasks(rest: str) -> list[readers.Shard]:
    members = synthetic_tasks.parse_tasks(rest)

    def read(refuse: readers.ErrorHandler) -> Iterator[Document]:
        texts = enumerate(synthetic_tasks.task_documents(members))
        return (Document(text, f"{rest} document {number}") for number, text in texts)

    return [read]


# Prefix -> syntax, shown in errors. A prefix whose syntax has no ":" takes no argument.
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
    "tasks": "tasks:NAME[?FIELD=LOW-HIGH&megabytes=N&seed=N][+NAME...]",
}
# Prefix -> function that returns the parts of a source.
READERS = {
    "code": _code,
    "docs": _docs,
    "text": readers.read_text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "tfds": _tfds,
    "hf": _hf,
    "synthetic": _synthetic,
    "chat": _chat,
    "tasks": _tasks,
}
# Prefix -> package versions of built-in text.
VERSIONS = {"code": builtin.code_versions, "docs": builtin.docs_versions}
# Prefix -> files of a source that is read from disk.
FILES = {
    "text": readers.text_files,
    "jsonl": _matching,
    "parquet": _matching,
    "tfds": _tfds_files,
    "chat": chat.matching_task_names,
}
