"""Evaluation of published models of two families: records, laws and errors of the command."""

import json
import math
import pathlib

import fsspec
import numpy as np
import pytest
from etils import epath
from fixtures import commands, small_tokenizers
from fixtures.hf import random_models

from lm.config import schema
from lm.laws import comparability
from lm.model.hf import export
from lm.runs import filesystem, json_files, records
from lm.runs.items import task_items
from lm.training import loaded_model
from lm.training.published import model_folders, model_records

FAMILIES = {"gpt_neox": "bytes", "olmo2": "bpe"}  # family -> tokenizer of its models


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> pathlib.Path:
    """Write two models of each family, and a text."""
    folder = tmp_path_factory.mktemp("published")
    for d_model in (16, 32):
        name = f"neox-{d_model}"
        fields = random_models.VARIANTS["gpt_neox"] | {"d_model": d_model, "d_head": d_model // 2}
        random_models.export_random_model(folder / name, fields)
        bpe = small_tokenizers.byte_level_bpe()
        shape = random_models.SHAPE.__dict__ | random_models.VARIANTS["olmo2"]
        shape |= {"d_model": d_model, "d_head": d_model // 2, "vocab_size": bpe.vocab_size}
        run = schema.Run(model=schema.Model(**shape))
        run.data.seq_len = 64
        weights = random_models.random_weights(run.model)
        export.export_model(run, weights, bpe, folder / f"olmo2-{d_model}", shard_bytes=40_000)
    text = "".join(f"The number {n} is followed by {n + 1}.\n\n" for n in range(2000))
    (folder / "text.txt").write_text(text)
    return folder


def evaluate(folder: pathlib.Path, *names: str, **options: str):
    flags = {"sources": json.dumps({f"text:{folder}/text.txt": 1}), "n_sequences": "16"}
    flags |= {"dir": "runs/published", "tasks": "copy?length=2&n=4"} | options
    flags = {"models": ",".join(str(folder / name) for name in names)} | flags
    arguments = [f"--{name}={value}" for name, value in flags.items() if value]
    return commands.run_command(folder, "evaluate", *arguments)


@pytest.mark.slow
def test_models_of_two_families_are_compared_in_bits_per_byte(models):
    names = ["neox-16", "olmo2-16", "neox-32", "olmo2-32"]
    tokens = json.dumps({"neox-16": 3e9, "neox-32": 3e9})
    result = evaluate(models, *names, trained_tokens=tokens)
    assert result.returncode == 0, result.stderr
    rows = {row["name"].partition("/")[2]: row for row in records.load_runs(models / "runs")}
    assert rows.keys() == set(names)
    for name, row in rows.items():
        n_bits = row["eval.loss"] / math.log(2)
        assert row["status"] == "done" and row["data.seq_len"] == 32
        if name.startswith("neox"):  # a token is a byte, and few end documents
            assert row["eval.bits_per_byte"] == pytest.approx(n_bits, rel=0.01)
            assert row["tokens"] == 3_000_000_000
            assert row["flops"] == 3e9 * row["flops_per_token.full"]
        else:
            assert row["eval.bits_per_byte"] < 0.7 * n_bits
            assert "tokens" not in row and "flops" not in row
        assert row["eval.task.copy?length=2&n=4.n"] == 4
        (items,) = task_items.load_items(row).values()
        assert items.accuracy == row["eval.task.copy?length=2&n=4.accuracy"]
    assert comparability.loss_column(list(rows.values())) == "eval.bits_per_byte"
    assert comparability.loss_column([rows["olmo2-16"], rows["olmo2-32"]]) == "eval.loss"
    modified = (models / "runs" / "published" / "neox-16" / "evals.jsonl").stat().st_mtime_ns
    repeated = evaluate(models, *names)
    assert repeated.returncode == 0 and repeated.stdout.count("has results") == 4
    evals = models / "runs" / "published" / "neox-16" / "evals.jsonl"
    assert evals.stat().st_mtime_ns == modified


@pytest.mark.slow
def test_loss_is_that_of_the_imported_model(models):
    """A run of the folder, read from its checkpoint, has the same loss on the same text."""
    folder = models / "imported"
    imported = commands.run_command(
        models, "import_hf", f"--source={models / 'neox-16'}", f"--run={folder}", "--seq_len=32"
    )
    assert imported.returncode == 0, imported.stderr
    evaluated = evaluate(models, "neox-16", dir="single", tasks="")
    assert evaluated.returncode == 0, evaluated.stderr
    flags = [f"--run={folder}", "--n_sequences=16", "--sources"]
    flags[-1] += "=" + json.dumps({f"text:{models}/text.txt": 1})
    result = commands.run_command(models, "evaluate", *flags)
    assert result.returncode == 0, result.stderr
    (row,) = records.load_runs(models / "single")
    line = next(line for line in result.stdout.splitlines() if line.startswith("loss "))
    assert float(line.split()[1]) == pytest.approx(row["eval.loss"], abs=1e-4)
    scored = loaded_model.load_model(folder)
    assert np.isfinite(scored.score("The number", " 7").nats).all()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["neox-16"], {"sources": ""}, "--models needs a text"),
        (["neox-16"], {"dir": ""}, "--dir=FOLDER of the results"),
        (["neox-16"], {"trained_tokens": '{"neox": 3}'}, "neox is no model of --models"),
        (["neox-16"], {"trained_tokens": "many"}, "is neither a number nor JSON"),
        (["neox-16", "neox-16/"], {}, "both have the name neox-16"),
        (["neox-16"], {"trained_tokens": "1e30"}, "a number of tokens from 1 to below 1e+18"),
        (["neox-16"], {"dir": "."}, "--dir=. has no name of its own"),
        (["neox-16"], {"dir": "a/.."}, "--dir=a/.. has no name of its own"),
        (["neox-16"], {"models": ","}, "--models=, has an empty name: remove a comma"),
        (["neox-16"], {"models": "a,,b"}, "--models=a,,b has an empty name: remove a comma"),
        (["absent"], {}, "absent does not exist: name a folder"),
        (["neox-16"], {"seq_len": "99"}, "is above the context of neox-16, 32 tokens"),
        (["neox-16"], {"keep": "true"}, "--keep=True has no effect with --models"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(models, names, options, message):
    result = evaluate(models, *names, **{"dir": "refused"} | options)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (models / "refused").exists()


@pytest.mark.parametrize("tasks", ["", "copy?length=2&n=4"])
def test_paths_of_a_downloaded_run_need_permission(models, finished_copy, tmp_path, tasks):
    folder = records.run_dir(finished_copy)
    config = json_files.read_record(folder / "config.json")
    config["data"]["cache_dir"] = str(tmp_path / "victim")
    json_files.write_record(folder / "config.json", config)
    options = {"run": str(folder), "sources": "", "tasks": tasks, "dir": "downloaded"}
    result = evaluate(models, "neox-16", **options)
    assert result.returncode == 2 and "data.cache_dir names" in result.stderr
    result = evaluate(models, "neox-16", **options, cache_dir="data")
    assert result.returncode == 2 and "data.sources names" in result.stderr
    assert not (tmp_path / "victim").exists() and not (models / "downloaded").exists()


def test_a_bucket_of_results_is_no_local_folder(models, monkeypatch):
    def fail(protocol):
        raise ImportError(protocol)

    result = evaluate(models, "neox-16", dir="gs://bucket")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    monkeypatch.setattr(fsspec, "get_filesystem_class", fail)
    result = evaluate(models, "neox-16", dir="gs://bucket/pythia")
    assert result.returncode == 2 and "gs:// needs a package" in result.stderr
    assert not (models / "gs:").exists()
    model = model_folders.read_model(str(models / "neox-16"))
    settings = schema.Run()
    settings.data.seq_len = 16
    open_local = filesystem.open_path
    monkeypatch.setattr(
        filesystem,
        "open_path",
        lambda name: epath.Path(name) if filesystem.is_remote(name) else open_local(name),
    )
    monkeypatch.setattr(records, "check_same_config", lambda run: None)
    run = model_records.make_run(model, settings, epath.Path("gs://bucket/a/pythia"))
    assert (run.dir, run.name) == ("gs://bucket/a", "pythia/neox-16")


def test_undetermined_errors_are_printed_as_unknown(models):
    (models / "document").mkdir(exist_ok=True)
    (models / "document" / "a.txt").write_text("a single document of some words " * 40)
    sources = json.dumps({f"text:{models}/document/a.txt": 1})
    result = evaluate(models, "neox-16", sources=sources, dir="document_results", tasks="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("± unknown") == 2 and "0.0000" not in result.stdout
