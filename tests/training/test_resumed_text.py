"""A session resumes on verified text with the tokenizer of its run."""

import dataclasses
import signal
from pathlib import Path

import pytest
from fixtures.damaged_files import damage_file

from lm.data import dataset, evaluation_text
from lm.runs import json_files, records
from lm.training import loop, preemption


def stop_at(step: int):
    """Return a report function that raises SIGTERM at a step of the first attempt."""

    def report(row):
        if row["step"] == step and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    return report


def results(run) -> list:
    folder = records.run_dir(run)
    rows = [*records.load_metrics(folder), *records.load_evals(folder)]
    return [(row["step"], row["loss"], row.get("bits_per_byte")) for row in rows]


def test_damaged_text_and_tokenizers_give_the_same_bits(tiny, tmp_path, capsys):
    """Files of the prepared text, of the trained tokenizer and of the run change after a stop."""
    tiny.data.tokenizer, tiny.model.vocab_size = "bpe:300", 300
    tiny.data.cache_dir = str(tmp_path / "data")
    undisturbed = dataclasses.replace(tiny, name="undisturbed")
    loop.train(undisturbed)
    with pytest.raises(preemption.Interrupted):
        loop.train(tiny, stop_at(6))
    folder = records.run_dir(tiny)
    facts = records.read_facts(folder)
    tokenizer = evaluation_text.load_run_tokenizer(tiny)
    assert facts["tokenizer.hash"] == tokenizer.hash
    paths = [path for path in Path(tiny.data.cache_dir).rglob("*") if path.is_file()]
    assert {path.name for path in paths} >= {"train.bin", "heldout.bin", "manifest.json"}
    for path in [*paths, folder / "tokenizer.json"]:
        damage_file(path, "bit", Path(), seed=3)
    capsys.readouterr()
    loop.train(tiny)
    assert "prepared again" in capsys.readouterr().err
    assert results(tiny) == results(undisturbed)
    assert evaluation_text.load_run_tokenizer(tiny).hash == tokenizer.hash
    assert records.read_facts(folder)["tokenizer.files"] == facts["tokenizer.files"]


def test_corpus_hash_is_not_overwritten(finished_copy):
    folder = records.run_dir(finished_copy)
    (source,) = finished_copy.data.sources
    records.write_facts(folder, **{f"corpus.hash.{source}": "0" * 64})
    before = records.read_facts(folder)
    with pytest.raises(ValueError, match=f"{source} has changed: restore the text"):
        loop.train(finished_copy)
    assert records.read_facts(folder) == before


def test_run_of_an_earlier_version_resumes(finished_copy):
    """Version 0.2.0 recorded neither the hash of each source nor that of the tokenizer."""
    folder = records.run_dir(finished_copy)
    facts = records.read_facts(folder)
    text = dataset.open_dataset(finished_copy.data, finished_copy.seed)
    assert facts["corpus.hash"] == text.hash and facts["tokenizer.files"] == {}
    names = [name for name in facts if name.startswith(("corpus.hash.", "tokenizer."))]
    assert len(names) == 3
    old_facts = {name: value for name, value in facts.items() if name not in names}
    json_files.write_record(folder / "facts.json", old_facts)
    loop.train(finished_copy)
    assert {name: records.read_facts(folder)[name] for name in names} == {
        name: facts[name] for name in names
    }
