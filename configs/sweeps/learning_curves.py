"""Train four sizes with three schedules and three peak learning rates, for forecasts of the loss.

    uv run python -m experiments.sweep --sweep=configs/sweeps/learning_curves.py --max_vmapped=3

lm.laws.forecast(lm.load_runs("runs/learning_curves"), RUN) forecasts the final loss of an
unfinished run from the finished runs. Each run has 30 evaluations.
experiments/benchmarks/learning_curves.py measures the errors of the forecasts.

Hardware and time: 36 runs, 36 minutes on two busy CPU cores with --max_vmapped=3.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "25K", "60K", "150K")
SCHEDULES = ("cosine", "linear", "wsd")
PEAK_FACTORS = (0.5, 1.0, 2.0)  # of the learning rate of the recipe
TOKENS = 1_228_800
N_EVALUATIONS = 30


def get_sweep():
    """Yield the runs of each size, schedule and peak learning rate."""
    for size in SIZES:
        for schedule in SCHEDULES:
            for factor in PEAK_FACTORS:
                run = base.get_config(size)
                run.name = f"learning_curves/{size}-{schedule}-x{factor:g}"
                run.optim.schedule, run.optim.warmup = schedule, 0.02
                run.optim.lr *= factor
                run.steps = model_sizes.steps_for_budget(run, tokens=TOKENS)
                run.eval.interval = run.steps // N_EVALUATIONS
                run.eval.n_sequences, run.eval.n_completions = 256, 0
                run.log_interval, run.checkpoint_interval = 5, run.steps
                yield run
