"""Commit and code hash of results."""

import subprocess

import pytest

from lm.runs import provenance


def test_code_hash_covers_exactly_the_imported_modules():
    modules = set(provenance.source_files("lm.reports.figures"))
    imported = {"reports.plots.scaling", "laws.forms.power_laws", "runs.records", "config.schema"}
    assert {f"lm.{name}" for name in imported} <= modules
    others = {"lm", "lm.training.loop", "lm.model.transformer", "lm.reports.report"}
    assert not others & modules


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Replace lm by a package with two subpackages. Return its directory."""
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
    monkeypatch.setattr(provenance, "PACKAGE_DIR", tmp_path)
    provenance._parse.cache_clear()
    return tmp_path


def test_imports_are_followed_through_packages(package):
    names = {"data.corpus", "data.hashing", "data", "config", "config.schema", "config.base"}
    assert set(provenance.source_files("lm.data.corpus")) == {f"lm.{name}" for name in names}


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


def test_an_edit_during_a_process_changes_the_next_hash(package):
    before = provenance.code_hash("lm.data.corpus")
    (package / "config" / "schema.py").write_text("X = 2\n")
    provenance.code_hash("lm.data.corpus")
    provenance._parse.cache_clear()  # as in a new process
    assert provenance.code_hash("lm.data.corpus") != before


def test_imports_inside_of_blocks_are_followed(package):
    text = "def f():\n    if True:\n        try:\n            pass\n        except OSError:\n"
    text += "            from lm.data import other\n"
    (package / "data" / "hashing.py").write_text(text)
    assert "lm.data.other" in provenance.source_files("lm.data.corpus")


def test_commit_is_empty_outside_a_repository(tmp_path, monkeypatch):
    git_commit = provenance.git_commit.__wrapped__
    monkeypatch.setattr(provenance, "PACKAGE_DIR", tmp_path)
    assert git_commit() == ""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    author = ["-c", "user.name=x", "-c", "user.email=x@example"]
    (tmp_path / "file").write_text("one")
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    subprocess.run(["git", "-C", tmp_path, *author, "commit", "-qm", "one"], check=True)
    commit = git_commit()
    assert len(commit) == 12
    (tmp_path / "file").write_text("two")
    assert git_commit() == commit + "+"


def test_package_hash_covers_templates_and_comments(package):
    hashes = [provenance.package_hash()]
    for name, text in (("extra.py", "# A comment.\n"), ("page.html", "<p></p>")):
        (package / name).write_text(text)
        hashes.append(provenance.package_hash())
    assert len({*hashes}) == 3 and hashes[0].startswith(provenance.package_version())
