"""Readers of text sources, each named by a URI such as `jsonl:wiki/*.jsonl.gz`.

    for document in open_source("jsonl:wiki/*.jsonl.gz?field=body"):
        print(document.name, len(document.text))

The documents of a source have a fixed order. Supported URIs:

    code                     Python's standard library, one document per file (8 MB)
    docs                     English paragraphs of docstrings, one document per file (5 MB)
    text:PATH                text files, split at blank lines about every 16 KB
    jsonl:PATH[?field=NAME]  JSON Lines or JSON arrays, one document per object; the default field
                             is "text"
    parquet:PATH[?field=NAME]                        one document per row
    tfds:NAME[/CONFIG][:VERSION]/SPLIT[?field=NAME]  a prepared TFDS dataset: see tfds.py
    hf:NAME[@REVISION][:CONFIG]/SPLIT[?field=NAME]   streamed from the Hugging Face hub (extra: hf)
    synthetic:machine[?states=N&...]                 language of a hidden-state machine:
    synthetic:grammar[?words=N&...]                  or of nested phrases: synthetic_languages.py
    chat:PATH[?template=NAME&only=TASK,...&cap=N]    JSON Lines of conversations: see chat.py
    tasks:NAME[?FIELD=LOW-HIGH&...][+NAME...]        training text of tasks: synthetic_tasks.py
    tokens:PATH[?dtype=TYPE&field=COLUMN]            token files of datatrove, Megatron, llm.c,
                             nanoGPT and datasets, see pretokenized/token_formats.py

A PATH is a file, a folder or a glob with **, and {a,b}. It may be an address of object storage:
gs://, s3:// or hf://datasets/OWNER/NAME/..., see storage/remote_path.py. Text and JSON may be
compressed by gzip, zstd, bzip2 or xz, and is in UTF-8, or in UTF-16 or UTF-32 with a byte order
mark.

A new kind of source needs a reader function in this file and a row in USAGE and READERS. A source
of files also needs a row in FILES, so that a changed file is prepared again.
"""

import functools
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.config import field_names
from lm.data.pretokenized import token_formats
from lm.data.sources import (
    builtin,
    chat,
    readers,
    source_files,
    synthetic_languages,
    synthetic_tasks,
    tfds,
    uri,
)
from lm.data.sources.hub import hub_dataset
from lm.data.storage import remote_path

Document = readers.Document
UNREAD_REASONS = ("broken", "empty")  # records without usable text


def open_source(
    source: str,
    on_error: readers.ErrorHandler = readers.raise_error,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Document]:
    """Yield all documents of the shards start to stop - 1 of a source, duplicates included.

    Newlines are normalized to \\n. `on_error` is called with a one-line message for each input
    that is binary, not UTF-8 or malformed. If it returns, exactly that line, row or piece of text
    is skipped, or the remaining shard if it cannot be read. A record without text gives a document
    without text. Raises ValueError for a missing source, also if `on_error` returns.
    """
    for number, shard in enumerate(list_shards(source)[start:stop], start):
        yield from _read_part(shard, number, on_error)


def sample_source(
    source: str,
    n_bytes: float,
    is_used: Callable[[Document], bool],
    on_error: readers.ErrorHandler = readers.raise_error,
) -> Iterator[Document]:
    """Yield documents of all parts of a source, about n_bytes of text, or all if it has less.

    is_used: documents for which it is false are skipped. Each part gives about the same number of
    bytes, from its beginning. The order of the parts is a hash, so that a sample of fewer parts is
    not of the first ones.
    """
    shards = list_shards(source)
    order = sorted(range(len(shards)), key=lambda number: hashlib.sha256(b"%d" % number).digest())
    n_sampled = 0
    n_read: dict[int, int] = {}  # part -> number of its documents that the first pass reads
    for is_first_pass in (True, False):
        for position, number in enumerate(order):
            share = (n_bytes - n_sampled) / (len(order) - position if is_first_pass else 1)
            n_part_bytes, start = 0, n_read.get(number, 0)
            if share <= 0:
                return
            all_documents = enumerate(_read_part(shards[number], number, on_error), 1)
            for count, document in itertools.islice(all_documents, start, None):
                if is_used(document):
                    yield document
                    n_part_bytes += len(document.text.encode(errors="replace"))
                n_read[number] = count
                if n_part_bytes >= share:
                    break
            else:
                n_read.pop(number, None)
            n_sampled += n_part_bytes
        order = [number for number in order if number in n_read]


