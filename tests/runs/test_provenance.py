"""Commit and code hash of results."""

import subprocess

import pytest

from lm.runs import provenance


def test_code_hash_covers_exactly_the_imported_modules():
    needed = set(provenance.source_files("lm.drawings"))
    names = {"drawings", "plots", "powers", "ability", "records", "config"}
    assert {f"lm.{name}" for name in names} <= needed
    assert not {"lm", "lm.train", "lm.model", "lm.report"} & needed


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with subpackages, in place of lm."""
    files = {
        "__init__.py": "from lm import everything",
        "everything.py": "",
        "config/__init__.py": '"""Doc."""\nimport lm.config.base',
        "config/base.py": "BASE = 1",
        "config/schema.py": "X = 1",
        "data/__init__.py": "",
        "data/corpus.py": "from lm.config import schema\nfrom lm.data.hashing import digest",
        "data/hashing.py": "def digest(): ...",
        "data/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    provenance._parse.cache_clear()
    return tmp_path


def test_imports_are_followed_through_packages(package):
    needed = {"data.corpus", "data.hashing", "data", "config", "config.schema", "config.base"}
    assert set(provenance.source_files("lm.data.corpus")) == {f"lm.{name}" for name in needed}


def test_code_hash_ignores_docstrings_and_comments_only(package):
    before = provenance.code_hash("lm.data.corpus")
    for text, is_same in (
        ('"""Text."""\n# Comment.\nX = 1\n', True),
        ("X = (\n    1\n)\n", True),
        ("X = 2\n", False),
    ):
        (package / "config" / "schema.py").write_text(text)
        provenance._parse.cache_clear()
        assert (provenance.code_hash("lm.data.corpus") == before) is is_same


def test_commit_is_empty_outside_a_repository(tmp_path, monkeypatch):
    ask = provenance.git_commit.__wrapped__
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    assert ask() == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    me = ["-c", "user.name=x", "-c", "user.email=x@example"]
    (tmp_path / "file").write_text("one")
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    subprocess.run(["git", "-C", tmp_path, *me, "commit", "-qm", "one"], check=True)
    clean = ask()
    assert len(clean) == 12
    (tmp_path / "file").write_text("two")
    assert ask() == clean + "+"
