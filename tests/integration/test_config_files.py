"""Config and sweep files: every error is one line that names the file, the line and the remedy."""

import subprocess
import sys
import types

import pytest

from experiments.common import config_files
from lm.config import schema

RUN = "    run = lm.Run(name='s/a')\n"
CONFIG = f"import lm\n\ndef get_config(size='1'):\n{RUN}    run.seed = int(size)\n    return run\n"
SWEEP = f"import lm\n\ndef get_sweep(n='2'):\n    for i in range(int(n)):\n    {RUN}        " + (
    "run.name = f's/{i}'\n        yield run\n"
)


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    """Return a function from the text of a sweep file to the error of loading it."""
    monkeypatch.chdir(tmp_path)

    def error_of(text: str, argument: str = "") -> str:
        (tmp_path / "f.py").write_text(text)
        with pytest.raises(schema.ConfigError) as error:
            config_files.load_sweep_file("f.py" + argument)
        assert "\n" not in str(error.value)
        return str(error.value)

    return error_of


def sweep_of(line: str) -> str:
    """Return a sweep file whose sixth line is `line`."""
    return (
        f"import lm\n\ndef get_sweep():\n    {RUN}    # next\n    {line}\n    yield run\n".replace(
            f"    {RUN}", RUN
        )
    )


def test_sweep_file_yields_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.py").write_text(SWEEP)
    assert [run.name for run in config_files.load_sweep_file("f.py:3")] == ["s/0", "s/1", "s/2"]
    (tmp_path / "f:3.py").write_text(SWEEP)
    assert len(config_files.load_sweep_file("f:3.py")) == 2


