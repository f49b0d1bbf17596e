"""Train the tokenizer of data.tokenizer="bpe:SIZE" on the sources, or load it from the cache.

    tokenizer = prepare_tokenizer(run.data, Path("data"))

data/bpe-8192-91c07d44e3b5/
    tokenizer.json   tokenizer
    block_checksums.json   name of the folder, and the SHA-256 of tokenizer.json

A damaged tokenizer is trained again: the same texts give the same tokenizer.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.config import schema
from lm.data import splits, staging, tokenizers
from lm.data.prepared import block_checksums, temporary_folders
from lm.data.sources import documents, readers
from lm.runs import filesystem, json_files

SAMPLE_BYTES = 32_000_000  # bytes of text, over all sources, that train a tokenizer
FILE, CHECKSUM_FILE = "tokenizer.json", "block_checksums.json"
MAX_WORD_CHARACTERS = 256  # longest word, in characters, that trains a tokenizer undivided
# Runs of letters, digits, other characters or white space, which GPT-2 does not divide.
_LONG_WORD_PART = re.compile(
    r"([^\W\d_]{N}|\d{N}|(?:[^\w\s]|_){N}|\s{N})".replace("N", str(MAX_WORD_CHARACTERS))
)
_SPECIAL_PATTERN = re.compile(f"([{tokenizers.CHAT_TOKENS}])")
# See corpus.ProgressCallback.
ProgressCallback = Callable[[str, int, int, float], None]


def prepare_tokenizer(
    data: schema.Data, cache: Path, report: ProgressCallback | None = None
) -> tokenizers.Tokenizer:
    """Return the tokenizer of data.tokenizer. Train bpe:SIZE if `cache` does not contain it.

    cache: local folder of all prepared text. A damaged tokenizer is trained again, after a line on
    stderr. Raises ValueError if a file of another tokenizer cannot be read.
    """
    kind, _, size = data.tokenizer.partition(":")
    if kind != "bpe":
        return tokenizers.open_tokenizer(data.tokenizer)
    weights = sorted((name, weight) for name, weight in data.sources.items() if weight)
    inputs = [
        (name, weight, documents.source_fingerprint(name, cache), *splits.split_facts(name))
        for name, weight in weights
    ]
    facts = (size, inputs, data.heldout_fraction, data.on_error, SAMPLE_BYTES, "parts")
    folder = cache / f"bpe-{size}-{staging.content_key(staging.FORMAT, *facts)}"
    try:
        staging.download(data, folder)
        try:
            tokenizer = _open_trained(folder)
        except block_checksums.DamagedText as damage:
            tokenizer = _download_again(data, folder)
            if tokenizer is None:
                print(f"{damage}: the tokenizer is trained again", file=sys.stderr, flush=True)
        if tokenizer is None:
            _train(folder, _tokenizer_sample(data, weights, report), int(size))
            tokenizer = _open_trained(folder)
        staging.upload(data, folder)
    except OSError as error:
        raise staging.unwritable_cache(data, error) from None
    if tokenizer is None:
        raise ValueError(f"{folder} was deleted by another process: start the command again")
    return tokenizer


def _open_trained(folder: Path) -> tokenizers.Tokenizer | None:
    """Return the tokenizer of a folder, None if there is no folder.

    Raises DamagedText if a file is missing, or differs from its checksum.
    """
    if not folder.exists():
        return None
    path = folder / FILE
    if not path.exists():
        raise block_checksums.DamagedText(f"{path} is missing")
    content = path.read_bytes()
    if (folder / CHECKSUM_FILE).exists():
        try:
            stored = json_files.read_object(folder / CHECKSUM_FILE)
        except ValueError:
            problem = f"{folder / CHECKSUM_FILE} is not valid JSON"
            raise block_checksums.DamagedText(problem) from None
        if stored != _checksum_entries(folder, content):
            problem = f"{path} differs from its checksum in {CHECKSUM_FILE}"
            raise block_checksums.DamagedText(problem)
    else:
        note = f"note: {path} has no checksum, because version 0.2.0 trained it"
        block_checksums.print_note(note)
    try:
        return tokenizers.HFTokenizer(content.decode(errors="replace"), str(path))
    except ValueError as error:
        raise block_checksums.DamagedText(str(error).partition(": set another")[0]) from None


def _download_again(data: schema.Data, folder: Path) -> tokenizers.Tokenizer | None:
    """Replace a damaged local folder by its remote copy. Return its tokenizer, None without it."""
    if not filesystem.is_remote(data.cache_dir):
        return None
    shutil.rmtree(folder)
    staging.download(data, folder)
    try:
        return _open_trained(folder)
    except block_checksums.DamagedText:
        return None


def _train(folder: Path, texts: Iterator[str], size: int) -> None:
    """Train a tokenizer and write its folder, which replaces a damaged folder."""
    with temporary_folders.temporary_folder(folder.parent, folder.name) as temporary:
        tokenizer = train_bpe(texts, size)
        tokenizer.save(temporary)
        entries = _checksum_entries(folder, (temporary / FILE).read_bytes())
        json_files.write_object(temporary / CHECKSUM_FILE, entries)
        try:
            if _open_trained(folder) is not None:
                return  # another process has trained the tokenizer
        except block_checksums.DamagedText:
            shutil.rmtree(folder)
        if not temporary_folders.publish_folder(temporary, folder):
            _open_trained(folder)  # raises DamagedText if the other process wrote damaged files


def _checksum_entries(folder: Path, content: bytes) -> dict:
    """Return the content of block_checksums.json. The name detects files of another folder."""
    return {"folder": folder.name, FILE: block_checksums.sha256(content)}


def _tokenizer_sample(
    data: schema.Data, weights: list[tuple[str, float]], report: ProgressCallback | None
) -> Iterator[str]:
    """Yield the texts that train a tokenizer: training documents of all parts of each source.

    weights: (source, weight) pairs. Each source gives a fraction of SAMPLE_BYTES by its weight, or
    all its text if it has less.
    """
    total = sum(weight for _, weight in weights)
    on_error = readers.raise_error if data.on_error == "stop" else readers.ignore_error
    for source, weight in weights:
        split = splits.plan_split(source, data.heldout_fraction)

        def is_used(document: readers.Document, split: splits.Split = split) -> bool:
            return tokenizers.is_valid_text(document.text) and not split.is_heldout(document)

        n_documents = n_bytes = 0
        sample = documents.sample_source(source, SAMPLE_BYTES * weight / total, is_used, on_error)
        for document in sample:
            yield document.text
            n_documents, n_bytes = n_documents + 1, n_bytes + len(document.text.encode())
        if report:
            label = f"{data.tokenizer} from {source}"
            report(label, n_documents, n_bytes, 1.0)


def train_bpe(texts: Iterator[str], vocab_size: int) -> tokenizers.HFTokenizer:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016) with the words of GPT-2 (2019).

    Decoding restores any text. The same texts in the same order give the same tokenizer. The
    vocabulary is smaller than vocab_size if the texts have too few pairs to merge. The time is
    linear in the text: see `training_parts`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["\0"],  # the first token has the id 0, which is END
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    parts = (part for text in texts for part in training_parts(text))
    inner.train_from_iterator(parts, trainer)
    return tokenizers.HFTokenizer(inner.to_str())


def training_parts(text: str) -> list[str]:
    """Return the parts of a text that train a tokenizer.

    Special characters are removed. Words and white space of more than MAX_WORD_CHARACTERS are
    divided, because the time of training grows with the square of the longest word.
    """
    sections = _SPECIAL_PATTERN.split(text)[::2]
    return [part for section in sections for part in _LONG_WORD_PART.split(section) if part]
