"""Train on five kinds of text in one folder, with a BPE vocabulary of 8192 trained on them.

    uv run python -m experiments.prepare --config=configs/mixture.py:my/corpora
    uv run python -m experiments.train --config=configs/mixture.py:my/corpora

my/corpora contains one folder per source, such as wikipedia/*.jsonl.gz: JSON Lines with a field
"text".

Hardware and time: preparing 40 MB of text takes about half a minute on two CPU cores.
"""

from lm.config import model_sizes, schema

WEIGHTS = {"wikipedia": 0.25, "stackoverflow": 0.2, "quora": 0.1, "github": 0.2, "reddit": 0.25}


def get_config(folder: str = "data/corpora", size: str = "100K") -> schema.Run:
    """Return the recipe for a folder of sources and a size."""
    run = schema.Run(name=f"mixture-{size}")
    run.model = model_sizes.ladder_model(size)
    run.data.sources = {f"jsonl:{folder}/{name}/*.jsonl.gz": w for name, w in WEIGHTS.items()}
    run.data.tokenizer = "bpe:8192"
    run.data.drop_near_duplicates = True
    run.data.decontaminate_ngram = 13
    run.optim.lr = 0.5 / run.model.d_model
    run.steps = model_sizes.steps_for_budget(run, tokens=1_800_000)
    return run
