"""Five kinds of text under one folder, and a vocabulary of 8192 learned from them.

    uv run python -m experiments.prepare --config=configs/mixture.py:my/corpora
    uv run python -m experiments.train --config=configs/mixture.py:my/corpora

my/corpora holds wikipedia/*.jsonl.gz, stackoverflow/..., one folder a source, JSON Lines with a
field "text". On two CPU cores 40 MB of text take about half a minute to prepare.
"""

from lm import sizes
from lm.config import Run

WEIGHTS = {"wikipedia": 0.25, "stackoverflow": 0.2, "quora": 0.1, "github": 0.2, "reddit": 0.25}


def get_config(folder: str = "data/corpora", size: str = "100K") -> Run:
    run = Run(name=f"mixture-{size}")
    run.model = sizes.model(size, vocab_size=8192)
    run.data.sources = {f"jsonl:{folder}/{name}/*.jsonl.gz": w for name, w in WEIGHTS.items()}
    run.data.tokenizer = "bpe:8192"
    run.data.drop_copies = True
    run.data.overlap = 13
    run.optim.lr = 0.5 / run.model.d_model
    run.steps = sizes.steps(run, tokens=1_800_000)
    return run
