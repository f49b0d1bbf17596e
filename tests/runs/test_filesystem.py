"""Files on the local disk and in a bucket."""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time

import jax
import numpy as np
import pytest
from fixtures import quota
from fixtures.damaged_files import damage_file

from lm.config import schema
from lm.data import corpus, staging
from lm.parallel import mesh
from lm.reports import report
from lm.runs import filesystem, records
from lm.training import checkpoints, loaded_model, loop, step
from lm.training.checkpointing import checkpoint_manifest


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    """Return a folder on the local disk, and then one in the bucket."""
    if request.param == "local":
        return tmp_path
    request.getfixturevalue("bucket")
    return filesystem.open_path("gs://bucket/run")


def test_local_and_remote_paths_are_distinguished():
    assert filesystem.open_path("runs/a") == pathlib.Path("runs/a")
    assert filesystem.open_path(pathlib.Path("/x")) == pathlib.Path("/x")
    assert not filesystem.is_remote("runs/a") and filesystem.is_remote("gs://bucket/a")


def test_unknown_storage_is_refused_by_name(monkeypatch):
    with pytest.raises(
        ValueError, match="s3://b/x: s3:// is not supported. Use a local folder or gs://"
    ):
        filesystem.open_path("s3://b/x")
    import fsspec

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda name: __import__("not_here"))
    with pytest.raises(ValueError, match="gs://b/x: gs:// needs a package .* uv sync --extra gcs"):
        filesystem.open_path("gs://b/x")


def test_append_only_file_has_its_lines_in_order(folder):
    file = folder / "a.jsonl"
    assert filesystem.read_lines(file) == [] and filesystem.last_append_time(file) == 0
    filesystem.repair_append_file(file)
    for n in range(25):
        filesystem.append_line(file, f"line {n}")
        if n in (9, 19):
            filesystem.repair_append_file(file)  # as at the start of another attempt
            filesystem.sync_file(file)
    assert filesystem.read_lines(file) == [f"line {n}" for n in range(25)]
    assert abs(time.time() - filesystem.last_append_time(file)) < 10
    assert filesystem.find_files(folder, "a.jsonl") == [file]


def test_lines_in_a_bucket_are_objects_until_collected(bucket):
    file = filesystem.open_path("gs://bucket/run/a.jsonl")
    for n in range(3):
        filesystem.append_line(file, str(n))
    assert len(bucket.names()) == 3
    filesystem.repair_append_file(file)
    assert bucket.names() == ["bucket/run/a.jsonl"]


def test_compressed_lines_are_read_from_a_bucket(bucket):
    file = filesystem.open_path("gs://bucket/run/evals.jsonl")
    bucket.put("bucket/run/evals.jsonl.gz", gzip.compress(b"1\n2\n"))
    assert filesystem.read_lines(file) == ["1", "2"]
    filesystem.append_line(file, "3")
    assert filesystem.read_lines(file) == ["1", "2", "3"]


def test_reader_misses_no_line_while_lines_are_collected(bucket, monkeypatch):
    file = filesystem.open_path("gs://bucket/run/a.jsonl")
    for n in range(4):
        filesystem.append_line(file, str(n))
    list_dir = filesystem.list_dir

    def list_then_repair(folder):
        """List the parts, and let another process collect them before they are read."""
        paths = list_dir(folder)
        monkeypatch.setattr(filesystem, "list_dir", list_dir)
        filesystem.repair_append_file(file)
        return paths

    monkeypatch.setattr(filesystem, "list_dir", list_then_repair)
    assert filesystem.read_lines(file) == ["0", "1", "2", "3"]
    bucket.put("bucket/run/a.jsonl.parts/0", b"1\n")  # collected, and its part not yet deleted
    assert filesystem.read_lines(file) == ["0", "1", "2", "3"]


def test_file_is_replaced_atomically(folder, monkeypatch):
    file = folder / "below" / "a.json"
    filesystem.write_file(file, "old")
    filesystem.write_file(file, b"new")
    assert file.read_text() == "new"
    if filesystem.is_remote(folder):
        return

    def raise_disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space"):
        filesystem.write_file(file, "newer")
    assert file.read_text() == "new" and os.listdir(file.parent) == ["a.json"]


