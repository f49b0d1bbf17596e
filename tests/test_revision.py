"""Which code it is: what a file needs, and nothing else, decides."""

import subprocess

from lm import revision


def test_the_code_of_a_figure_is_the_files_that_it_needs():
    needed = set(revision.sources("drawings"))
    assert {"drawings", "plots", "powers", "ability", "records", "config"} <= needed
    assert not {"train", "model", "report"} & needed


def test_a_changed_file_changes_the_code(monkeypatch):
    before, found = revision.code("style"), revision.sources("style")
    monkeypatch.setattr(revision, "sources", lambda name: found | {"style": found["style"] + " "})
    assert revision.code("style") != before


def test_outside_of_a_clone_there_is_no_commit(tmp_path, monkeypatch):
    ask = revision.commit.__wrapped__
    monkeypatch.setattr(revision, "HERE", tmp_path)
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
