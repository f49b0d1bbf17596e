"""Train a model of the ladder on a pod: long rows, bfloat16, rates by a published rule.

    uv run python -m experiments.plan --config=configs/pod.py:1T --config.mesh.fsdp=256 \\
        --config.mesh.tensor=8 --config.optim.grad_accumulation_steps=8 --target=tpu:v5p:8x16x16
    uv run python -m experiments.train --config=configs/pod.py:1B --config.mesh.fsdp=16

From 1B on, layers are recomputed in the backward pass. From 100B on, rows have 8192 tokens.
Learning rate, batch size, warm-up and weight decay follow hyperparameter_rules.apply_step_law: a
step has 131 thousand tokens at 60M, half a million at 1B and 17 million at 1T, and the warm-up has
2000 steps. Above 1B the rule is an extrapolation, so tune the learning rate on a ladder of sizes
first.

Hardware and time: not trained yet. `experiments.plan` estimates memory, time and cost per machine.
"""

from configs import web
from lm.config import hyperparameter_rules, model_sizes, schema

TOKENS_PER_PARAM = 20  # per active parameter: Hoffmann et al. 2022, arXiv:2203.15556


def get_config(size: str = "1B") -> schema.Run:
    """Return the recipe for a size of model_sizes.LADDER or model_sizes.EXPERTS."""
    run = web.get_config(size)
    run.name = f"pod-{size}"
    counts = model_sizes.count_parameters(model_sizes.resolved_model(run))
    n = counts["total"]
    run.model.dtype = "bfloat16"
    run.model.remat = "full" if n > 8e8 else "dots"
    run.model.attention_query_blocks = 8
    run.data.seq_len = 8192 if n > 8e10 else 2048
    hyperparameter_rules.apply_step_law(run, n_tokens=TOKENS_PER_PARAM * counts["active"])
    return run
