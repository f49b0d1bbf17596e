"""Paths that the config of a stored run names are read only with permission."""

import dataclasses
import os
import pathlib
import sys

import pytest

from lm.config import schema
from lm.data import evaluation_text
from lm.data.sources import path_permissions
from lm.runs import records
from lm.training import loaded_model


@pytest.fixture
def project(tmp_path, monkeypatch) -> pathlib.Path:
    """Return a working directory with the run runs/got, beside the folder `private`."""
    project = tmp_path / "project"
    (tmp_path / "private" / "folder").mkdir(parents=True)
    (tmp_path / "private" / "folder" / "diary.txt").write_text("secret")
    (project / "runs" / "got" / "checkpoints" / "8").mkdir(parents=True)
    (project / "books").mkdir()
    (project / "books" / "a.txt").write_text("text")
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return project


def stored(sources: dict[str, float] | None = None, **fields) -> schema.Run:
    run = schema.Run(name="got")
    run.data = dataclasses.replace(run.data, **fields)
    if sources is not None:
        run.data.sources = sources
    return run


def check(run: schema.Run, *allow_paths: str, sources=None) -> schema.Run:
    permissions = path_permissions.grant_permissions("runs/got", allow_paths)
    path_permissions.check_cache_folders(run, permissions)
    return path_permissions.check_sources(run, permissions, sources)


def error(run: schema.Run, *allow_paths: str, sources=None) -> str:
    with pytest.raises(ValueError, match="--allow_path=") as raised:
        check(run, *allow_paths, sources=sources)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("runs/got/config.json: ")
    return str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        *("code", "docs", "synthetic:machine?states=4", "tasks:copy?length=2"),
        *("text:books", "text:books/*.txt", "text:./runs/../books", "text:runs/got/own.txt"),
    ],
)
def test_own_and_built_in_text_needs_no_permission(project, source):
    (project / "runs" / "got" / "own.txt").write_text("text")
    run = stored({source: 1.0})
    assert check(run) == run


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "chat"])
@pytest.mark.parametrize(
    "path", ["{p}", "{p}/*", "{p}/diary.txt", "books/../../private/folder", "link", "link/**"]
)
def test_text_outside_the_working_directory_is_refused(project, tmp_path, kind, path):
    private = tmp_path / "private" / "folder"
    (project / "link").symlink_to(private)
    query = "?cap=9" if kind == "chat" else ""
    run = stored({f"{kind}:{path.format(p=private)}{query}": 1.0})
    assert f"data.sources names {private}" in error(run)


@pytest.mark.parametrize("pattern", ["books", "books/*", "books/**", "*/*/*"])
def test_link_within_a_permitted_folder_is_refused(project, tmp_path, pattern):
    secret = tmp_path / "private" / "folder" / "diary.txt"
    (project / "books" / "z.txt").symlink_to(secret)
    (project / "books" / "sub").symlink_to(secret.parent)
    assert str(secret.parent) in error(stored({f"text:{pattern}": 1.0}))


def test_permitted_folder_is_read(project, tmp_path):
    private = tmp_path / "private"
    run = stored({f"text:{private}/folder": 1.0}, cache_dir=str(private / "cache"))
    assert "data.cache_dir names" in error(run)
    assert check(run, str(private)) == run
    assert check(run, "../private") == run
    assert "data.cache_dir" in error(run, f"{private}/folder")
    assert "data.cache_dir" in error(run, str(private)[:-1])  # a prefix of another name


@pytest.mark.parametrize(
    "source, allowed, other",
    [
        ("hf:owner/name/train", "hf:owner/name", "hf:owner/na"),
        ("hf:owner/name:part/train?field=t", "hf:owner/name:part/train", "hf:owner/name:other"),
    ],
)
def test_dataset_of_the_hub_needs_its_name(project, source, allowed, other):
    run = stored({source: 1.0})
    assert f"--allow_path={source.partition('?')[0]}" in error(run)
    assert "data.sources names hf:" in error(run, other)
    assert "data.sources names hf:" in error(run, "hf:owner/name/../x")
    assert check(run, allowed) == run


def test_prepared_tfds_dataset_needs_its_folder(project, tmp_path):
    run = stored({"tfds:books:1.0.0/train": 1.0})
    assert f"--allow_path={tmp_path}/tfds/books" in error(run)
    assert error(stored({"tfds:../private/train": 1.0}), f"{tmp_path}/tfds")


@pytest.mark.parametrize("folder", ["/any", "../cache", "link/x", "gs://theirs/data", "runs/../.."])
def test_cache_folder_elsewhere_is_refused(project, tmp_path, folder):
    (project / "link").symlink_to(tmp_path / "private")
    run = stored({"code": 1.0}, cache_dir=folder)
    assert f"data.cache_dir names {folder}" in error(run)
    assert "or another folder by --cache_dir" in error(run)
    assert check(run, folder) == run


def test_bucket_needs_its_folder(project):
    run = stored({"code": 1.0}, cache_dir="gs://b/data", local_cache_dir="/any")
    assert "data.local_cache_dir names /any" in error(run, "gs://b")
    assert check(run, "gs://b/", "/any") == run
    assert "gs://b/data" in error(run, "gs://b/dat", "/any")


def test_run_directory_elsewhere_is_not_written(project, tmp_path):
    run = stored({"code": 1.0}, cache_dir=str(tmp_path / "far" / "data"))
    permissions = path_permissions.grant_permissions(tmp_path / "far")
    assert permissions.allow_reading(tmp_path / "far" / "text")
    with pytest.raises(ValueError, match=r"data\.cache_dir names .*far/data"):
        path_permissions.check_cache_folders(run, permissions)


