"""Six kinds of real text and some synthetic tasks, a vocabulary of 2048: the recipe of a ladder.

    uv run python -m experiments.prepare --config=configs/ladder.py:my/corpora
    uv run python -m experiments.train --config=configs/ladder.py:my/corpora,150K

my/corpora holds wikipedia/*.jsonl.gz, stackoverflow/..., one folder a source, JSON Lines with a
field "text". On two CPU cores 90 MB of text take about two minutes to prepare.
"""

from lm import sizes
from lm.config import Run

WEIGHTS = {
    **{"wikipedia": 0.2, "stackoverflow": 0.15, "quora": 0.1},
    **{"github": 0.15, "reddit": 0.15, "books": 0.15},
}
SKILLS = ("copy", "upper", "reverse", "sort", "recall", "brackets", "addition", "translate")


def get_config(folder_and_size: str = "data/corpora,150K") -> Run:
    folder, _, size = folder_and_size.partition(",")
    run = Run(name=f"ladder-{size}")
    run.model = sizes.model(size or "150K", vocab_size=2048)
    run.data.sources = {f"jsonl:{folder}/{name}/*.jsonl.gz": w for name, w in WEIGHTS.items()}
    run.data.sources["tasks:" + "+".join(SKILLS)] = 0.1
    run.data.tokenizer = "bpe:2048"
    run.data.drop_copies = True
    run.data.overlap = 13
    run.data.seq_len, run.data.batch_size = 256, 8
    run.optim.lr = 0.5 / run.model.d_model
    run.steps = sizes.steps(run, tokens=2_500_000)
    return run
