"""Train a mixture of experts with as many active parameters as a dense model of the ladder.

    uv run python -m experiments.train --config=configs/experts.py:100K
    uv run python -m experiments.train --config=configs/experts.py:100K,16

The argument is a dense size and the number of experts. The router selects two experts per token,
each with half the width of the dense MLP. For the sizes of model_sizes.EXPERTS, use
configs/base.py. This recipe uses dispatch=capacity with twice the slots of an even load: on CPU,
dropless dispatch costs as much as all experts (lm/model/moe.py).

Hardware and time: the 100K model trains in about half a minute on two CPU cores.
"""

from configs import base
from lm.config import schema


def get_config(size: str = "100K,8") -> schema.Run:
    """Return the recipe for "SIZE,N_EXPERTS"."""
    dense_size, _, n_experts = size.partition(",")
    run = base.get_config(dense_size)
    run.model.n_experts = int(n_experts or 8)
    run.model.load_balancing = "bias"
    run.model.dispatch, run.model.capacity_factor = "capacity", 2.0
    run.name = f"experts-{dense_size}-{run.model.n_experts}"
    return run
