"""Real text that every installation already holds: Python's own source, and English docstrings.

    for name, text in docs():            # "asyncio/events.py", "Event loop and ..."
        ...

The text is the same wherever the versions of Python and of PACKAGES are, and needs no download.
"""

import ast
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

MAX_CHARACTERS = (
    24_000_000  # of code, and of docs: what comes after is left, so that a start is quick
)
# Packages that lm cannot do without: folder -> the name it is distributed under.
PACKAGES = {
    "absl": "absl-py",
    "etils": "etils",
    "flax": "flax",
    "jax": "jax",
    "matplotlib": "matplotlib",
    "ml_collections": "ml-collections",
    "numpy": "numpy",
    "optax": "optax",
    "orbax/checkpoint": "orbax-checkpoint",
    "rich": "rich",
    "scipy": "scipy",
    "tensorflow_datasets": "tensorflow-datasets",
}
NOT_READ = {
    *("ensurepip", "distutils", "idlelib", "lib2to3", "tkinter", "turtledemo"),  # not everywhere
    *("test", "tests", "testing", "_vendor", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data"),  # tables rather than programs
}

ROLE = re.compile(r":[\w:.+-]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")  # :class:`~lm.config.Run`
LITERAL = re.compile(r"`+~?([^`]+)`+_{0,2}")
LABEL = re.compile(r"(?:[-*] |\d+[.)] )?(?:\w+(?: \([^)]*\))?: (?=[A-Z]))?")  # "- ", "lr (float): "
WORD = re.compile(r"[\"'(]*[A-Za-z][a-z]*(?:[-'][a-z]+)*[.,;:?!\"')]*")
MARKUP = re.compile(r">>>|::|[|\\{}<>@]|\.\. |---|===| \* ")


def code() -> Iterator[tuple[str, str]]:
    """(name, source) of each file of the standard library, without tests; 7.8 MB in Python 3.11."""
    return _capped((name, _read(path)) for name, path in _python_files())


def docs() -> Iterator[tuple[str, str]]:
    """(name, English of its docstrings) of each file of Python and of PACKAGES; about 4.7 MB.

    A paragraph is kept where it comes first: packages repeat theirs from function to function.
    """
    return _capped(_english())


def code_versions() -> dict[str, str]:
    return {"python": platform.python_version()}


def docs_versions() -> dict[str, str]:
    """ValueError naming the package that is missing."""
    found = code_versions()
    for distribution in PACKAGES.values():
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(f"docs: {distribution} is missing: install it, or drop docs") from None
    return found


def paragraphs(docstring: str) -> list[str]:
    """Those of a docstring that read as English, each on one line and without markup.

    A paragraph is lines of one indentation, so what is said of an argument counts and its type does
    not; doctests, tables, formulas and lists of names are not English.
    """
    blocks, lines, indent = [], [], 0
    for line in [*inspect.cleandoc(docstring).split("\n"), ""]:
        text, depth = line.strip(), len(line) - len(line.lstrip())
        if lines and (not text or depth != indent):
            blocks.append(" ".join(lines))
            lines = []
        if text:
            lines.append(text)
            indent = depth
    return [text for text in map(_plain, filter(_may_be_english, blocks)) if _is_english(text)]


def _plain(block: str) -> str:
    block = ROLE.sub(lambda match: match[1].rpartition(".")[2] or match[1], block)
    block = LITERAL.sub(r"\1", block).replace("**", "")
    return LABEL.sub("", " ".join(block.split()), count=1)


def _may_be_english(block: str) -> bool:
    return block[-1] in ".?!)" and block.count(" ") >= 4  # most fail here, before the slow part


def _is_english(text: str) -> bool:
    words = text.split()
    if len(words) < 5 or not text[0].isupper() or MARKUP.search(text):
        return False
    return sum(WORD.fullmatch(word) is not None for word in words) >= 0.7 * len(words)


def _english() -> Iterator[tuple[str, str]]:
    seen = set()
    for name, path in itertools.chain(_python_files(), _packages_files()):
        text = _read(path)
        if '"""' not in text:  # parsing is what takes the time
            continue
        found = [p for docstring in _docstrings(ast.parse(text)) for p in paragraphs(docstring)]
        new = [p for p in dict.fromkeys(found) if p not in seen]
        seen.update(new)
        if new:
            yield name, "\n\n".join(new)


def _docstrings(node) -> Iterator[str]:
    """Of a module, its classes, functions and methods, in order; none from inside a function."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield docstring
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child)


def _python_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - NOT_READ):
        if (root / f"{name}.py").is_file():
            yield f"{name}.py", root / f"{name}.py"
        else:
            yield from _package_files(name, root / name)


def _packages_files() -> Iterator[tuple[str, Path]]:
    for folder in PACKAGES:
        top, _, below = folder.partition("/")
        spec = importlib.util.find_spec(top)  # finds the package without importing it
        for root in sorted((spec and spec.submodule_search_locations) or []):
            yield from _package_files(folder, Path(root, below))


def _package_files(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    """(name/below/file.py, path) of the programs below a folder, in one order everywhere."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - NOT_READ)
        for file in sorted(files):
            if file.endswith(".py") and not file.endswith("_test.py") and file[:5] != "test_":
                path = Path(folder, file)
                yield f"{name}/{path.relative_to(root).as_posix()}", path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): is Python installed whole?") from None


def _capped(found: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    n_characters = 0
    for name, text in found:
        n_characters += len(text)
        if n_characters > MAX_CHARACTERS:
            return
        yield name, text
