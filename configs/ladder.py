"""Train on six kinds of real text and on synthetic tasks, with a BPE vocabulary of 2048.

    uv run python -m experiments.prepare --config=configs/ladder.py:my/corpora
    uv run python -m experiments.train --config=configs/ladder.py:my/corpora,150K

my/corpora contains one folder per source, such as wikipedia/*.jsonl.gz: JSON Lines with a field
"text".

Hardware and time: preparing 90 MB of text takes about two minutes on two CPU cores.
"""

from lm.config import model_sizes, schema

WEIGHTS = {
    **{"wikipedia": 0.2, "stackoverflow": 0.15, "quora": 0.1},
    **{"github": 0.15, "reddit": 0.15, "books": 0.15},
}
SKILLS = ("copy", "upper", "reverse", "sort", "recall", "brackets", "addition", "translate")


def get_config(folder_and_size: str = "data/corpora,150K") -> schema.Run:
    """Return the recipe for "FOLDER,SIZE"."""
    folder, _, size = folder_and_size.partition(",")
    size = size or "150K"
    run = schema.Run(name=f"ladder-{size}")
    run.model = model_sizes.ladder_model(size)
    run.data.sources = {f"jsonl:{folder}/{name}/*.jsonl.gz": w for name, w in WEIGHTS.items()}
    run.data.sources["tasks:" + "+".join(SKILLS)] = 0.1
    run.data.tokenizer = "bpe:2048"
    run.data.drop_near_duplicates = True
    run.data.decontaminate_ngram = 13
    run.data.seq_len, run.data.batch_size = 256, 8
    run.optim.lr = 0.5 / run.model.d_model
    run.steps = model_sizes.steps_for_budget(run, tokens=2_500_000)
    return run
