"""Fine-tune the weights of another run on other text until the held-out loss rises.

    uv run python -m experiments.train --config=configs/finetune.py:runs/base-100K \\
        --sources='{"text:my/folder": 1, "code": 0}'

The model is the model of the parent run. Sources with weight 0 are evaluated but not
trained on. Their loss measures how much the model forgets.

Hardware and time: the 100K model takes about 10 seconds on two CPU cores.
"""

from configs import base
from lm.config import schema
from lm.runs import records


def get_config(parent: str = "") -> schema.Run:
    """Return the recipe for a run directory. The default parent run is base-100K."""
    run = records.read_config(parent) if parent else base.get_config()
    tuned = schema.Run(name=f"{run.name}-tuned", dir=run.dir, model=run.model)
    tuned.start.run = run.name
    tuned.data = run.data
    tuned.data.sources = {"code": 1.0, "docs": 0.0}
    tuned.optim = run.optim
    tuned.optim.lr = run.optim.lr / 3
    tuned.steps = 400
    tuned.eval.interval, tuned.eval.patience = 40, 3
    tuned.eval.n_sequences, tuned.eval.n_completions = 256, 0
    return tuned
