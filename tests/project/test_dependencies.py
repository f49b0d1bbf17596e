"""Every dependency of pyproject.toml has a lower bound, which the installed versions satisfy."""

import importlib.metadata
import pathlib
import re
import tomllib

import pytest

import lm
from experiments.common import cli
from lm.runs import provenance

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENTS = [
    *PROJECT["project"]["dependencies"],
    *(r for extra in PROJECT["project"]["optional-dependencies"].values() for r in extra),
    *PROJECT["dependency-groups"]["dev"],
]


def test_every_dependency_has_a_lower_bound():
    pattern = re.compile(r"[\w-]+(\[[\w,-]+\])?>=[\d.]+(\s*;.*)?")
    assert [text for text in REQUIREMENTS if not pattern.fullmatch(text)] == []


def test_measured_versions_satisfy_the_lower_bounds():
    """The constraints of tool.uv are the versions of all measurements."""
    measured = dict(text.split("==") for text in PROJECT["tool"]["uv"]["constraint-dependencies"])
    for text in REQUIREMENTS:
        name, bound = re.match(r"([\w-]+).*?>=([\d.]+)", text).groups()
        if name in measured:
            assert provenance._release(measured[name]) >= provenance._release(bound), text


def pretend_installed(monkeypatch, **versions: str) -> None:
    """Let packages have other versions, with the bounds of pyproject.toml."""
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: PROJECT["project"]["dependencies"]
    )
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: versions.get(name) or version(name)
    )


@pytest.mark.parametrize(
    ("package", "version"),
    [("jax", "0.4.38"), ("jax", "0.8"), ("flax", "0.10.7"), ("optax", "0.2.4")],
)
def test_old_package_is_refused_in_one_line(package, version, monkeypatch):
    pretend_installed(monkeypatch, **{package: version})
    with pytest.raises(
        ValueError, match=f"{package} {version} is installed.* pip install '{package}>="
    ):
        provenance.check_versions()
    monkeypatch.delitem(vars(lm), "train", raising=False)
    with pytest.raises(ValueError, match=f"{package} {version} is installed"):
        _ = lm.train


def test_command_with_an_old_jax_has_exit_status_2(monkeypatch, capsys):
    pretend_installed(monkeypatch, jax="0.4.38")
    monkeypatch.setattr(cli.flags, "FLAGS", cli.flags.FlagValues())
    assert cli.exit_status(lambda: 0, ["command"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: jax 0.4.38 is installed") and error.count("\n") == 1


@pytest.mark.parametrize(
    "version", ["0.10.2", "0.12.0.1", "1.0", "0.11.0rc1", "0.11.0.dev20260101"]
)
def test_new_versions_are_accepted(version, monkeypatch):
    pretend_installed(monkeypatch, jax=version)
    provenance.check_versions()