def test_log_is_flushed_before_the_checkpoint(tiny, monkeypatch):
    order, fsync, build_manifest = [], os.fsync, checkpoint_manifest.build_manifest

    def record_fsync(descriptor):
        order.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        fsync(descriptor)

    def record_save(*arguments):
        order.append("save")
        return build_manifest(*arguments)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(checkpoint_manifest, "build_manifest", record_save)
    loop.train(tiny)
    first_save = order.index("save")
    last_save = len(order) - order[::-1].index("save")  # at step 12, before an evaluation
    assert "metrics.jsonl" in order[:first_save]
    assert "metrics.jsonl" in order[first_save + 1 : last_save]
    assert "evals.jsonl" in order[last_save:]


@pytest.fixture
def remote(tiny, bucket, tmp_path) -> schema.Run:
    """Return the config of the tiny run with all its files in the bucket."""
    copies = str(tmp_path / "copies")
    data = dataclasses.replace(tiny.data, cache_dir="gs://bucket/data", local_cache_dir=copies)
    return dataclasses.replace(tiny, name="s/tiny", dir="gs://bucket/runs", data=data)


def params(run: schema.Run) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(loaded_model.restore_model(run)[1]["params"])
    ]


def test_run_in_a_bucket_equals_the_local_run(remote, bucket, tmp_path, monkeypatch):
    local = dataclasses.replace(remote, dir=str(tmp_path / "runs"))
    loop.train(local)
    loop.train(remote)
    folder = records.run_dir(remote)
    shutil.rmtree(tmp_path / "copies")  # another machine, which resumes the run, has no copies
    for name in bucket.names("bucket/runs/s/tiny/checkpoints/12/"):
        del bucket.objects[name]
    records.write_facts(folder, status="lost")
    loop.train(remote)
    assert records.read_facts(folder)["resumed_from"] == 8
    for remote_leaf, local_leaf in zip(params(remote), params(local), strict=True):
        np.testing.assert_array_equal(remote_leaf, local_leaf)
    (row,) = records.load_runs("gs://bucket/runs/s")
    assert (row["name"], row["status"], row["attempts"]) == ("s/tiny", "done", 2)
    losses = [
        [(m["step"], m["loss"]) for m in records.load_metrics(records.run_dir(r))]
        for r in (remote, local)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert records.read_config(folder).name == remote.name
    page = report.write_report("gs://bucket/runs/s")
    assert "tiny" in page.read_text()
    names = [name.removeprefix("bucket/runs/s/") for name in bucket.names("bucket/runs/s/")]
    assert not [name for name in names if ".parts/" in name or "lock-" in name]
    assert {"tiny/metrics.jsonl", "tiny/config.json", "report.html"} <= set(names)
    assert any(name.startswith("tiny/tensorboard/events") for name in names)
    assert not pathlib.Path("gs:").exists()  # no local folder of that name


def test_corrupt_checkpoint_in_a_bucket_is_quarantined(remote, bucket, tmp_path):
    local = dataclasses.replace(remote, dir=str(tmp_path / "runs"))
    loop.train(local)
    folder = records.run_dir(local)
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.put(f"bucket/runs/s/tiny/{file.relative_to(folder)}", file.read_bytes())
    program = step.build_train_functions(remote, mesh.make_mesh(remote.mesh))
    with checkpoints.CheckpointStore(remote) as saved:
        assert saved.steps() == [8, 12]
        assert saved.restore_newest(program.abstract).step == 12
    name = max(
        bucket.names("bucket/runs/s/tiny/checkpoints/12/state/"),
        key=lambda name: len(bucket.objects[name][0]),
    )
    data = bytearray(bucket.objects[name][0])
    data[len(data) // 2] ^= 16
    bucket.put(name, bytes(data))
    with checkpoints.CheckpointStore(remote) as saved:
        restored = saved.restore_newest(program.abstract)
    assert restored.step == 8
    assert "moved to gs://bucket/runs/s/tiny/damaged/12" in restored.damage[0]
    moved = name.replace("checkpoints/12", "damaged/12")
    assert bucket.objects[moved][0] == bytes(data) and name not in bucket.objects


def test_token_files_from_the_bucket_are_verified(remote, bucket, tmp_path):
    remote.data.tokenizer = "bpe:300"
    (first,) = corpus.prepare_corpus(remote.data).values()
    puts = bucket.puts
    other = dataclasses.replace(remote.data, local_cache_dir=str(tmp_path / "other"))
    (second,) = corpus.prepare_corpus(other).values()
    assert bucket.puts == puts and second.hash == first.hash  # nothing was prepared again
    for split in corpus.SPLITS:
        files = [pathlib.Path(manifest.folder, f"{split}.bin") for manifest in (first, second)]
        assert files[0] != files[1] and files[0].read_bytes() == files[1].read_bytes()
    (name,) = (n for n in bucket.names() if n.endswith("train.bin"))
    bucket.put(name, bucket.objects[name][0][:-2] + b"zz")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(ValueError, match=r"train.bin is not what was prepared: .* delete gs://"):
        corpus.prepare_corpus(other)
    assert not list((tmp_path / "other").rglob("train.bin"))


def test_damaged_copy_is_downloaded_again(remote, bucket, tmp_path, monkeypatch, capsys):
    remote.data.tokenizer = "bpe:300"
    (first,) = corpus.prepare_corpus(remote.data).values()
    expected = {p: p.read_bytes() for p in (tmp_path / "copies").rglob("*") if p.is_file()}
    monkeypatch.setattr(corpus, "_write_corpus", lambda *_: pytest.fail("prepared again"))
    for path in expected:
        damage_file(path, "bit", pathlib.Path())
        assert list(corpus.prepare_corpus(remote.data).values()) == [first]
        assert {p: p.read_bytes() for p in expected} == expected
        assert path.parent.name in capsys.readouterr().err or path.parent.name.startswith("bpe-")


def test_missing_object_is_named(remote, bucket, tmp_path):
    corpus.prepare_corpus(remote.data)
    (name,) = (n for n in bucket.names() if n.endswith("heldout.bin"))
    del bucket.objects[name]
    shutil.rmtree(tmp_path / "copies")
    with pytest.raises(ValueError, match="heldout.bin is missing, but listed in files.json: del"):
        corpus.prepare_corpus(remote.data)


def test_object_name_cannot_leave_its_folder(remote, bucket, tmp_path):
    corpus.prepare_corpus(remote.data)
    content = b"outside"
    checksums = {"../../out.txt": hashlib.sha256(content).hexdigest()}
    for name in [n for n in bucket.names("bucket/data/") if n.endswith(staging.CHECKSUM_FILE)]:
        bucket.put(name, json.dumps(checksums).encode())
        bucket.put(name.rpartition("/")[0] + "/../../out.txt", content)
    shutil.rmtree(tmp_path / "copies")
    with pytest.raises(ValueError, match="'../../out.txt' is not a file name"):
        corpus.prepare_corpus(remote.data)
    assert not list(tmp_path.rglob("out.txt"))


def test_nested_run_directories_are_refused(tmp_path):
    """A folder is a run directory if it contains both config.json and facts.json."""
    outer, inner = tmp_path / "mine", tmp_path / "mine/sweep/100K"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    filesystem.check_not_nested(outer)
    (inner / "facts.json").write_text("{}")
    filesystem.check_not_nested(inner)
    filesystem.check_not_nested(tmp_path / "mine/sweep/60K")
    with pytest.raises(ValueError, match="mine contains .*mine/sweep/100K, which is a run direct"):
        filesystem.check_not_nested(outer)
    with pytest.raises(ValueError, match="100K/tuned is inside .*100K, which is a run directory"):
        filesystem.check_not_nested(inner / "tuned")
    with pytest.raises(ValueError, match="100K/tuned is inside .*100K, which is a run directory"):
        records.check_same_config(schema.Run(name="sweep/100K/tuned", dir=str(outer)))


def test_quota_names_the_file_and_preserves_its_content(tmp_path):
    file, lines = tmp_path / "facts.json", tmp_path / "metrics.jsonl"
    filesystem.write_file(file, "old")
    filesystem.append_line(lines, "first")
    with quota.limit_file_size(100):
        for write, path in ((filesystem.write_file, file), (filesystem.append_line, lines)):
            with pytest.raises(OSError, match=f"File too large: '{path}'"):
                write(path, 200 * "x")
    assert file.read_text() == "old" and sorted(tmp_path.iterdir()) == [file, lines]
    filesystem.repair_append_file(lines)
    assert filesystem.read_lines(lines) == ["first"]


@pytest.mark.parametrize("compressed", [None, b"1\n2\n", b"1\n2"])
def test_count_of_lines_is_that_of_the_read_lines(tmp_path, compressed):
    file, n_chunk = tmp_path / "a.jsonl", 1 << 20
    assert filesystem.count_lines(file) == 0
    if compressed:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(compressed))
        assert filesystem.count_lines(file) == 2
    contents = [b"", b"\n", b"\n\n", b"a", b"a\n", b"a\nb", b"a\r\x0c\xe2\x80\xa8b\n\xff"]
    contents += [b"x" * n + end for n in (n_chunk - 1, n_chunk) for end in (b"", b"\n", b"\ny")]
    for content in contents:
        file.write_bytes(content)
        assert filesystem.count_lines(file) == len(filesystem.read_lines(file))


def test_absurdly_large_text_is_not_read(tmp_path):
    with open(tmp_path / "sparse.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes are more than 67,108,864"):
        filesystem.read_limited_text(tmp_path / "sparse.json")


def test_old_file_of_a_killed_write_is_removed_despite_its_number(tmp_path):
    """In a container, each process may have the number of the killed one."""
    number = f"{socket.gethostname()}-{os.getppid()}-1f"
    old, recent = tmp_path / f".old.json.{number}", tmp_path / f".recent.json.{number}"
    for path, age in ((old, 2 * filesystem.ABANDONED_SECONDS), (recent, 60)):
        path.write_text("{")
        os.utime(path, (time.time() - age,) * 2)
        filesystem.write_file(tmp_path / f"{path.name.split('.')[1]}.json", "{}")
    assert recent.exists() and not old.exists()


def test_next_write_removes_the_file_of_a_killed_write(tmp_path):
    """Files of other processes and of other machines remain."""
    file, killed = tmp_path / "facts.json", 2**22 + 1  # larger than all process numbers
    host = socket.gethostname()
    leftovers = [f".facts.json.{host}-{killed}-1f", f".facts.json.{host}-{os.getppid()}-1f"]
    leftovers += [".facts.json.otherhost-1", f".facts.jsonl.{host}-{killed}"]
    for name in leftovers:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - 60,) * 2)
    filesystem.write_file(file, "new")
    assert file.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"facts.json", *leftovers[1:]}


