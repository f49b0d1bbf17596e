"""Rules of language and structure that a script can check."""

import ast
import collections
import functools
import io
import itertools
import json
import pathlib
import re
import textwrap
import tokenize

from lm.config import flops, schema

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(p for top in ("lm", "experiments", "configs") for p in (ROOT / top).rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [*ROOT.glob("experiments/*.md"), *ROOT.glob("configs/*.md")]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
FORBIDDEN_OPENINGS = {"Of", "What", "Whether", "Those", "Where", "How"}
CODE_START = re.compile(r"(import |from \S+ import |[\w.]+(, [\w.]+)* = |[\w.]+\(|with |for )")
# Words of version 0.1 that have no meaning in this field. They may not return as names or messages.
# The key passed_over of facts.json is stored on disk, so it is not in the list.
PRIVATE_TERMS = frozenset(
    "foretell foretold beforehand doubt doubts said asked mine ours theirs anew rung rungs kin"
    " mastery mastery_share sift sifted exam sit lifeline lineage drawings twins lifts speakers"
    " go_on ballot everyone whoever alike dial dials knob knobs afresh luck lever trunkless"
    " wire wire_speed mirrors ledger excerpt judge judged gains talk boxes dealt in_time swapped"
    " at_hand thrown_out set_aside starts_around standing stock boundless told sayings spoken lies"
    " stands came comes meets met kept awaited settle settled halve halving grown".split()
)
# Words that are clear in a message, but do not describe a value as a name.
VAGUE_NAMES = frozenset(
    "found one here again whole seen place places much most hold holds draft described mix joined"
    " ways replaced".split()
)
FILE_ENDINGS = {
    "py",
    "json",
    "jsonl",
    "md",
    "html",
    "csv",
    "bin",
    "model",
    "png",
    "svg",
    "txt",
    "sh",
}


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def trees() -> dict[pathlib.Path, ast.Module]:
    """Return the syntax tree of each file."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


@functools.cache
def syntax_nodes(tree: ast.Module) -> list[ast.AST]:
    """Return all nodes of a syntax tree. A walk takes a second for all files."""
    return list(ast.walk(tree))


def failures(paths, find_problems) -> dict[str, object]:
    """Return {path: problems} of the files with problems. One test checks all files."""
    problems = {relative(path): find_problems(path) for path in paths}
    return {path: result for path, result in problems.items() if result}


@functools.cache
def docstring_nodes(tree: ast.Module) -> list:
    """Return the module and each class and function that has a docstring."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        node for node in syntax_nodes(tree) if isinstance(node, kinds) and ast.get_docstring(node)
    ]


