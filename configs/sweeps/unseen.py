"""Tuning on instructions: what does it do for tasks that were in no tuning set, and from what size?

    uv run python -m experiments.sweep --sweep=configs/sweeps/unseen.py

A task is an order of letters and a way to write them, "back upper dab=BAD". Pre-training shows each
order and each way by itself, as text. Tuning shows conversations of some pairs, 1 to 8 of them; all
models are then asked for the pairs of UNSEEN, which no text holds: both skills are known, their
composition and the form of the question are new. notebooks/transfer.ipynb draws it. About twelve
minutes on two idle CPU cores.
"""

from configs import base
from lm import sizes
from lm.config import Run

SIZES = ("10K", "25K", "60K", "100K")
UNSEEN = [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2)]
SEEN = [(2, 1), (1, 3), (4, 2), (3, 1), (5, 3), (1, 2), (5, 1), (2, 3), (3, 2), (4, 3)]
CLUSTERS = (2, 5, 10)  # of SEEN that are tuned on; the first five have every skill
SEEDS = (0, 1)
SINGLE = [(order, 0) for order in range(6)] + [(0, spelling) for spelling in (1, 2, 3)]
CHAT = "&template=chat"


def name(pair: tuple[int, int]) -> str:
    return f"apply?order={pair[0]}&spelling={pair[1]}"


def source(pairs, dials: str = "") -> str:
    return "tasks:" + "+".join(name(pair) + dials for pair in pairs)


def asked(run: Run, pairs, template: str) -> str:
    return " ".join(f"{name(pair)}{template}" for pair in pairs)


def get_sweep():
    for size in SIZES:
        parent = base.get_config(size)
        parent.name = f"unseen/{size}-pretrained"
        parent.data.sources = {source(SINGLE): 0.8, "docs": 0.2}
        parent.data.unseen = ",".join(map(name, [*SEEN, *UNSEEN]))
        parent.steps = sizes.steps(parent, tokens=1_800_000)
        parent.eval.n_sequences, parent.eval.n_completions = 128, 0
        parent.eval.tasks = " ".join(
            [asked(parent, SINGLE, ""), asked(parent, UNSEEN, ""), asked(parent, UNSEEN, CHAT)]
        )
        yield parent
        for n in CLUSTERS:
            for seed in SEEDS:
                run = base.get_config(size)
                run.name = f"unseen/{size}-{n}-clusters-{seed}"
                run.seed = seed
                run.start.run = parent.name
                run.data.sources = {source(SEEN[:n], CHAT): 1.0, "docs": 0.0}
                run.data.unseen = ",".join(map(name, UNSEEN))
                run.data.rows, run.data.score = "whole", "answers"
                run.optim.lr /= 2
                run.steps = 250
                run.eval.n_sequences, run.eval.n_completions = 128, 0
                run.eval.tasks = asked(run, [*SEEN[:n], *UNSEEN], CHAT)
                yield run
