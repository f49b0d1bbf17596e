"""Files are data: no code of the project unpickles, executes or unpacks the content of a file."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDERS = ("lm", "experiments", "configs")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
# Modules that execute data, and modules of archives, whose members may have any path.
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
MODULES |= {"zipfile", "tarfile", "jsonpickle", "code", "codeop"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
FUNCTIONS = {"os.system", "os.popen", "shutil.unpack_archive", "torch.load", "os.execl"}
METHODS = {"read_pickle", "load_pickle", "from_pickle"}
FORBIDDEN_OPTIONS = {"allow_pickle", "shell", "trust_remote_code"}


def unsafe_uses(source: str) -> list[str]:
    """Return the unsafe imports and calls of a source text, each with its line number."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            uses += _imports(node.lineno, [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            uses += _imports(node.lineno, [node.module or ""])
        elif isinstance(node, ast.Call):
            uses += [f"{node.lineno}: {problem}" for problem in _call_problems(node)]
    return uses


def _imports(line: int, names: list[str]) -> list[str]:
    modules = [name.partition(".")[0] for name in names]
    return [f"{line}: import {module}" for module in modules if module in MODULES]


def _call_problems(call: ast.Call) -> list[str]:
    """Return the problems of one call."""
    function = ast.unparse(call.func)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    is_builtin = isinstance(call.func, ast.Name) and call.func.id in BUILTINS
    problems = [f"{function}()"] if is_builtin or function in FUNCTIONS or method in METHODS else []
    options = {option.arg: getattr(option.value, "value", True) for option in call.keywords}
    problems += [f"{name}=" for name in FORBIDDEN_OPTIONS & options.keys() if options[name]]
    if function in ("np.load", "numpy.load") and options.get("allow_pickle", True) is not False:
        problems.append(f"{function}() without allow_pickle=False")
    imported = call.args[0] if function == "importlib.import_module" and call.args else None
    if isinstance(imported, ast.Constant):
        problems += _imports(call.lineno, [str(imported.value)])
    return problems


def test_no_file_is_unpickled_executed_or_unpacked():
    uses = {str(file): unsafe_uses(file.read_text(encoding="utf-8")) for file in FILES}
    assert not {file: problems for file, problems in uses.items() if problems}


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "import tarfile", "from yaml import safe_load", "import a, dill.x"),
        *("torch.load(f)", "eval(x)", "exec(open(f).read())", "os.system(x)", "pd.read_pickle(f)"),
        *("np.load(f)", "subprocess.run(x, shell=True)", "datasets.load(x, trust_remote_code=y)"),
        *("importlib.import_module('pickle')", "np.savez(f, allow_pickle=True)"),
    ],
)
def test_unsafe_line_is_detected(line):
    assert len(unsafe_uses(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        *("np.load(f, allow_pickle=False)", "re.compile(x)", "json.load(f)", "model.eval()"),
        *("subprocess.run(x, shell=False)", "importlib.import_module('datasets')"),
    ],
)
def test_safe_line_is_accepted(line):
    assert unsafe_uses(line) == []