def identifiers(tree: ast.Module):
    """Yield every name that the code binds or uses."""
    for node in syntax_nodes(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name


def messages(tree: ast.Module):
    """Yield every string constant that is not a docstring."""
    first_statements = [node.body[0] for node in docstring_nodes(tree)]
    docstrings = {id(first.value) for first in first_statements if isinstance(first, ast.Expr)}
    for node in syntax_nodes(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value


def comments(path: pathlib.Path):
    """Yield the comments of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def test_docstrings_open_with_a_plain_word():
    def openings(path):
        nodes = docstring_nodes(trees()[path])
        return {(ast.get_docstring(node) or "").split()[0] for node in nodes} & FORBIDDEN_OPENINGS

    assert not failures(FILES, openings)


def test_every_file_has_a_docstring():
    assert not [relative(path) for path, tree in trees().items() if not ast.get_docstring(tree)]


def test_private_terms_are_not_used():
    def terms(path):
        tree = trees()[path]
        names = {name.lower().strip("_") for name in identifiers(tree)}
        words = {word.lower() for text in messages(tree) for word in re.findall(r"\w+", text)}
        return names & (PRIVATE_TERMS | VAGUE_NAMES) | words & PRIVATE_TERMS

    assert not failures(FILES, terms)


def test_public_names_are_unique_in_a_package():
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for path, tree in trees().items():
        parts = path.relative_to(ROOT).parts
        if parts[0] != "lm" or len(parts) < 3:
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                counts[parts[1]][node.name] += 1
    repeated = [f"{package}.{n}" for package, c in counts.items() for n, k in c.items() if k > 1]
    assert not repeated


def test_file_names_are_unique_in_lm():
    names = collections.Counter(path.stem for path in FILES if path.is_relative_to(ROOT / "lm"))
    del names["__init__"]
    assert not [name for name, count in names.items() if count > 1]


def test_files_and_functions_are_short():
    def long_parts(path):
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        return [n_lines] * (n_lines > 400) + [
            node.name
            for node in syntax_nodes(trees()[path])
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and (node.end_lineno or 0) - node.lineno >= 60
        ]

    assert not failures(FILES, long_parts)


def test_imports_have_no_alias():
    permitted = {("numpy", "np"), ("jax.numpy", "jnp")}
    permitted |= {("write_report", "report"), ("compare_rows", "compare")}

    def aliases(path):
        imports = (
            n for n in syntax_nodes(trees()[path]) if isinstance(n, (ast.Import, ast.ImportFrom))
        )
        names = {(name.name, name.asname) for node in imports for name in node.names if name.asname}
        return names - permitted

    assert not failures(FILES, aliases)


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 180
    assert not [line for line in lines if len(line) > 120]


# --- References in prose ---


@functools.cache
def module_names() -> dict[str, set[str]]:
    """Return the names that each file of lm defines or imports, by the name of the file."""
    names: dict[str, set[str]] = {}
    for path, tree in trees().items():
        if not path.is_relative_to(ROOT / "lm"):
            continue
        module = path.parent.name if path.stem == "__init__" else path.stem
        defined = names.setdefault(module, set())
        # The facade imports its public names in `if TYPE_CHECKING:`.
        blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.If))]
        for node in itertools.chain(*blocks):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                defined |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        if path.stem == "__init__":
            defined |= {p.stem for p in path.parent.iterdir()}
    return names


@functools.cache
def row_columns() -> set[str]:
    """Return the columns of a row, whose names have a dot. The code has most of them as strings."""
    return set(flops.run_facts(schema.Run())).union(*map(messages, trees().values()))


CONFIG_FIELDS = set(schema.flatten(schema.Run()))
REFERENCE = re.compile(r"(?<![\w./-])([a-z_]+)\.([A-Za-z_]\w*)")
EXAMPLE_VARIABLE = re.compile(r"^ {4}.*?\b(?:(\w+) = |as (\w+):)", re.MULTILINE)
PATH = re.compile(r"(?<![\w/.*-])((?:lm|tests|experiments|configs|notebooks)/[\w/.-]*\w)")


def unresolved(text: str) -> list[str]:
    """Return the references module.name, and paths of the repository, that do not exist.

    A word before a dot is not a module if an example of the text assigns a variable of this name.
    """
    missing = []
    variables = {name for names in EXAMPLE_VARIABLE.findall(text) for name in names}
    for module, name in REFERENCE.findall(text):
        reference = f"{module}.{name}"
        is_config = any(f"{field}.".startswith(f"{reference}.") for field in CONFIG_FIELDS)
        if is_config or reference in row_columns() or module in variables:
            continue
        if module in module_names() and name not in module_names()[module] | FILE_ENDINGS:
            missing.append(reference)
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    return missing


# Words before a dot that are an object in prose: a fitted law, and the columns of a law.
VARIABLES = {"fit", "data"}


def test_references_in_docstrings_and_comments_exist():
    def missing(path):
        texts = [ast.get_docstring(node) or "" for node in docstring_nodes(trees()[path])]
        references = [r for text in [*texts, *comments(path)] for r in unresolved(text)]
        return [r for r in references if r.split(".")[0] not in VARIABLES]

    assert not failures(FILES, missing)


def test_references_in_pages_exist():
    def missing(path):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        if path.name == "CHANGELOG.md":  # it names what was removed
            text = "\n".join(PATH.findall(text))
        quoted = "\n".join(re.findall(r"`([^`]*)`", text)) + "\n" + "\n".join(PATH.findall(text))
        return [r for r in unresolved(quoted) if r.split(".")[0] not in VARIABLES]

    assert not failures(PAGES, missing)


def is_code(text: str) -> bool:
    """Return True if Python can parse a text."""
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_code_in_docstrings_compiles():
    def invalid_code(path):
        texts = [ast.get_docstring(node) or "" for node in docstring_nodes(trees()[path])]
        pattern = re.compile(r"(?:^(?: {4}.*)?\n)+|(?:^ {4}.*(?:\n|\Z))+", re.MULTILINE)
        blocks = [block for text in texts for block in pattern.findall(text + "\n")]
        code = [textwrap.dedent(block).strip("\n") for block in blocks]
        return [text for text in code if CODE_START.match(text) and not is_code(text)]

    assert not failures(FILES, invalid_code)


def test_notebooks_name_existing_modules():
    def missing(path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "code")
        code = re.sub(r"^%.*$", "", code, flags=re.MULTILINE)
        names = []
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lm":
                package = ROOT / (node.module or "").replace(".", "/")
                names += [
                    alias.name
                    for alias in node.names
                    if not (package / f"{alias.name}.py").exists()
                    and not (package / alias.name).is_dir()
                    and alias.name not in module_names()[package.name]
                ]
        return names

    assert not failures(NOTEBOOKS, missing)


LINK = re.compile(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)|src=\"(?!http)([^\"]+)()\"")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def markdown(path: pathlib.Path) -> str:
    """Return the text of a page, or of the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def anchors(path: pathlib.Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub names them."""
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(markdown(path))]
    return {title.strip().replace(" ", "-") for title in titles}


def test_links_between_pages_exist():
    def broken(path):
        links = [(link or image, anchor) for link, anchor, image, _ in LINK.findall(markdown(path))]
        targets = [(path.parent / file if file else path, anchor) for file, anchor in links]
        return [
            (target.name, anchor)
            for target, anchor in targets
            if not target.exists() or (anchor and anchor not in anchors(target))
        ]

    assert not failures([*PAGES, *ROOT.glob("experiments/log/*.md"), *NOTEBOOKS], broken)