def _read_part(
    shard: readers.Shard, number: int, on_error: readers.ErrorHandler
) -> Iterator[Document]:
    """Yield the documents of a shard, with its number."""
    try:
        for document in shard(on_error):
            yield document._replace(part=number)
    except ValueError as error:
        on_error(str(error))


def list_shards(source: str) -> list[readers.Shard]:
    """Return readers of the shards of a source: files, or blocks of examples."""
    prefix, argument = _parse_source(source)
    return READERS[prefix](argument)


def source_fingerprint(source: str, cache: Path | None = None) -> list:
    """Return values that change whenever the documents of a source change.

    The values of built-in text are package versions. The values of files are path, size and
    modification time. No text is read, so a call takes milliseconds. cache: local folder of all
    prepared text; with it, the values of a dataset of the hub are its name and its commit.
    """
    prefix, argument = _parse_source(source)
    if prefix in VERSIONS:
        return list(VERSIONS[prefix]().items())
    if prefix == "hf":
        return hub_dataset.hub_fingerprint(source, _split_field(argument)[0], cache)
    if prefix not in FILES:
        # Generated text depends only on the source name.
        return [source]
    paths = FILES[prefix](argument).paths
    return [(str(path), *remote_path.content_version(path)) for path in paths]


def omitted_files(source: str) -> dict[str, int]:
    """Return {suffix or reason: number} of the files in a source's folders that are not read."""
    prefix, argument = _parse_source(source)
    return FILES[prefix](argument).omitted if prefix in FILES else {}


def print_omissions(source: str, files: dict[str, int], dropped: dict[str, int]) -> None:
    """Print the numbers of files and records that are not in the corpus of a source.

    files: {suffix or reason: number}. dropped: {reason: number of documents}. Documents that a
    filter drops are not printed.
    """
    records = {reason: n for reason, n in dropped.items() if reason in UNREAD_REASONS}
    parts = [f"{source_files.format_counts(files)} files"] if files else []
    parts += [f"{source_files.format_counts(records)} records"] if records else []
    if parts:
        print(f"{source}: left out {'; '.join(parts)}", file=sys.stderr, flush=True)


def source_versions(source: str, fingerprint: list) -> dict[str, str]:
    """Return {package: version} of a built-in source, or {"commit": hash} of a dataset of the hub.

    fingerprint: that of the source. Other sources have {}.
    """
    prefix = _parse_source(source)[0]
    if prefix == "hf":
        return hub_dataset.recorded_commit(fingerprint)
    return VERSIONS.get(prefix, dict)()


def validate_forbidden_tasks(source: str, forbidden: str) -> None:
    """Raise ValueError if a source contains a forbidden task or category.

    `forbidden` is a list of names separated by commas. Only chat: and tasks: sources can fail.
    """
    prefix, argument = _parse_source(source)
    if forbidden and prefix == "chat":
        names = _chat_task_names(argument, repr(source_fingerprint(source)))
        conflicts = sorted(set(forbidden.split(",")) & names)
        remedy = f"exclude it with without={','.join(conflicts)}"
    elif forbidden and prefix == "tasks":
        tasks = synthetic_tasks.parse_tasks(argument)
        conflicts = synthetic_tasks.overlapping_tasks(tasks, forbidden)
        remedy = "choose other parameter ranges"
    else:
        return
    if conflicts:
        raise ValueError(
            f"data.forbidden_tasks: {source!r} contains {', '.join(conflicts)}: {remedy}"
        )


@functools.lru_cache(maxsize=64)
def _chat_task_names(argument: str, fingerprint: str) -> set[str]:
    """Return the task names of a chat source. A new fingerprint reads the files again."""
    return chat.chat_task_names(argument)


def _parse_source(source: str) -> tuple[str, str]:
    """Return the prefix of a source name and its argument: the text after the first colon."""
    prefix, _, argument = source.partition(":")
    if prefix not in USAGE:
        raise ValueError("data.sources: " + field_names.suggest_names(prefix, list(USAGE)))
    if bool(argument) != (":" in USAGE[prefix]):
        raise ValueError(f"data.sources: {source!r} must have the form {USAGE[prefix]}")
    return prefix, argument


