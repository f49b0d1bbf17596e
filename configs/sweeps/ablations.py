"""Compare eight variants of the 60K model at equal parameters and tokens.

    uv run python -m experiments.sweep --sweep=configs/sweeps/ablations.py

Parameters without embeddings equal those of "base" within 2%. Each variant has two seeds. The
argument is the number of training tokens. A difference between variants means something only if it
exceeds the difference between seeds.

Hardware and time: 16 runs, about three minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

CHANGES = {
    "base": {},
    "tied": {"tie_embeddings": True},  # 8K of the 76K parameters fewer: one embedding matrix
    "gqa": {"n_kv_heads": 1, "d_ff": 123},  # the MLP gets the parameters of keys and values
    "deep": {"d_model": 24, "n_layers": 7, "n_heads": 3, "n_kv_heads": 3, "d_head": 8, "d_ff": 88},
    "wide": {"d_model": 48, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "d_ff": 144},
    "heads": {"n_heads": 4, "n_kv_heads": 4, "d_head": 8},  # more and narrower heads
    "softcap": {"logit_softcap": 30.0},
    "z-loss": {"z_loss": 1e-4},
}


def get_sweep(tokens: str = "600_000"):
    """Yield two seeds of each variant."""
    for name, changes in CHANGES.items():
        for seed in (0, 1):
            run = base.get_config("60K")
            run.model = model_sizes.ladder_model("60K", **changes)
            run.optim.lr = 0.5 / run.model.d_model
            run.name, run.seed = f"ablations/{name}-{seed}", seed
            run.steps = model_sizes.steps_for_budget(run, tokens=int(tokens))
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            run.checkpoint_interval = run.steps
            yield run