def test_edited_file_is_read_again(tmp_path, monkeypatch):
    """A cached bytecode file of the same time and size would be the old file."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "f.py").write_text(CONFIG.replace("s/a", f"s/{name}"))
        assert config_files.load_run_file("f.py", []).name == f"s/{name}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run.optim.learning_rate = 99", "f.py:6: optim.learning_rate does not exist: did you mea"),
        ("run.predct = True", "f.py:6: predct does not exist: did you mean is_prediction_target?"),
        ("run.model.layers = 50", "f.py:6: model.layers does not exist: did you mean model.n_laye"),
        ("run.model = lm.Modle()", "f.py:6: AttributeError: module 'lm' has no attribute 'Modle'"),
        ("run.model = lm.ladder_model('10k')", "f.py:6: size 10k does not exist: did you mean "),
        ("run.model = lm.ladder_model('10K', layers=2)", "f.py:6: model.layers does not exist"),
        ("run.steps = int('many')", "f.py:6: ValueError: invalid literal for int() with base 10"),
        ("1 / 0", "f.py:6: ZeroDivisionError: division by zero"),
        ("open('nowhere')", "f.py:6: FileNotFoundError: [Errno 2] No such file or directory"),
        ("raise SystemExit(3)", "f.py:6: SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "f.py:6: ValueError: two lines"),
        ("assert False", "f.py:6: AssertionError"),
        ("run.steps = = 3", "f.py:6: SyntaxError: invalid syntax"),
        ("import nowhere", "f.py:6: ModuleNotFoundError: No module named 'nowhere'"),
        ("run.optim.lr = 'fast'", "f.py: run s/a: optim.lr='fast' must be float, not str"),
        ("run.optim.lr = float('inf')", "f.py: run s/a: optim.lr=inf must be a finite number"),
        ("run.name = 's/checkpoints'", "f.py: name='s/checkpoints' contains checkpoints, which"),
        ("run.name = 3", "f.py: name=3 must be str, not int"),
        ("yield run", "f.py: get_sweep() yields one lm.Run object twice"),
        ("yield lm.Run(name='s/a')", "f.py: name='s/a' is the name of two runs"),
        ("yield lm.Run(name='s')", "f.py: name='s/a' is in the folder of the run s"),
        ("yield [run]", "f.py: get_sweep() must yield lm.Run, not a value of type list"),
        ("yield None", "f.py: get_sweep() must yield lm.Run, not None"),
        ("while True: yield lm.Run()", "f.py: get_sweep() yields more than 10,000 runs"),
    ],
)
def test_error_of_a_sweep_file_names_file_and_line(error_of, line, message):
    assert error_of(sweep_of(line)).startswith(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return []", "f.py: get_sweep() yields no runs: it must yield at least one run"),
        ("return lm.Run()", "f.py: get_sweep() must yield runs, not return one run: write yield"),
        ("return None", "f.py: get_sweep() must yield runs, not return None"),
        ("return 3", "f.py: get_sweep() must yield runs, not return a value of type int"),
        ("return 'abc'", "f.py: get_sweep() must yield lm.Run, not a value of type str"),
        ("return {lm.Run().name: lm.Run()}", "f.py: get_sweep() must yield lm.Run, not a value of"),
    ],
)
def test_wrong_result_of_get_sweep_is_one_line(error_of, body, message):
    assert error_of(f"import lm\n\ndef get_sweep():\n    {body}\n").startswith(message)


def test_wrong_argument_of_a_sweep_is_one_line(error_of):
    no_argument = "def get_sweep():\n    yield 1\n"
    assert error_of(no_argument, ":x") == (
        "f.py: get_sweep(): too many positional arguments: remove the text after the colon"
    )
    required = "def get_sweep(folder):\n    yield 1\n"
    assert error_of(required).endswith("argument: 'folder': write f.py:ARGUMENT")
    assert "not a value of type int" in error_of(required, ":x")


def test_file_without_the_function_names_the_other_flag(error_of, tmp_path):
    assert error_of(CONFIG).startswith(
        "--sweep=f.py has get_config() and no get_sweep(): use --con"
    )
    assert error_of("x = 1") == "--sweep=f.py has no get_sweep(). It must yield the runs."
    assert error_of("get_sweep = 3") == "--sweep=f.py has no get_sweep(). It must yield the runs."
    (tmp_path / "f.py").write_text(SWEEP)
    with pytest.raises(
        schema.ConfigError, match="has get_sweep.. and no get_config..: use --sweep"
    ):
        config_files.load_run_file("f.py", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "f.py:1: SyntaxError: (unicode error)"),
        (b"x = '\x00'", "f.py: SyntaxError: source code string cannot contain null bytes"),
        (b"", "--sweep=f.py has no get_sweep()"),
        (b"def f(:\n", "f.py:1: SyntaxError: invalid syntax"),
        (b"  x = 1\n", "f.py:1: IndentationError: unexpected indent"),
    ],
)
def test_file_that_is_not_python_is_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.py").write_bytes(content)
    with pytest.raises(schema.ConfigError) as error:
        config_files.load_sweep_file("f.py")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_installed_recipe_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.load_run_file("configs/base.py:10K", []).name == "base-10K"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/base.py").write_text(CONFIG)
    assert config_files.load_run_file("configs/base.py:10", []).name == "s/a"
    with pytest.raises(schema.ConfigError, match="Did you mean configs/base.py?"):
        config_files.load_run_file("configs/bse.py", [])
    with pytest.raises(schema.ConfigError, match="is a folder: name a file"):
        config_files.load_run_file("configs", [])


def test_package_that_hides_the_recipes_is_named(tmp_path, monkeypatch):
    other = types.ModuleType("configs")
    other.__file__ = str(tmp_path / "configs/__init__.py")
    monkeypatch.setitem(sys.modules, "configs", other)
    (tmp_path / "f.py").write_text("from configs import nowhere\n")
    with pytest.raises(schema.ConfigError) as error:
        config_files.load_run_file(str(tmp_path / "f.py"), [])
    expected = (
        f"f.py:1: {tmp_path}/configs hides the package configs of lm-scaling: rename that fol"
    )
    assert expected in str(error.value)


def test_command_line_changes_every_type_of_field(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.py").write_text(CONFIG)
    arguments = ["--x=1", "--config=f.py:7", "--config.optim.lr=1", "--config.steps", "9", "tail"]
    arguments += ["--config.wandb", "--noconfig.keep_best", "--config.model.qk_norm=False"]
    arguments += ['--config.data.sources={"code": 1}', '--config.mesh.rules={"mlp": []}']
    others, changes = config_files.field_changes(arguments)
    assert others == ["--x=1", "--config=f.py:7", "tail"]
    run = config_files.load_run_file("f.py:7", changes)
    assert (run.seed, run.optim.lr, run.steps, run.wandb, run.keep_best) == (7, 1.0, 9, True, False)
    assert (run.model.qk_norm, run.data.sources, run.mesh.rules) == (
        False,
        {"code": 1},
        {"mlp": []},
    )
    assert type(run.optim.lr) is float


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "optim.learning_rate=1",
            "--config.optim.learning_rate does not exist: did you mean optim.",
        ),
        (
            "optim=1",
            "--config.optim is a group of fields: set one, such as --config.optim.name=VALUE",
        ),
        (
            "data.sources[code]=1",
            "--config.data.sources[code] is one entry of data.sources: set all",
        ),
        (
            "mesh.rules[mlp]=x",
            "--config.mesh.rules[mlp] is one entry of mesh.rules: set all entries",
        ),
        ("data.sources=x", "--config.data.sources=x must be JSON such as {"),
        ("data.sources=[1]", "--config.data.sources=[1] must be JSON such as {"),
        ("mesh.rules=[]", "--config.mesh.rules=[] must be JSON such as '{"),
        ("optim.lr=fast", "--config.optim.lr=fast must be a finite number"),
        ("optim.lr=nan", "--config.optim.lr=nan must be a finite number"),
        ("optim.lr=1e999", "--config.optim.lr=1e999 must be a finite number"),
        ("optim.lr=", "--config.optim.lr= must be a finite number"),
        ("steps=1e3", "--config.steps=1e3 must be a whole number"),
        ("steps=" + 5000 * "9", "must be a whole number"),
        ("steps=1.5", "--config.steps=1.5 must be a whole number"),
        ("wandb=maybe", "--config.wandb=maybe must be true or false"),
        ("steps", "--config.steps has no value: write --config.steps=VALUE"),
    ],
)
def test_wrong_field_on_the_command_line_is_one_line(tmp_path, monkeypatch, flag, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.py").write_text(CONFIG)
    with pytest.raises(schema.ConfigError) as error:
        _, changes = config_files.field_changes([f"--config.{flag}"])
        config_files.load_run_file("f.py", changes)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def python(folder, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run Python in a folder with the packages of this repository."""
    environment = {"PYTHONPATH": str(config_files.ROOT), "PATH": ""}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=100, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--config=f.py", "--config.dir=f.py/x"], "dir=f.py/x cannot be created (Not a"),
        ("train", ["--config=f.py", "--config.name=s"], "which is a run directory: choose another"),
        ("train", ["--config=f.py", "--config.name=s/b/c"], "s/b/c is inside"),
        (
            "sweep",
            ["--sweep=f.py"],
            "--sweep=f.py has get_config() and no get_sweep(): use --config",
        ),
        ("plan", ["--sweep=f.py", "--config=f.py"], "--config and --sweep=f.py exclude each other"),
        ("plan", [], "--config=FILE or --sweep=FILE is missing"),
        ("prepare", ["--sweep=nowhere.py"], "--sweep=nowhere.py: the file does not exist."),
        (
            "evaluate",
            ["--run=runs/s"],
            "--run=runs/s is not a run directory: name one of its runs,",
        ),
        ("evaluate", [], "--run=FOLDER is missing"),
        (
            "sample",
            ["--run=nowhere"],
            "--run=nowhere is not a run directory: config.json is missing",
        ),
        ("export", ["--run=nowhere", "--out=x"], "--run=nowhere is not a run directory"),
        ("import_hf", ["--source=x", "--run=runs/s/b/c"], "is inside"),
        ("show_batch", ["--run=nowhere"], "--run=nowhere is not a run directory"),
        ("report", ["--dir=nowhere"], "--dir=nowhere contains no runs"),
    ],
)
def test_wrong_argument_is_reported_before_jax_is_imported(tmp_path, name, arguments, message):
    (tmp_path / "f.py").write_text(CONFIG)
    (tmp_path / "runs/s/b").mkdir(parents=True)
    (tmp_path / "runs/s/b/config.json").write_text("{}")
    (tmp_path / "runs/s/b/facts.json").write_text("{}")
    result = python(tmp_path, "-X", "importtime", "-m", f"experiments.{name}", *arguments)
    imports = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    errors = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert result.returncode == 2, result.stderr[-500:]
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], errors
    assert not {"jax", "matplotlib"} & {line.split("|")[-1].strip() for line in imports}