def _split_field(argument: str) -> tuple[str, str]:
    """Return the path or dataset name, and the value of ?field=NAME (default "text")."""
    name, values = uri.parse_uri(argument, {"field": uri.text("the name of a field")})
    return name, values.get("field", "text")


def _code(argument: str) -> list[readers.Shard]:
    # Code and docs of a file have the same home, so both are held out or both are trained on.
    return [
        lambda on_error: (Document(text, name, home=name) for name, text in builtin.python_code())
    ]


def _docs(argument: str) -> list[readers.Shard]:
    return [
        lambda on_error: (Document(text, name, home=name) for name, text in builtin.python_docs())
    ]


def _jsonl(argument: str) -> list[readers.Shard]:
    return readers.jsonl_files(*_split_field(argument))


def _parquet(argument: str) -> list[readers.Shard]:
    return readers.read_parquet(*_split_field(argument))


def _tfds(argument: str) -> list[readers.Shard]:
    return tfds.tfds_shards(*_split_field(argument))


def _hf(argument: str) -> list[readers.Shard]:
    return hub_dataset.hub_shards(*_split_field(argument))


def _synthetic(argument: str) -> list[readers.Shard]:
    """Return one shard per block of documents of a synthetic language."""
    language = synthetic_languages.parse_language(argument)

    def read(block: int, on_error: readers.ErrorHandler) -> Iterator[Document]:
        first = block * synthetic_languages.BLOCK
        texts = enumerate(synthetic_languages.generate_block(language, block), first)
        return (Document(text, f"{argument} document {number}") for number, text in texts)

    n_blocks = synthetic_languages.count_blocks(language)
    return [functools.partial(read, block) for block in range(n_blocks)]


def _chat(argument: str) -> list[readers.Shard]:
    """Return one shard of all conversations, because `cap` counts over all files."""
    chat.parse_chat_source(argument)
    return [functools.partial(chat.chat_documents, argument)]


def _tasks(argument: str) -> list[readers.Shard]:
    """Return one shard of the training documents of synthetic tasks."""
    tasks = synthetic_tasks.parse_tasks(argument)

    def read(on_error: readers.ErrorHandler) -> Iterator[Document]:
        texts = enumerate(synthetic_tasks.task_documents(tasks))
        return (Document(text, f"{argument} document {number}") for number, text in texts)

    return [read]


def _tokens(argument: str) -> list[readers.Shard]:
    """Return one shard per token file. Its reader raises ValueError: a token file has no text."""

    def read(on_error: readers.ErrorHandler) -> Iterator[Document]:
        raise ValueError(
            f"tokens:{argument} has tokens and no text: name the text from which they were made"
        )

    return [read for _ in token_formats.read_layouts(argument)]


# Prefix -> syntax, shown in errors. A prefix whose syntax has no ":" takes no argument.
USAGE = {
    "code": "code",
    "docs": "docs",
    "text": "text:PATH",
    "jsonl": "jsonl:PATH[?field=NAME]",
    "parquet": "parquet:PATH[?field=NAME]",
    "tfds": "tfds:NAME[/CONFIG][:VERSION]/SPLIT[?field=NAME]",
    "hf": "hf:NAME[@REVISION][:CONFIG]/SPLIT[?field=NAME]",
    "synthetic": "synthetic:machine[?states=N&...] or synthetic:grammar[?words=N&...]",
    "chat": "chat:PATH[?template=NAME&instruction=TEXT&only=TASK&without=TASK&cap=N&shots=N]",
    "tasks": "tasks:NAME[?FIELD=LOW-HIGH&megabytes=N&seed=N][+NAME...]",
    "tokens": "tokens:PATH[?dtype=TYPE&field=COLUMN]",
}
# Prefix -> function of the argument that returns the shards of a source.
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
    "tokens": _tokens,
}
# Prefix -> function that returns the package versions of built-in text.
VERSIONS = {"code": builtin.code_versions, "docs": builtin.docs_versions}
# Prefix -> function of the argument that returns the files of a source on disk.
FILES = {
    "text": readers.text_files,
    "jsonl": lambda argument: readers.json_files("jsonl", _split_field(argument)[0]),
    "parquet": lambda argument: readers.parquet_files(_split_field(argument)[0]),
    "tfds": lambda argument: tfds.tfds_files(_split_field(argument)[0]),
    "chat": chat.chat_files,
    "tokens": token_formats.list_token_files,
}
