"""Text on which a finished run is evaluated: its own held-out text, or other text.

    text = open_evaluation_text(run, {"text:my/folder": 1.0})
    text.dataset.heldout("text:my/folder", 64)      # rows in the tokens of the run
    text.parts["text:my/folder"]                    # "all documents"

The tokenizer is always the file in the run directory. A tokenizer that is trained on other text
would have other tokens.
"""

import dataclasses
import json
import os
from typing import NamedTuple

from lm.config import fields, schema
from lm.data import corpus, dataset, tokenizers
from lm.data.prepared import block_checksums, corpus_manifest, recorded_text
from lm.data.sources import documents
from lm.data.tokenization import run_tokenizer
from lm.runs import records

ALL_DOCUMENTS, HELDOUT_PART = "all documents", "the held-out part"


class EvaluationText(NamedTuple):
    """A dataset for evaluation.

    parts: {source: ALL_DOCUMENTS or HELDOUT_PART}, the documents that are evaluated.
    """

    dataset: dataset.TokenDataset
    parts: dict[str, str]


def load_run_tokenizer(run: schema.Run) -> tokenizers.Tokenizer:
    """Load the tokenizer of a run directory. Raises ValueError if its file is missing."""
    return tokenizers.open_tokenizer(run_tokenizer.saved_tokenizer(run))


def run_data(run: schema.Run) -> schema.Data:
    """Return the data config of a run with the tokenizer file of its directory."""
    return dataclasses.replace(run.data, tokenizer=run_tokenizer.saved_tokenizer(run))


def open_evaluation_text(
    run: schema.Run,
    sources: dict[str, float] | None = None,
    report: corpus.ProgressCallback | None = None,
) -> EvaluationText:
    """Prepare and open the text on which a run is evaluated.

    sources: weights of the sources; None is the sources of the run. A source of the run, and a
    source that shares files with one, contributes its held-out part. All documents of other sources
    are evaluated, without the filters of the training text. data.seq_len may differ from the
    training. report: see corpus.prepare_corpus. Raises ValueError for text that cannot be read, and
    for a source without a complete row. If a source has changed since the training, None raises
    ValueError, and `sources` gives a note.
    """
    data, is_named = run_data(run), sources is not None
    sources = data.sources if sources is None else sources
    own, shared, other = _group_sources(data, sources)
    if (own or shared) and not data.heldout_fraction:
        raise ValueError(
            f"data.heldout_fraction=0: the run was trained on all of {', '.join([*own, *shared])}:"
            " evaluate other text with --sources"
        )
    # Decontamination and near-duplicates depend on all sources of the run.
    has_dependencies = data.decontaminate_ngram or data.drop_near_duplicates
    own_sources = data.sources if has_dependencies else {name: data.sources[name] for name in own}
    unfiltered = _without_filters(data)
    groups = [
        (own, dataclasses.replace(data, sources=own_sources)),
        (shared, dataclasses.replace(unfiltered, sources=dict.fromkeys(shared, 1.0))),
        (
            other,
            dataclasses.replace(
                unfiltered, sources=dict.fromkeys(other, 1.0), heldout_fraction=1.0
            ),
        ),
    ]
    manifests: dict[str, corpus_manifest.Manifest] = {}
    for names, group_data in groups:
        prepared = corpus.prepare_corpus(group_data, report) if names else {}
        manifests |= {name: prepared[name] for name in names}
    manifests = {name: manifests[name] for name in sources}
    data = dataclasses.replace(data, sources=sources, unique_tokens=0)
    text = dataset.TokenDataset(data, run.seed, manifests)
    _check_trained_text(run, text, own, may_differ=is_named)
    parts = {name: ALL_DOCUMENTS if name in other else HELDOUT_PART for name in sources}
    for name, part in parts.items():
        if not len(text.heldout(name, 1)):
            raise ValueError(
                f"{name}: {part} give no row of data.seq_len={data.seq_len} tokens: add text, or"
                " use a smaller data.seq_len"
            )
    return EvaluationText(text, parts)


def _check_trained_text(
    run: schema.Run, text: dataset.TokenDataset, own: list[str], may_differ: bool
) -> None:
    """Raise ValueError if a source of the run has other documents than during the training.

    own: sources of the run that are evaluated. may_differ: print a note instead.
    """
    folder = records.run_dir(run)
    changed = [name for name in recorded_text.changed_sources(run, text) if name in own]
    facts = records.read_facts(folder)
    if own and own == list(run.data.sources) and f"corpus.hash.{own[0]}" not in facts:
        # Version 0.2.0 recorded one hash of all sources.
        data = dataclasses.replace(records.read_config(folder).data, sources=run.data.sources)
        text_hash = dataset.text_hash(data, text.manifests)
        changed = [] if facts.get("corpus.hash", text_hash) == text_hash else own
    if not changed:
        return
    problem = f"{' or '.join(changed)} has changed since the training of {run.name}"
    if may_differ:
        block_checksums.print_note(f"note: {problem}: some held-out documents may be new")
        return
    flag = json.dumps({name: run.data.sources[name] for name in own})
    raise ValueError(
        f"{problem}: restore the text, or evaluate it as it is with --sources='{flag}'"
    )


def _group_sources(
    data: schema.Data, sources: dict[str, float]
) -> tuple[list[str], list[str], list[str]]:
    """Return the sources of the run, sources that share files with those, and other sources."""
    training_files = {file for source in data.sources for file in _files(source)}
    own = [name for name in sources if name in data.sources]
    foreign = [name for name in sources if name not in data.sources]
    shared = [name for name in foreign if not training_files.isdisjoint(_files(name))]
    return own, shared, [name for name in foreign if name not in shared]


def _files(source: str) -> set[tuple]:
    """Return the identities of the files of a source; the empty set if they cannot be read."""
    try:
        fingerprint = documents.source_fingerprint(source)
    except (OSError, ValueError):
        return set()
    items = [item if isinstance(item, tuple) else (item,) for item in fingerprint]
    return {(os.path.abspath(name), *rest) for name, *rest in items}


def _without_filters(data: schema.Data) -> schema.Data:
    """Return the data config with defaults for the fields that select training documents."""
    defaults = schema.Data()
    names = set(fields.fields_with("corpus", schema.Data)) - {"on_error"}
    filters = {name: getattr(defaults, name) for name in names}
    return dataclasses.replace(data, **filters, forbidden_tasks="", unique_tokens=0)
