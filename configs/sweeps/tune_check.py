"""Check the law of hyperparameters at 16 times the FLOPs of the largest runs of tune.py.

    uv run python -m experiments.sweep --sweep=configs/sweeps/tune_check.py --max_vmapped=5

Five learning rates with three seeds train 150K parameters on 7.8 million tokens. The middle rate is
lm.laws.hyperparameters(lm.load_runs("notebooks/data/tune")).predict(150448, 7.8e6, 1024).lr, and
the others are 1/4, 1/2, 2 and 4 times this number. The batch size is the power of two that is
nearest to the law. The weight decay has the best timescale at the learning rate of each run. These
are the values of optim.lr_rule, data.batch_size_rule and optim.weight_decay_rule with
law:notebooks/data/tune. They are written as numbers, because a factor multiplies the first one.
experiments/benchmarks/hyperparameter_law.py compares them with the law and shows the result.

Hardware and time: 15 runs, about 25 minutes on two idle CPU cores. One program trains the five
rates of a seed. The seeds train one after the other.
"""

from configs import base
from lm.config import model_sizes

SIZE, TOKENS = "150K", 7_800_000
BATCH_SIZE = 8  # rows of 128 tokens; the law gives 1018 tokens per step
LEARNING_RATE = 0.00417
TIMESCALE = 0.369  # of the weight decay, as a fraction of all steps
FACTORS = (0.25, 0.5, 1, 2, 4)


def get_sweep(n_seeds: str = "3"):
    """Yield one run per seed and learning rate."""
    for seed in range(int(n_seeds)):
        for factor in FACTORS:
            run = base.get_config(SIZE)
            run.seed = seed
            run.data.batch_size = BATCH_SIZE
            run.steps = model_sizes.steps_for_budget(run, tokens=TOKENS)
            run.optim.lr = LEARNING_RATE * factor
            run.optim.weight_decay = 1 / (run.optim.lr * run.steps * TIMESCALE)
            run.name = f"tune_check/{SIZE}-lrx{factor:g}-seed{seed}"
            run.eval.n_completions = 0
            run.checkpoint_interval = run.steps
            yield run
