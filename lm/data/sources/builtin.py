"""Built-in text: the source of Python's standard library, and English paragraphs of docstrings.

    for name, text in python_docs():
        ...                              # "asyncio/events.py", "Event loop and ..."

Equal versions of Python and of PACKAGES give equal text. Nothing is downloaded.
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
import time
from collections.abc import Iterator
from pathlib import Path

MAX_CHARACTERS = 24_000_000  # limit of code and of docs, so that the first run starts quickly
PARSE_ATTEMPTS, PARSE_WAIT_SECONDS = 20, 0.05
# Required packages of lm: import folder -> name of the distribution.
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
SKIPPED_FOLDERS = {
    # Some installations lack these.
    *("ensurepip", "distutils", "idlelib", "lib2to3", "tkinter", "turtledemo"),
    *("test", "tests", "testing", "_vendor", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data"),  # these are tables, not programs
}

ROLE = re.compile(r":[\w:.+-]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")  # :class:`~lm.config.Run`
LITERAL = re.compile(r"`+~?([^`]+)`+_{0,2}")
LABEL = re.compile(r"(?:[-*] |\d+[.)] )?(?:\w+(?: \([^)]*\))?: (?=[A-Z]))?")  # "- ", "lr (float): "
WORD = re.compile(r"[\"'(]*[A-Za-z][a-z]*(?:[-'][a-z]+)*[.,;:?!\"')]*")
MARKUP = re.compile(r">>>|::|[|\\{}<>@]|\.\. |---|===| \* ")


def python_code() -> Iterator[tuple[str, str]]:
    """Yield (name, source) of the standard library without tests: 7.8 MB in Python 3.11."""
    return _truncate((name, _read(path)) for name, path in _python_files())


def python_docs() -> Iterator[tuple[str, str]]:
    """Yield (name, English text of the docstrings) of Python and of PACKAGES: about 4.7 MB.

    A repeated paragraph is used once, because packages repeat paragraphs in many functions.
    """
    return _truncate(_english_documents())


def code_versions() -> dict[str, str]:
    """Return the Python version."""
    return {"python": platform.python_version()}


def docs_versions() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES. Raises ValueError for a missing package."""
    versions = code_versions()
    for distribution in PACKAGES.values():
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(f"docs: {distribution} is missing: install it, or drop docs") from None
    return versions


def paragraphs(docstring: str) -> list[str]:
    """Return the English paragraphs of a docstring, each on one line and without markup.

    A paragraph consists of lines of equal indentation, so the description of an argument is
    separate from its type. Doctests, tables, formulas and lists of names are not English.
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
    return [
        text for text in map(_remove_markup, filter(_may_be_english, blocks)) if _is_english(text)
    ]


def _remove_markup(block: str) -> str:
    block = ROLE.sub(lambda match: match[1].rpartition(".")[2] or match[1], block)
    block = LITERAL.sub(r"\1", block).replace("**", "")
    return LABEL.sub("", " ".join(block.split()), count=1)


def _may_be_english(block: str) -> bool:
    # Most blocks fail this cheap test, so the expensive test runs rarely.
    return block[-1] in ".?!)" and block.count(" ") >= 4


def _is_english(text: str) -> bool:
    words = text.split()
    if len(words) < 5 or not text[0].isupper() or MARKUP.search(text):
        return False
    return sum(WORD.fullmatch(word) is not None for word in words) >= 0.7 * len(words)


def _english_documents() -> Iterator[tuple[str, str]]:
    """Yield (name, new English paragraphs) of each file with docstrings."""
    used_paragraphs = set()
    for name, path in itertools.chain(_python_files(), _packages_files()):
        text = _read(path)
        if '"""' not in text:  # skips the slow parser
            continue
        english = [
            p for docstring in _docstrings(parse_module(text)) for p in paragraphs(docstring)
        ]
        new = [p for p in dict.fromkeys(english) if p not in used_paragraphs]
        used_paragraphs.update(new)
        if new:
            yield name, "\n\n".join(new)


def parse_module(text: str) -> ast.Module:
    """Return the syntax tree of Python code. Raises SyntaxError for other text.

    CPython 3.11 can raise SystemError if code runs in another thread, or by garbage collection,
    during the parse (python/cpython issue 106905). The parse is then repeated.
    """
    for _ in range(PARSE_ATTEMPTS - 1):
        try:
            return ast.parse(text)
        except SystemError:
            time.sleep(PARSE_WAIT_SECONDS)
    return ast.parse(text)


def _docstrings(node) -> Iterator[str]:
    """Yield the docstrings of a module, its classes, functions and methods, in order.

    Definitions inside a function are skipped.
    """
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield docstring
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child)


def _python_files() -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the programs of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - SKIPPED_FOLDERS):
        if (root / f"{name}.py").is_file():
            yield f"{name}.py", root / f"{name}.py"
        else:
            yield from _package_files(name, root / name)


def _packages_files() -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the programs of PACKAGES, without importing them."""
    for folder in PACKAGES:
        top, _, below = folder.partition("/")
        spec = importlib.util.find_spec(top)
        for root in sorted((spec and spec.submodule_search_locations) or []):
            yield from _package_files(folder, Path(root, below))


def _package_files(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name/path/file.py, path) of the programs below a folder, in a fixed order."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for file in sorted(files):
            if file.endswith(".py") and not file.endswith("_test.py") and file[:5] != "test_":
                path = Path(folder, file)
                yield f"{name}/{path.relative_to(root).as_posix()}", path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): reinstall Python") from None


def _truncate(texts: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) until the next text would exceed MAX_CHARACTERS."""
    n_characters = 0
    for name, text in texts:
        n_characters += len(text)
        if n_characters > MAX_CHARACTERS:
            return
        yield name, text
