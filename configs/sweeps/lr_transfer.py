"""Does the best learning rate stay put where models become wider, or deeper?

    uv run python -m experiments.sweep --sweep=configs/sweeps/lr_transfer.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/lr_transfer.py:3      # seeds

Widths at the base depth under the standard parametrization and muP (Yang et al. 2022,
arXiv:2203.03466), depths at the base width under the standard one and CompleteP (Dey et al. 2025,
arXiv:2505.01618), each at seven learning rates. At the base shape they are the same, which is
trained once (drift.shared). notebooks/hyperparameters.ipynb draws it. 63 runs, some ten minutes on
two idle CPU cores.
"""

import dataclasses

from configs import base
from lm import sizes

RATES = [2.0**-power for power in range(8, 1, -1)]
SHAPES = {  # times the base width, times the base depth
    "standard": [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4)],
    "mup": [(2, 1), (4, 1)],
    "completep": [(1, 2), (1, 4)],
}


def get_sweep(n_seeds: str = "1"):
    for rule, shapes in SHAPES.items():
        for wide, deep in shapes:
            for rate in RATES:
                for seed in range(int(n_seeds)):
                    run = base.get_config("10K")
                    model = run.model
                    shape = sizes.reshaped(model, wide * model.d_model, deep * model.n_layers)
                    run.model = dataclasses.replace(shape, parametrization=rule, unroll=1)
                    run.optim.lr, run.optim.warmup, run.seed = rate, 0.1, seed
                    where = f"{run.model.d_model}x{run.model.n_layers}"
                    run.name = f"lr_transfer/{rule}-{where}-lr{rate:.2g}-{seed}"
                    run.steps = sizes.steps(run, tokens=200_000)
                    run.eval.n_completions = 0
                    run.checkpoint_every = run.steps
                    yield run
