"""Fine-tune the weights of another run on other text until the held-out loss rises.

    uv run python -m experiments.train --config=configs/finetune.py:runs/base-100K \\
        --sources='{"text:my/folder": 1, "code": 0}'

The model and the tokenizer are those of the parent run. The new run is runs/tuned/PARENT. Sources
with weight 0 are evaluated but not trained on. Their loss measures how much the model forgets.

Hardware and time: the 100K model takes about 10 seconds on two CPU cores.
"""

import dataclasses

from configs import base
from lm.config import hyperparameter_rules, model_sizes, schema
from lm.data.sources import path_permissions
from lm.data.tokenization import run_tokenizer
from lm.runs import records


def get_config(parent: str = "") -> schema.Run:
    """Return the recipe for a run directory. The default parent run is base-100K."""
    tuned = start_from(parent, lr_fraction=1 / 3)
    tuned.data.sources = {"code": 1.0, "docs": 0.0}
    tuned.steps = 400
    tuned.eval.interval, tuned.eval.patience = 40, 3
    tuned.eval.n_sequences, tuned.eval.n_completions = 256, 0
    return tuned


def start_from(parent_folder: str, lr_fraction: float) -> schema.Run:
    """Return a run named tuned/PARENT that starts from the weights of a parent run.

    The run has the model, data fields and optimizer of its parent. Its learning rate is that of the
    parent times lr_fraction, or hyperparameter_rules.finetuning_lr for an imported model. The rules
    of the parent are for pre-training and are removed.
    parent_folder: a run directory; "" is the run of configs/base.py. Cache folders outside the
    working directory become the defaults, because the parent may come from a stranger.
    """
    if parent_folder:
        path_permissions.check_links(parent_folder)
    parent = records.read_config(parent_folder) if parent_folder else base.get_config()
    tuned = schema.Run(name=f"tuned/{parent.name.replace('/', '-')}", dir=parent.dir)
    tuned.model, tuned.optim = parent.model, _without_lengths(parent.optim)
    tuned.data = path_permissions.own_data(parent.data)
    tuned.optim.lr_rule = tuned.optim.weight_decay_rule = tuned.data.batch_size_rule = ""
    tuned.start.run = parent.name
    if parent_folder and "imported.family" in records.read_facts(records.run_dir(parent)):
        n_params = model_sizes.count_parameters(parent.model)["active_non_embedding"]
        tuned.optim.lr = hyperparameter_rules.finetuning_lr(n_params)
    else:
        tuned.optim.lr = parent.optim.lr * lr_fraction
    return run_tokenizer.resolve_tokenizer(tuned)


def _without_lengths(optim: schema.Optimizer) -> schema.Optimizer:
    """Return the optimizer with a warm-up and a decay in fractions of the steps.

    A number of steps or tokens of the pre-training may exceed the whole fine-tuning.
    """
    changes: dict[str, float] = {}
    for part in ("warmup", "decay"):
        if getattr(optim, f"{part}_steps") or getattr(optim, f"{part}_tokens"):
            default = getattr(schema.Optimizer, part)
            changes |= {f"{part}_steps": 0, f"{part}_tokens": 0, part: default}
    return dataclasses.replace(optim, **changes)
