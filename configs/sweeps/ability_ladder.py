"""Train seven sizes from 10K to 4M on prose, with three token budgets, and test their abilities.

    uv run python -m experiments.prepare --sweep=configs/sweeps/ability_ladder.py:my/text
    uv run python -m experiments.sweep --sweep=configs/sweeps/ability_ladder.py:my/text,my/tasks,1M
    uv run python -m experiments.sweep --sweep=configs/sweeps/ability_ladder.py:my/text,my/tasks

The argument is TEXT,TASKS,LARGEST. my/text contains a folder per source of WEIGHTS, with JSON Lines
as in configs/ladder.py, compressed as *.jsonl.gz. For other sources, copy this file and set WEIGHTS
to the names of their folders, with the fractions of the words: then none repeats more than another.
Of our text, no source is read completely. Each source has a held-out part: eval.loss.SOURCE is its
loss. my/tasks/blimp contains minimal pairs, see lm/evaluation/minimal_pairs/pair_files.py. All
branches are tested on all of them. Without TASKS, no ability is measured. The runs are in
runs/ability_ladder.

Each size has one trunk run and one cooldown branch per budget (design.cooldown_branches). Sizes up
to 400K have two more seeds, which are trained for the largest budget only. LARGEST is the largest
size that is trained, 4M by default. Its run of the largest budget is predicted from the smaller
sizes before it starts. The two commands above therefore predict 1M and then 4M. Learning rate,
weight decay and batch size follow the law of the runs in LAW, which was checked at 150K. A check at
1M with 0.8M tokens was better at twice the law's learning rate (training loss 5.21, not 5.25) and
worse at four times. Above 150K the rate is therefore the law's, times (size / 150K) ^ LR_EXPONENT.

Hardware and time: 9e14 FLOPs, about five hours on two idle CPU cores at 50 GFLOP/s. 4M took 80
minutes beside other work, including the minimal pairs.
"""

import os
from collections.abc import Sequence

from configs import ladder
from lm.config import schema
from lm.sweeps import design

SIZES = ("10K", "25K", "60K", "150K", "400K", "1M", "4M")
TOKENS = (2_500_000, 5_000_000, 10_000_000)
SEEDS = {"1M": (0,), "4M": (0,)}  # other sizes have three seeds
# Prose, and its fractions of the words. Sources of code are left out.
WEIGHTS = {
    **{"reddit": 0.32, "books": 0.30, "wikipedia": 0.13, "wikinews": 0.12, "quora": 0.085},
    **{"tinystories": 0.03, "shakespeare": 0.015},
}
LR_EXPONENT = 0.25
LAW = "notebooks/data/tune"  # records of sweeps/tune.py, relative to the working directory


def recipe(corpora: str, tasks: str, size: str) -> schema.Run:
    """Return the run of a size. tasks: folder with minimal pairs in blimp, "" for no tasks."""
    run = ladder.get_config(f"{corpora},{size}")
    run.name = f"ability_ladder/{size}"
    run.data.sources = {f"jsonl:{corpora}/{name}/*.jsonl.gz": w for name, w in WEIGHTS.items()}
    run.data.tokenizer, run.data.heldout_fraction = "bpe:4096", 0.03
    run.optim.warmup = 0.02
    run.eval.n_sequences, run.eval.n_completions = 256, 512
    run.eval.tasks = f"pair:{tasks}/blimp" if tasks else ""
    if not os.path.isdir(LAW):
        raise ValueError(
            f"LAW={LAW} is not a folder: run the command in the folder of the project, or copy the"
            " records of configs/sweeps/tune.py to it"
        )
    run.optim.lr_rule = run.optim.weight_decay_rule = f"law:{LAW}"
    run.data.batch_size_rule = f"law:{LAW}"
    return run


def split_argument(argument: str, defaults: Sequence[str]) -> list[str]:
    """Return the values between commas. An empty or missing value is replaced by its default.

    Raises ValueError for more values than defaults.
    """
    values = argument.split(",")
    if len(values) > len(defaults):
        raise ValueError(
            f"argument={argument} has {len(values)} parts between commas: it has at most"
            f" {len(defaults)}, see the docstring of the sweep"
        )
    values += [""] * (len(defaults) - len(values))
    return [value or default for value, default in zip(values, defaults, strict=True)]


def get_sweep(argument: str = ""):
    """Yield the trunk runs and cooldown branches for "TEXT,TASKS,LARGEST"."""
    corpora, tasks, largest = split_argument(argument, ("data/corpora", "", SIZES[-1]))
    if largest not in SIZES:
        raise ValueError(f"size={largest} is not in the ladder: use one of {', '.join(SIZES)}")
    for size in SIZES[: SIZES.index(largest) + 1]:
        for seed in SEEDS.get(size, (0, 1, 2)):
            run = recipe(corpora, tasks, size)
            run.name += f"-seed{seed}" * (seed > 0)
            run.seed = seed
            trunk, *branches = design.cooldown_branches(run, TOKENS)
            _correct_learning_rate((trunk, *branches), size)
            trunk.eval.tasks, trunk.eval.n_completions = "", 0
            branches[-1].is_prediction_target = size == largest and not seed
            yield from (trunk, *(branches[-1:] if seed else branches))


def _correct_learning_rate(runs: Sequence[schema.Run], size: str) -> None:
    """Increase the learning rates of a size above 150K, without the weight decay per step."""
    units = {"K": 1e3, "M": 1e6}
    ratio = float(size[:-1]) * units[size[-1]] / 150e3
    factor = max(1.0, ratio) ** LR_EXPONENT
    for run in runs:
        run.optim.lr *= factor
        run.optim.weight_decay /= factor
