"""Provenance of results: package version, git commit, hash of the code that a module uses.

    provenance.code_hash("lm.reports.figures")     # "0.2.0 4f0c9a12": the module and its imports

A stored figure contains this hash, so `figures.verify_figure` detects changed code.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

from lm.runs import filesystem

PACKAGE = __name__.partition(".")[0]
PACKAGE_DIR = pathlib.Path(__file__).parents[__name__.count(".") - 1]
# Packages whose older versions fail with an ImportError or AttributeError of their own.
CHECKED_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STATEMENT_LISTS = ("body", "orelse", "finalbody", "handlers", "cases")  # fields of a statement


def package_version() -> str:
    """Return the version of the installed package."""
    return importlib.metadata.version("lm-scaling")


def check_versions() -> None:
    """Raise ValueError if an installed package is older than its lower bound in pyproject.toml."""
    for requirement in importlib.metadata.requires("lm-scaling") or []:
        bound = re.match(r"([\w-]+)>=([\d.]+)$", requirement.replace(" ", ""))
        if not bound or bound[1] not in CHECKED_PACKAGES:
            continue
        name, oldest = bound.groups()
        version = importlib.metadata.version(name)
        if _release(version) < _release(oldest):
            raise ValueError(
                f"{name} {version} is installed, and lm-scaling needs at least {oldest}: run"
                f" pip install '{name}>={oldest}'"
            )


def _release(version: str) -> list[int]:
    """Return the numbers of a version: 0.12.0.1 is [0, 12, 0, 1], and 0.9.0rc1 is [0, 9, 0]."""
    release = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in release[0].split(".")] if release else []


@functools.cache
def git_commit() -> str:
    """Return twelve digits of the git commit, with a "+" if tracked files are modified.

    Return "" outside a git repository.
    """
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        is_modified = bool(_git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{revision}+" if is_modified else revision


def _git(*arguments: str) -> str:
    """Return the output of a git command in the directory of the package."""
    command = ["git", *arguments]
    result = subprocess.run(
        command, cwd=PACKAGE_DIR, capture_output=True, text=True, timeout=10, check=True
    )
    return result.stdout.strip()


def code_hash(module: str) -> str:
    """Return the package version and eight digits of a hash of a module and all its imports.

    Imports from other packages are not hashed. Comments, docstrings and formatting do not change
    the hash. A process reads each file once, so a later edit changes the hash in the next process.
    """
    return f"{package_version()} {_source_digest(module, _read_package())[:8]}"


def _source_digest(module: str, files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of `source_files`, which a file in the user's cache folder stores.

    Parsing takes most of the time. The file ends in a hash of the digest, of all files of the
    package and of the Python version. The digest is computed anew if this hash differs.
    """
    key = repr((sys.version, module, sorted(files.items()))).encode()

    def seal(digest: str) -> str:
        return f"{digest} {hashlib.sha256(key + digest.encode()).hexdigest()}"

    stored = None
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or no right to read
        stored = filesystem.user_cache_folder() / "code_hashes" / module
        text = stored.read_text(errors="replace")
        if text == seal(text[:64]):
            return text[:64]
    texts = source_files(module)
    digest = hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode()).hexdigest()
    if stored:
        with contextlib.suppress(OSError):
            stored.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            filesystem.write_file(stored, seal(digest))
    return digest


def package_hash() -> str:
    """Return the version and a hash of all files of the package, with templates and comments.

    The files are not parsed, so this takes a small part of the time of `code_hash`.
    """
    digest = hashlib.sha256()
    for file in sorted(PACKAGE_DIR.rglob("*")):
        if file.suffix in (".py", ".html"):
            digest.update(file.read_bytes())
    return f"{package_version()} {digest.hexdigest()[:8]}"


def source_files(module: str) -> dict[str, str]:
    """Return {module: normalized source} of a module and of all modules of lm that it imports.

    An import of a module also imports the __init__ of its subpackage. The __init__ of lm is
    skipped: it gives access to every module and would make all hashes equal.
    """
    texts: dict[str, str] = {}
    pending, visited = [module], {PACKAGE}
    while pending:
        name = pending.pop()
        if name in visited:
            continue
        visited.add(name)
        source = _module_source(name)
        if source is not None:
            texts[name], imported = _parse(source)
            pending += [*imported, name.rpartition(".")[0]]
    return texts


@functools.cache
def _read_package() -> dict[str, bytes]:
    """Return {path in the package: content} of all its Python files."""
    files = sorted(PACKAGE_DIR.rglob("*.py"))
    return {file.relative_to(PACKAGE_DIR).as_posix(): file.read_bytes() for file in files}


def _module_source(module: str) -> bytes | None:
    """Return the source of a module of the package, None if there is no such module."""
    root, *names = module.split(".")
    if root != PACKAGE:
        return None
    path, files = "/".join(names), _read_package()
    return files.get(f"{path}.py", files.get(f"{path}/__init__.py"))


@functools.cache
def _parse(source: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the source without docstrings and comments, and the names that it imports.

    `from lm.data import corpus` gives lm.data and lm.data.corpus.
    """
    tree = ast.parse(source.decode("utf-8"))
    names: list[str] = []
    for node in _walk_statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree), tuple(names)


def _walk_statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield a module and all its statements. Expressions, the most nodes, contain no import."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for name in STATEMENT_LISTS:
            pending += getattr(node, name, ())
