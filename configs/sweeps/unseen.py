"""Tuning on instructions: what does it do for tasks that were in no tuning set, and from what size?

    uv run python -m experiments.sweep --sweep=configs/sweeps/unseen.py

A task is an order of letters and a way to write them: "back upper dab=BAD". Pre-training shows 19
of the 24 tasks as lines of text. Tuning shows 1 to 13 of these as conversations. All models are
then asked in conversations for two clusters that tuning never shows: KNOWN, whose text was in
pre-training, and NEW, compositions that no text holds. notebooks/transfer.ipynb draws it. About
eight minutes on two idle CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "25K", "60K", "100K")
NEW = [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2)]  # (order, spelling): see families.ORDERS, SPELLINGS
KNOWN = [(1, 3), (2, 1), (3, 2), (4, 3), (5, 1)]
TUNED = [
    *[(1, 2), (2, 0), (0, 3), (3, 1), (4, 0), (2, 3), (0, 1)],
    *[(5, 0), (4, 2), (1, 0), (5, 3), (0, 2), (3, 0)],
]
CLUSTERS = (1, 4, 13)  # of TUNED
SEEDS = (0, 1)
CHAT = "&template=chat"


def name(pair: tuple[int, int]) -> str:
    return f"apply?order={pair[0]}&spelling={pair[1]}"


def source(pairs: list, dials: str = "") -> str:
    return "tasks:" + "+".join(name(pair) + dials for pair in pairs)


def asked(pairs: list, dials: str = "") -> str:
    return " ".join(name(pair) + dials for pair in pairs)


def get_sweep():
    for size in SIZES:
        parent = base.get_config(size)
        parent.name = f"unseen/{size}-pretrained"
        parent.data.sources = {source([*TUNED, *KNOWN, (0, 0)]): 0.9, "docs": 0.1}
        parent.data.unseen = ",".join(map(name, NEW))
        parent.steps = sizes.steps(parent, tokens=3_000_000)
        parent.eval.n_sequences, parent.eval.n_completions = 128, 0
        parent.eval.tasks = " ".join([asked(KNOWN + NEW), asked(KNOWN + NEW, CHAT)])
        yield parent
        for n in CLUSTERS:
            for seed in SEEDS:
                run = base.get_config(size)
                run.name = f"unseen/{size}-{n}-clusters-{seed}"
                run.seed = seed
                run.start.run = parent.name
                run.data.sources = {source(TUNED[:n], CHAT): 0.95, "docs": 0.05}
                run.data.unseen = ",".join(map(name, KNOWN + NEW))
                run.data.rows, run.data.score = "whole", "answers"
                run.optim.lr /= 4
                run.steps = 200
                run.eval.n_sequences, run.eval.n_completions = 128, 0
                run.eval.tasks = asked(TUNED[:n] + KNOWN + NEW, CHAT)
                yield run