def test_text_of_decontamination_needs_permission(project, tmp_path):
    private = f"text:{tmp_path}/private/folder"
    run = stored({"code": 1.0}, decontaminate_ngram=13, decontaminate_against=private)
    assert "data.decontaminate_against names" in error(run)
    assert check(run, sources=["docs"]) == run  # other text does not depend on this field


def test_text_of_the_command_line_replaces_stored_text(project, tmp_path):
    private = f"text:{tmp_path}/private/folder"
    run = stored({private: 1.0, "code": 1.0})
    assert check(run, sources=["docs"]).data.sources == {"code": 1.0}
    assert check(run, sources=[private]).data.sources == run.data.sources
    run.data.drop_near_duplicates = True
    assert "data.sources names" in error(run, sources=["code"])


@pytest.mark.parametrize("name", ["tokenizer.json", "pins", "checkpoints/8/state", "checkpoints"])
def test_link_out_of_the_run_is_refused(project, tmp_path, name):
    path = project / "runs" / "got" / name
    if path.is_dir():
        path.rename(project / "old")
    path.symlink_to(tmp_path / "private" / "folder")
    with pytest.raises(ValueError, match=rf"{name} is a link to .*private/folder, outside the run"):
        path_permissions.check_links("runs/got")
    path_permissions.check_links("runs/got", [str(tmp_path / "private")])


def test_link_behind_a_link_within_the_run_is_refused(project, tmp_path):
    run = project / "runs" / "got"
    (run / "hidden").mkdir()
    (run / "hidden" / "state").symlink_to(tmp_path / "private" / "folder")
    (run / "checkpoints" / "9").symlink_to("../hidden")
    with pytest.raises(ValueError, match=r"state is a link to .*private/folder, outside the run"):
        path_permissions.check_links("runs/got")


def test_link_within_the_folders_of_the_user_is_followed(project, tmp_path):
    """The folders runs and data are often links to another disk."""
    (project / "runs").rename(tmp_path / "disk")
    (project / "runs").symlink_to(tmp_path / "disk")
    (project / "data").symlink_to(tmp_path / "other disk")
    (project / "runs" / "got" / "checkpoints" / "9").symlink_to("8")
    path_permissions.check_links("runs/got")
    (project / "runs" / "text.txt").write_text("text")
    check(stored({"text:runs/text.txt": 1.0}, cache_dir="data/x"))


def test_pipe_in_a_run_is_refused(project):
    os.mkfifo(project / "runs" / "got" / "facts.json")
    with pytest.raises(ValueError, match=r"facts\.json is a pipe, socket or device: delete it"):
        path_permissions.check_links("runs/got")


def test_home_directory_is_no_working_directory(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    assert "data.sources names" in error(stored({"text:books": 1.0}))
    check(stored({"code": 1.0}, cache_dir="data/x"))
    monkeypatch.chdir("/")
    permissions = path_permissions.grant_permissions("runs/got")
    assert not permissions.allow_reading("/etc/passwd")


def test_parent_run_does_not_choose_where_text_is_written(project):
    data = stored(cache_dir="/any", local_cache_dir="local", decontaminate_against="text:/etc").data
    own = path_permissions.own_data(data)
    assert (own.cache_dir, own.local_cache_dir) == ("data", "local")
    assert own.decontaminate_against == ""


def test_evaluation_opens_no_other_file(finished_copy, text_file, tmp_path, monkeypatch):
    """Python reports each file that it opens to the hook. Packages and devices are not counted."""
    monkeypatch.chdir(tmp_path)
    folder = records.run_dir(finished_copy)
    loaded_model.load_model(folder, 8)  # imports all packages
    opened, is_recording = [], True

    def record(event: str, arguments: tuple) -> None:
        if is_recording and event == "open" and isinstance(arguments[0], str):
            opened.append(os.path.realpath(arguments[0]))

    sys.addaudithook(record)
    model = loaded_model.load_model(folder, 8)
    model.generate("The", max_tokens=1)
    model.run.data.cache_dir = "data"
    evaluation_text.open_evaluation_text(model.run)
    is_recording = False
    permitted = (
        str(tmp_path),
        str(text_file),
        sys.prefix,
        sys.base_prefix,
        "/dev",
        "/proc",
        "/sys",
        "/etc",
    )
    project_dir = str(pathlib.Path(__file__).parents[3])  # modules, and compiled programs
    assert any(path.startswith(str(tmp_path)) for path in opened)
    assert [p for p in opened if not p.startswith((*permitted, project_dir))] == []


def test_sources_in_object_storage_need_a_permission(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    granted = ["s3://bucket/books", "hf:owner/name"]
    permissions = path_permissions.grant_permissions(tmp_path, granted)
    cases = {
        "text:s3://bucket/books/*.txt": True,
        "jsonl:s3://bucket/books/a.jsonl?field=body": True,
        "tokens:s3://bucket/books": True,
        "text:s3://bucket/books*/a.txt": False,
        "text:s3://bucket/books2/a.txt": False,
        "parquet:s3://bucket/books/../private": False,
        "hf:owner/name@v1:part/train": True,
        "hf:owner/name2@v1/train": False,
    }
    for source, is_permitted in cases.items():
        run = schema.Run(name="a", dir="runs", data=schema.Data({source: 1.0}))
        if is_permitted:
            assert path_permissions.check_sources(run, permissions) == run
        else:
            with pytest.raises(ValueError, match="outside the run and the working directory: pass"):
                path_permissions.check_sources(run, permissions)
