"""Which code this is: the package's version, the commit it stands at, a hash of what a file needs.

revision.code("outcome")       # "0.1.0 4f0c9a12": of lm/outcome.py and all that it imports
"""

import functools
import hashlib
import importlib.metadata
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).parent


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("lm-scaling")


@functools.cache
def commit() -> str:
    """The commit of the clone that lm lies in, with a + where files differ; "" without git."""
    try:
        said = [
            subprocess.run(
                ["git", *words], cwd=HERE, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno"))
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0] + "+" * bool(said[1])


def code(name: str) -> str:
    """Version and eight digits of the text of lm/NAME.py and of every file of lm it needs."""
    texts = sources(name)
    found = hashlib.sha256("".join(texts[key] for key in sorted(texts)).encode())
    return f"{version()} {found.hexdigest()[:8]}"


def sources(name: str) -> dict[str, str]:
    """{file of lm: its text} for NAME and all that it imports from lm, at any remove."""
    found, asked = {}, [name]
    while asked:
        name = asked.pop()
        file = HERE / f"{name}.py"
        if name in found or not file.exists():
            continue
        found[name] = file.read_text(encoding="utf-8")
        for group, single in re.findall(
            r"^\s*from lm(?: import (\([^)]*\)|.*)|\.(\w+) import)", found[name], re.MULTILINE
        ):
            asked += re.findall(r"\w+", group) + [single]
    return found
