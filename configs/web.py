"""The web by its kinds, Wikipedia, news, Reddit, code, questions and books: for who has a network.

    uv run python -m experiments.prepare --config=configs/web.py --workers=16
    uv run python -m experiments.train --config=configs/web.py:100M

The names are those of TensorFlow Datasets. Prepare each once, on a machine with TensorFlow and
Apache Beam, and copy the folder: tfds build wikipedia/20230601.en --file_format=array_record
--data_dir=D; then set TFDS_DATA_DIR=D here. dolma holds code, Stack Exchange, Common Crawl, papers
and books. A dump of your own (Quora, Stack Overflow) joins as jsonl:quora/*.jsonl.zst?field=answer.
"""

from lm import sizes
from lm.config import Run

SOURCES = {
    "tfds:wikipedia/20230601.en/train": 0.15,
    "tfds:lm1b/train": 0.05,
    "tfds:c4/en/train": 0.35,
    "tfds:reddit/train?field=content": 0.1,
    "tfds:dolma/train": 0.3,
    "tfds:pg19/train?field=book_text": 0.05,
}


def get_config(size: str = "100M") -> Run:
    run = Run(name=f"web-{size}")
    run.model = sizes.model(size, vocab_size=32_768)
    run.data.sources = dict(SOURCES)
    run.data.tokenizer = "bpe:32768"
    run.data.heldout = 0.001
    run.data.broken = "skip"
    run.data.min_words = 50
    run.data.max_repeats = 0.3
    run.data.drop_copies = True
    run.data.overlap = 13
    run.data.seq_len, run.data.batch_size = 1024, 256
    run.data.max_epochs = 4.0  # beyond, text seen again teaches little: Muennighoff 2023
    run.steps = sizes.steps(run, tokens=20 * sizes.counts(run.model)["total"])
    return run
