"""A rung of the ladder as it would run on a pod: long rows, bfloat16, half a million tokens a step.

    uv run python -m experiments.plan --config=configs/pod.py:1T --config.mesh.fsdp=256 \
        --config.mesh.tensor=8 --config.data.batch_size=256 --target=tpu:v5p:8x16x16
    uv run python -m experiments.train --config=configs/pod.py:1B --config.mesh.fsdp=16

Never trained here: what it takes on which machine is what the plan is for. From 100B on rows are of
8192 tokens; from 1B on layers are computed again in the backward pass.
"""

from configs import web
from lm import sizes
from lm.config import Run

TOKENS_PER_PARAM = 20  # that a token passes: Hoffmann et al. 2022, arXiv:2203.15556


def get_config(size: str = "1B") -> Run:
    run = web.get_config(size)
    run.name = f"pod-{size}"
    counts = sizes.counts(run.model)
    n = counts["total"]
    run.model.dtype = "bfloat16"
    run.model.remat = "full" if n > 8e8 else "dots"
    run.model.attention_blocks = 8
    run.data.seq_len = 8192 if n > 8e10 else 2048
    run.data.batch_size = 256
    run.steps = sizes.steps(run, tokens=TOKENS_PER_PARAM * counts["active"])
    return run
