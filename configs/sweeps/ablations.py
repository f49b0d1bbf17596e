"""One change at a time to the 60K model, its parameters and tokens kept: what does each give?

    uv run python -m experiments.sweep --sweep=configs/sweeps/ablations.py

Parameters without embeddings are those of "base" to within 2%. Each change with two seeds, whose
distance is what a difference must exceed. Sixteen runs, about three minutes on two idle CPU cores.
"""

from configs import base
from lm import sizes

CHANGES = {
    "base": {},
    "tied": {"tied": True},  # of base's 76K parameters 8K fewer, all of them embedding
    "gqa": {"n_kv_heads": 1, "d_ff": 123},  # the MLP takes what keys and values leave
    "deep": {"d_model": 24, "n_layers": 7, "n_heads": 3, "n_kv_heads": 3, "d_head": 8, "d_ff": 88},
    "wide": {"d_model": 48, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "d_ff": 144},
    "heads": {"n_heads": 4, "n_kv_heads": 4, "d_head": 8},  # narrower, and more of them
    "softcap": {"logit_softcap": 30.0},
    "z-loss": {"z_loss": 1e-4},
}


def get_sweep(tokens: str = "600_000"):
    for name, knobs in CHANGES.items():
        for seed in (0, 1):
            run = base.get_config("60K")
            run.model = sizes.model("60K", **knobs)
            run.optim.lr = 0.5 / run.model.d_model
            run.name, run.seed = f"ablations/{name}-{seed}", seed
            run.steps = sizes.steps(run, tokens=int(tokens))
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            run.checkpoint_every = run.steps
            yield run