def test_check_of_a_folder_creates_no_name(tmp_path, monkeypatch):
    """A process that is killed during the check would leave it behind."""
    names = []
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names.append(1) or iter("ab"))
    filesystem.check_writable(tmp_path)
    assert not names and not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=f"No such file or directory: '{tmp_path}/no'"):
        filesystem.check_writable(tmp_path / "no")


def test_compressed_lines_come_before_appended_ones(tmp_path, monkeypatch):
    file, compressed = tmp_path / "evals.jsonl", tmp_path / "evals.jsonl.gz"
    compressed.write_bytes(gzip.compress(b'{"step": 1}\n{"step": 2}\n'))
    assert filesystem.read_lines(file) == ['{"step": 1}', '{"step": 2}']
    filesystem.append_line(file, '{"step": 3}')
    assert filesystem.read_lines(file)[1:] == ['{"step": 2}', '{"step": 3}']
    compressed.write_bytes(gzip.compress(bytes(5000)))
    monkeypatch.setattr(filesystem, "MAX_TEXT_BYTES", 4000)
    with pytest.raises(ValueError, match=r"evals.jsonl.gz contains more than 4,000 bytes"):
        filesystem.read_lines(file)
    for damaged in (
        b"",
        b"text",
        gzip.compress(bytes(50))[:-3],
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc",
    ):
        compressed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"evals.jsonl.gz is damaged"):
            filesystem.read_lines(file)
