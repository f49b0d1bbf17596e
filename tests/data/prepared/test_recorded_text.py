"""A run resumes only on the text and the tokenizer of its records."""

import dataclasses

import pytest
from fixtures.text_corpora import write_documents

from lm.config import schema
from lm.data import dataset
from lm.data.prepared import recorded_text
from lm.data.sources import documents
from lm.runs import json_files, records
from lm.training import loop


@pytest.fixture
def texts(tmp_path) -> dict:
    """Return {source file: texts} of two sources."""
    return {tmp_path / f"{name}.jsonl": [f"{name} {i} " * 20 for i in range(60)] for name in "ab"}


@pytest.fixture
def run(tiny, tmp_path, texts) -> schema.Run:
    """Return a run that was started on two sources."""
    tiny.data.sources = {write_documents(path, lines): 1.0 for path, lines in texts.items()}
    tiny.data.cache_dir = str(tmp_path / "data")
    records.start_run(tiny, recorded_text.text_facts(dataset.open_dataset(tiny.data, 0)))
    return tiny


def edit(path, lines: list[str]) -> None:
    write_documents(path, [line.replace("7", "8") for line in lines])


def check(run: schema.Run) -> None:
    recorded_text.check_same_text(run, dataset.open_dataset(run.data, run.seed))


def test_unchanged_text_passes(run):
    check(run)
    check(dataclasses.replace(run, seed=5, data=dataclasses.replace(run.data, batch_size=4)))
    check(dataclasses.replace(run, name="new"))


def test_changed_source_is_named(run, texts):
    edit(path := list(texts)[1], texts[path])
    message = r"was started with other text: jsonl:\S*b.jsonl has changed: restore the text, or ch"
    with pytest.raises(ValueError, match=message) as error:
        check(run)
    assert "a.jsonl" not in str(error.value) and "\n" not in str(error.value)


def test_changed_text_stops_a_run_before_it_starts(run, texts):
    edit(path := list(texts)[0], texts[path])
    before = records.read_facts(records.run_dir(run))
    with pytest.raises(ValueError, match="a.jsonl has changed"):
        loop.validate_session(run)
    assert records.read_facts(records.run_dir(run)) == before


def test_changed_heldout_source_is_refused(run, texts):
    """A source of weight 0 has held-out rows only and does not change the hash of the batches."""
    _, second = run.data.sources
    run.data.sources[second] = 0.0
    text = dataset.open_dataset(run.data, 0)
    records.write_facts(records.run_dir(run), **recorded_text.text_facts(text))
    edit(path := list(texts)[1], texts[path])
    assert dataset.open_dataset(run.data, 0).hash == text.hash
    with pytest.raises(ValueError, match="b.jsonl has changed"):
        check(run)


def test_changed_tokenizer_is_named(run):
    records.write_facts(records.run_dir(run), **{"tokenizer.hash": "0" * 64})
    with pytest.raises(ValueError, match="data.tokenizer='bytes' is another tokenizer"):
        check(run)


def test_run_without_hashes_of_sources_is_compared(run, texts):
    """Version 0.2.0 recorded one hash of all sources, and the number of their documents."""
    names = list(run.data.sources)
    facts = records.read_facts(records.run_dir(run))
    facts = {k: v for k, v in facts.items() if not k.startswith(("corpus.hash.", "tokenizer."))}
    json_files.write_record(records.run_dir(run) / "facts.json", facts)
    check(run)
    edit(path := list(texts)[1], texts[path])
    with pytest.raises(ValueError, match=" or ".join(names) + " has changed, or its tokenizer"):
        check(run)
    text = dataset.open_dataset(run.data, 0)
    counts = {f"documents.train.{names[1]}": text.manifests[names[1]].documents["train"] + 1}
    records.write_facts(records.run_dir(run), **counts)
    with pytest.raises(ValueError, match=f"text: {names[1]} has changed, or its tokenizer"):
        check(run)


def test_branch_needs_the_text_of_its_parent(run, texts):
    branch = dataclasses.replace(run, name="branch", steps=20)
    branch.start = schema.Start(run=run.name, restore="full_state")
    edit(path := list(texts)[0], texts[path])
    text = dataset.open_dataset(run.data, 0)
    with pytest.raises(ValueError, match=r"start.run='tiny' was trained on other text: .*a.jsonl"):
        recorded_text.check_text_of_parent(branch, run, text)
    branch.start.restore = "weights"
    recorded_text.check_text_of_parent(branch, run, text)
    branch.start.restore = "full_state"
    branch.data = dataclasses.replace(run.data, seq_len=16)  # other batches on purpose
    recorded_text.check_text_of_parent(branch, run, dataset.open_dataset(branch.data, 0))


def test_touched_file_is_the_same_text(run, texts, monkeypatch):
    """The preparation runs again after a change of the time, and gives the same hash."""
    for path, lines in texts.items():
        path.unlink()
        write_documents(path, lines)
    read = []
    open_source = documents.open_source
    monkeypatch.setattr(
        documents, "open_source", lambda *a, **k: read.append(a) or open_source(*a, **k)
    )
    check(run)
    assert len(read) == 2