def test_list_of_commands_has_no_helper_modules(tmp_path):
    result = python(tmp_path, "-m", "experiments")
    lines = result.stdout.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert result.returncode == 0 and {"plan", "sweep", "train", "report"} <= {*names}
    assert not {"common", "benchmarks", "cli", "__init__", "__main__"} & {*names}
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines if line.startswith("  "))


def test_lms_runs_a_command_like_python_m(tmp_path):
    start = "import sys; from experiments.__main__ import main; sys.exit(main())"
    result = python(tmp_path, "-c", start, "train", "--help")
    assert result.returncode == 0 and "--config.FIELD" in result.stdout
    assert "config_changes" not in result.stdout
    result = python(tmp_path, "-c", start, "--version")
    assert result.returncode == 0 and result.stdout.startswith("lm-scaling ")
    result = python(tmp_path, "-c", start, "trian")
    assert result.returncode == 2
    assert result.stderr == "error: trian is not a command: did you mean train?\n"
    result = python(tmp_path, "-c", start, "plan", "--sweep=x.py")
    assert result.returncode == 2 and result.stderr.startswith("error: --sweep=x.py: the file does")


def test_unread_output_ends_a_command_without_a_message(tmp_path):
    """The status is that of a program that SIGPIPE ends, as 1 means a failed run."""
    print_lines = (
        "from experiments.common import cli, console\n"
        "def main():\n"
        "    for _ in range(20_000): console.print_line(20 * 'x')\n"
        "cli.run_main(main)\n"
    )
    for text in (print_lines, print_lines.replace("console.print_line(", "print(")):
        (tmp_path / "lines.py").write_text(text)
        command = f"{sys.executable} lines.py | head -1; exit ${{PIPESTATUS[0]}}"
        result = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=tmp_path, env={"PYTHONPATH": str(config_files.ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (141, "")


def test_unsupported_platform_is_named(monkeypatch, capsys):
    from experiments.common import cli

    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.exit_status(lambda: 0, ["x"]) == 2
    assert capsys.readouterr().err.startswith("error: Windows is not supported: use Linux, macOS")


def test_sources_flag_completes_a_config_without_sources(tmp_path):
    text = CONFIG.replace("    return run", "    run.data.sources = {}\n    return run")
    (tmp_path / "f.py").write_text(text)
    run = config_files.load_run_file(str(tmp_path / "f.py"), [], '{"code": 2}')
    assert run.data.sources == {"code": 2.0}
    with pytest.raises(schema.ConfigError, match="f.py: run s/a: data.sources={} is empty"):
        config_files.load_run_file(str(tmp_path / "f.py"), [])
