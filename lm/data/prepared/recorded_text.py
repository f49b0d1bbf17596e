"""Compare the text and the tokenizer of a run with the records of the run.

    check_same_text(run, text)        # before a run resumes
    text_facts(text)                  # the facts that later calls compare

A run is a function of its config, its seed and its text, so a changed text is refused like a
changed field of the config.
"""

import dataclasses
from pathlib import Path

from lm.config import schema
from lm.data import dataset
from lm.runs import records


def text_facts(text: dataset.TokenDataset) -> dict:
    """Return the facts that identify the text of a run: its hash, and that of each source."""
    commits = {
        f"corpus.commit.{name}": manifest.versions["commit"]
        for name, manifest in text.manifests.items()
        if "commit" in manifest.versions
    }
    hashes = {f"corpus.hash.{name}": manifest.hash for name, manifest in text.manifests.items()}
    return {"corpus.hash": text.hash, "tokenizer.hash": text.tokenizer.hash} | hashes | commits


def check_same_text(run: schema.Run, text: dataset.TokenDataset) -> None:
    """Raise ValueError if the run was started with other text or with another tokenizer.

    text: dataset of the run as it is now. A run without records passes.
    """
    folder = records.run_dir(run)
    if changes := _changes(folder, text):
        raise ValueError(
            f"{folder} was started with other text: {'; '.join(changes)}: restore the text, or"
            f" choose a new name (start.run={run.name} starts from its weights)"
        )


def check_text_of_parent(run: schema.Run, parent: schema.Run, text: dataset.TokenDataset) -> None:
    """Raise ValueError if a branch continues its parent on text that has changed.

    A branch with another data config uses other text on purpose, and passes.
    """
    names = ("cache_dir", "local_cache_dir", "batch_size", "batch_size_warmup")
    own_values = {name: getattr(run.data, name) for name in names}
    is_same_data = dataclasses.replace(parent.data, **own_values) == run.data
    if run.start.restore != "full_state" or not is_same_data:
        return
    if changes := _changes(records.run_dir(parent), text):
        raise ValueError(
            f"start.run={parent.name!r} was trained on other text: {'; '.join(changes)}: restore"
            " the text, or set start.restore='weights'"
        )


def changed_sources(run: schema.Run, text: dataset.TokenDataset) -> list[str]:
    """Return the sources of a dataset whose documents differ from those that a run recorded."""
    facts = records.read_facts(records.run_dir(run))
    return _changed_sources(facts, text)


def _changed_sources(facts: dict, text: dataset.TokenDataset) -> list[str]:
    return [
        name
        for name, manifest in text.manifests.items()
        if facts.get(f"corpus.hash.{name}", manifest.hash) != manifest.hash
    ]


def _changes(folder: Path, text: dataset.TokenDataset) -> list[str]:
    """Return what differs between a dataset and the records of a run with the same config."""
    facts = records.read_facts(folder)
    changes = []
    if facts.get("tokenizer.hash", text.tokenizer.hash) != text.tokenizer.hash:
        change = f"data.tokenizer={text.data.tokenizer!r} is another tokenizer"
        if text.data.tokenizer.startswith("bpe:"):
            name = text.data.tokenizer.replace(":", "-")
            change += f" (delete {name}-* in {text.data.cache_dir!r} to train it again)"
        changes.append(change)
    changes += [f"{name} has changed" for name in _changed_sources(facts, text)]
    if not changes and facts.get("corpus.hash", text.hash) != text.hash:
        changes.append(f"{_describe_counts(facts, text)} has changed, or its tokenizer")
    return changes


def _describe_counts(facts: dict, text: dataset.TokenDataset) -> str:
    """Return the source whose numbers of documents differ from the facts, else all sources.

    Version 0.2.0 recorded no hash of each source.
    """
    different = [
        name
        for name, manifest in text.manifests.items()
        for split, n_documents in manifest.documents.items()
        if facts.get(f"documents.{split}.{name}", n_documents) != n_documents
    ]
    return " or ".join(dict.fromkeys(different or text.sources))
