"""A rung of the ladder with its MLP cut into experts: as many active parameters, more in all.

    uv run python -m experiments.train --config=configs/experts.py:100K
    uv run python -m experiments.train --config=configs/experts.py:100K,16

The argument is a dense rung and the number of experts; each token passes two, each half as wide as
the rung's MLP. Rungs of sizes.EXPERTS are recipes of configs/base.py like any other. On CPU
dropless costs as much as if a token passed every expert (lm/moe.py), so this one has boxes with
twice the places that an even load takes. On two CPU cores 100K trains in about half a minute.
"""

from configs import base
from lm.config import Run


def get_config(size: str = "100K,8") -> Run:
    rung, _, n_experts = size.partition(",")
    run = base.get_config(rung)
    run.model.n_experts = int(n_experts or 8)
    run.model.balance = "bias"
    run.model.dispatch, run.model.capacity = "capacity", 2.0
    run.name = f"experts-{rung}-{run.model.n_experts}"
    return run
