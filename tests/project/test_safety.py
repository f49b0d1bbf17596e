"""What is read is data: nothing in the product unpickles, evaluates or unpacks what it finds."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDERS = ("lm", "experiments", "configs")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
ARCHIVES = {"zipfile", "tarfile"}  # their members have names that lead anywhere
CALLS = {"eval", "exec", "compile", "__import__"}
WHOLE = {"os.system", "os.popen", "shutil.unpack_archive", "torch.load"}


def found(source: str) -> list[str]:
    """What of the above a file uses, with its line."""
    words = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        words += [f"{node.lineno}: import {n}" for n in names if n in MODULES | ARCHIVES]
        if isinstance(node, ast.Call):
            whose = ast.unparse(node.func)
            by_name = isinstance(node.func, ast.Name) and node.func.id in CALLS
            if by_name or whose in WHOLE:
                words.append(f"{node.lineno}: {whose}()")
            words += [
                f"{node.lineno}: {word.arg}="
                for word in node.keywords
                if word.arg in ("allow_pickle", "shell", "trust_remote_code")
                and getattr(word.value, "value", True) is not False
            ]
    return words


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_unpacked(file):
    assert found(file.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "torch.load(f)",
        "eval(x)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "import tarfile",
        "os.system(x)",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert len(found(line)) == 1
