"""Commit and code hash of results."""

import hashlib
import pathlib
import subprocess
import sys

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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    provenance._read_package.cache_clear()
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
        provenance._read_package.cache_clear()
        assert (provenance.code_hash("lm.data.corpus") == before) is is_same


def test_an_edit_during_a_process_changes_the_next_hash(package):
    before = provenance.code_hash("lm.data.corpus")
    (package / "config" / "schema.py").write_text("X = 2\n")
    provenance.code_hash("lm.data.corpus")
    provenance._read_package.cache_clear()  # as in a new process
    assert provenance.code_hash("lm.data.corpus") != before


def stored_hash(package):
    return package / "cache" / "lm-scaling" / "code_hashes" / "lm.data.corpus"


def test_stored_hash_is_that_of_the_sources(package, monkeypatch):
    texts = provenance.source_files("lm.data.corpus")
    digest = hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode()).hexdigest()
    before = provenance.code_hash("lm.data.corpus")
    assert before == f"{provenance.package_version()} {digest[:8]}"
    monkeypatch.setattr(provenance, "source_files", lambda module: pytest.fail("parsed again"))
    assert provenance.code_hash("lm.data.corpus") == before
    monkeypatch.setattr(sys, "version", "another version")
    with pytest.raises(pytest.fail.Exception):
        provenance.code_hash("lm.data.corpus")


def test_hash_of_an_edited_package_is_not_stored_for_older_files(package):
    """The process has read the old files when another process stores the new hash."""
    old = provenance.code_hash("lm.data.corpus")
    text = stored_hash(package).read_text()
    (package / "config" / "schema.py").write_text("X = 2\n")
    assert provenance.code_hash("lm.data.corpus") == old
    provenance._read_package.cache_clear()  # as in a new process
    new = provenance.code_hash("lm.data.corpus")
    assert new != old and stored_hash(package).read_text() != text
    stored_hash(package).write_text(text)
    assert provenance.code_hash("lm.data.corpus") == new


def test_damaged_or_unwritable_hash_does_not_matter(package, monkeypatch):
    before = provenance.code_hash("lm.data.corpus")
    file = stored_hash(package)
    text = file.read_text()
    changed = ("1" if text[0] == "0" else "0") + text[1:]
    for damaged in ("", text[:8], text[:-1], changed, text + "0", "\x00" * 129):
        file.write_text(damaged)
        assert provenance.code_hash("lm.data.corpus") == before
        assert file.read_text() == text
    file.write_bytes(b"\xff" * 129)
    assert provenance.code_hash("lm.data.corpus") == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(package / "__init__.py"))  # no folder
    assert provenance.code_hash("lm.data.corpus") == before
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(pathlib.Path, "home", _raise_runtime_error)
    assert provenance.code_hash("lm.data.corpus") == before


def _raise_runtime_error():
    raise RuntimeError("no home folder")


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
