"""Short names of sources and tasks, for tables and figures.

short_names.shorten_sources(["jsonl:my/wiki/*.jsonl.gz"])        # {"jsonl:...": "wiki"}
short_names.shorten_task("file:my/tasks/piqa?shots=2&n=100")     # "piqa?shots=2"

Sources and tasks are named as in the config and in the columns of records.load_runs.
"""

import re
from collections.abc import Sequence

FILE_SOURCES = ("text", "jsonl", "parquet", "chat", "file")  # prefixes of sources that are paths


def shorten_sources(sources: Sequence[str]) -> dict[str, str]:
    """Return {source: short name}. The short name of a file is its last folder or file name.

    If two short names are equal, they get as many folders as needed to differ. Sources that are not
    files have their full names.
    """
    components = {source: _path_components(source) for source in sources}
    depths = dict.fromkeys(sources, 1)
    while True:
        names = {
            source: "/".join(parts[-depths[source] :]) if parts else source
            for source, parts in components.items()
        }
        ambiguous = [
            source
            for source, name in names.items()
            if list(names.values()).count(name) > 1 and depths[source] < len(components[source])
        ]
        if not ambiguous:
            break
        for source in ambiguous:
            depths[source] += 1
    are_unique = len(set(names.values())) == len(names)
    return names if are_unique else {source: source for source in sources}


def shorten_task(task: str) -> str:
    """Return a short name of a task: file:my/tasks/piqa?shots=2&n=100 -> piqa?shots=2.

    The short name omits the options n and seed, and the folders of a file.
    """
    source, _, query = task.partition("?")
    options = [text for text in query.split("&") if not text.startswith(("n=", "seed="))]
    name = shorten_sources([source])[source] if source.startswith("file:") else source
    suffix = "&".join(options)
    return f"{name}?{suffix}" if suffix else name


def _path_components(source: str) -> list[str]:
    """Return the folders and the file of a source, without suffix; empty if it is not a file.

    Example: jsonl:my/text/wikipedia/*.jsonl.gz?field=body -> my, text, wikipedia.
    """
    prefix, _, path = source.partition(":")
    if prefix not in FILE_SOURCES:
        return []
    names = [name for name in path.partition("?")[0].split("/") if name and "*" not in name]
    if names:
        names[-1] = re.sub(r"([.](txt|md|jsonl|parquet|gz|zst))+$", "", names[-1]) or names[-1]
    return names
