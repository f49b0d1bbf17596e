"""Short names of sources and tasks, for tables and figures.

short_names.shorten_sources(["jsonl:my/wiki/*.jsonl.gz"])        # {"jsonl:...": "wiki"}
short_names.shorten_task("file:my/tasks/piqa?shots=2&n=100")     # "piqa?shots=2"
short_names.shorten_task("pair:my/blimp?n=9#binding/principle")   # "blimp/principle"

Sources and tasks are named as in the config and in the columns of records.load_runs.
"""

import collections
import re
import urllib.parse
from collections.abc import Mapping, Sequence

# Prefixes of paths.
FILE_SOURCES = ("text", "jsonl", "parquet", "chat", "tokens", "file", "pair")
SUFFIXES = r"([.](txt|md|tsv|jsonl|parquet|bin|ds|gz|zst))+$"


def shorten_sources(sources: Sequence[str]) -> dict[str, str]:
    """Return {source: short name}. The short name of a file is its last folder or file name.

    If two short names are equal, they get as many folders as needed to differ, and their options if
    they are the same file. A single source of generated tasks is "tasks". Other sources that are
    not files have their full names.
    """
    components = {source: _path_components(source) for source in sources}
    task_sources = [source for source in components if source.startswith("tasks:")]
    if len(task_sources) == 1:
        components[task_sources[0]] = ["tasks"]
    names = unique_endings(components, dict.fromkeys(sources, 1))
    counts = collections.Counter(names.values())
    for source, name in names.items():
        if counts[name] > 1 and components[source]:
            options = urllib.parse.unquote_plus(source.partition("?")[2])
            names[source] = f"{name}?{options}" if options else name
    are_unique = len(set(names.values())) == len(names)
    return names if are_unique else {source: source for source in sources}


def unique_endings(
    components: Mapping[str, Sequence[str]], n_parts: Mapping[str, int]
) -> dict[str, str]:
    """Return {name: its last components, joined by /}, as many as the names need to differ.

    components: parts of each name; a name without parts is not shortened. Names with equal parts
    have equal endings. n_parts: least number of components of each ending.
    """
    depths = dict(n_parts)
    while True:
        endings = {
            name: "/".join(parts[-depths[name] :]) if parts else name
            for name, parts in components.items()
        }
        by_ending: dict[str, set[tuple[str, ...]]] = {}
        for name, ending in endings.items():
            by_ending.setdefault(ending, set()).add(tuple(components[name]))
        ambiguous = [
            name
            for name, ending in endings.items()
            if len(by_ending[ending]) > 1 and depths[name] < len(components[name])
        ]
        if not ambiguous:
            return endings
        for name in ambiguous:
            depths[name] += 1


def shorten_task(task: str) -> str:
    """Return a short name of a task: file:my/tasks/piqa?shots=2&n=100 -> piqa?shots=2.

    The short name omits the options n and seed, and the folders of a file. A part of minimal pairs
    has the name of the set, and that of the paradigm or the phenomenon.
    """
    is_pairs, is_file = task.startswith("pair:"), task.startswith(("file:", "pair:"))
    task, _, part = task.partition("#") if is_pairs else (task, "", "")
    source, _, query = task.partition("?")
    options = [text for text in query.split("&") if not text.startswith(("n=", "seed="))]
    name = shorten_sources([source])[source] if is_file else source
    name += f"/{part.rpartition('/')[2]}" if part else ""
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
        names[-1] = re.sub(SUFFIXES, "", names[-1]) or names[-1]
    return names
