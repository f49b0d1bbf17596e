"""Measure whether the best learning rate stays constant when models become wider or deeper.

    uv run python -m experiments.sweep --sweep=configs/sweeps/lr_transfer.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/lr_transfer.py:3      # three seeds

Widths at the base depth use the standard parametrization and muP (Yang et al. 2022,
arXiv:2203.03466). Depths at the base width use the standard one and CompleteP (Dey et al. 2025,
arXiv:2505.01618). Each shape trains at seven learning rates. All parametrizations are equal at the
base shape, which trains once (lr_analysis.share_base_shape).
notebooks/04_learning_rate_transfer.ipynb plots the results.

Hardware and time: 63 runs, about ten minutes on two idle CPU cores.
"""

import dataclasses

from configs import base
from lm.config import model_sizes

RATES = [2.0**-power for power in range(8, 1, -1)]
SHAPES = {  # multiples of the base width and of the base depth
    "standard": [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4)],
    "mup": [(2, 1), (4, 1)],
    "completep": [(1, 2), (1, 4)],
}


def get_sweep(n_seeds: str = "1"):
    """Yield one run per parametrization, shape, learning rate and seed."""
    for rule, shapes in SHAPES.items():
        for width_factor, depth_factor in shapes:
            for rate in RATES:
                for seed in range(int(n_seeds)):
                    run = base.get_config("10K")
                    model = run.model
                    shape = model_sizes.resize_model(
                        model, width_factor * model.d_model, depth_factor * model.n_layers
                    )
                    run.model = dataclasses.replace(shape, parametrization=rule, scan_unroll=1)
                    run.optim.lr, run.optim.warmup, run.seed = rate, 0.1, seed
                    shape_name = f"{run.model.d_model}x{run.model.n_layers}"
                    run.name = f"lr_transfer/{rule}-{shape_name}-lr{rate:.2g}-{seed}"
                    run.steps = model_sizes.steps_for_budget(run, tokens=200_000)
                    run.eval.n_completions = 0
                    run.checkpoint_interval = run.steps
                    yield run
