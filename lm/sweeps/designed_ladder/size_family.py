"""Further sizes of the recipe of a sweep: its runs at other sizes of model_sizes.LADDER.

    runs += size_family.extend_sizes(runs, "4M")

The recipe is known if its runs differ only in the shape of a ladder size and in simple rules: the
learning rate is constant or proportional to 1 / width, and the tokens are constant or proportional
to the parameters. The rules must reproduce the config of every run.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lm.config import model_sizes, schema
from lm.data.tokenization import run_tokenizer
from lm.laws.recipe_comparison import paired_runs
from lm.runs import records

SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff")
RULES = [(rate, tokens) for rate in ("constant", "width") for tokens in ("constant", "parameters")]
TOLERANCE = 1e-9  # relative, of a learning rate
STEP_TOLERANCE = 1  # of a number of steps, which is rounded


def extend_sizes(runs: Sequence[schema.Run], target_size: str) -> list[schema.Run]:
    """Return a run of each ladder size between the smallest run and the target that is missing.

    runs: of one seed or several. The result is empty if the rules do not reproduce all runs, such
    as for several token budgets per size, or if the target is no size of the ladder.
    """
    labels = [paired_runs.size_name({"name": run.name, "seed": run.seed}) for run in runs]
    if target_size not in model_sizes.LADDER or not {*labels} <= {*model_sizes.LADDER}:
        return []
    resolved = [run_tokenizer.resolve_tokenizer(copy.deepcopy(run)) for run in runs]
    order = list(model_sizes.LADDER)
    first = min(map(order.index, labels))
    missing = [s for s in order[first : order.index(target_size)] if s not in labels]
    for rules in RULES:
        derived = [_resize(resolved[0], label, rules) for label in labels]
        if all(map(_is_same, derived, resolved)):
            return [_resize(runs[0], size, rules) for size in missing]
    return []


def _resize(run: schema.Run, size: str, rules: tuple[str, str]) -> schema.Run:
    """Return the run at another size of the ladder."""
    resized = copy.deepcopy(run)
    shape = model_sizes.ladder_model(size)
    resized.model = dataclasses.replace(run.model, **{name: getattr(shape, name) for name in SHAPE})
    resized.name = f"{run.name.partition('/')[0]}/{size}"
    resized.is_prediction_target = False
    rate, tokens = rules
    if rate == "width":
        resized.optim.lr = run.optim.lr * run.model.d_model / resized.model.d_model
    if tokens == "parameters":
        counts = [
            model_sizes.count_parameters(model_sizes.resolved_model(r))["total"]
            for r in (run, resized)
        ]
        budget = model_sizes.training_tokens(run) * counts[1] / counts[0]
        resized.steps = model_sizes.steps_for_budget(resized, tokens=budget)
    return resized


def _is_same(derived: schema.Run, run: schema.Run) -> bool:
    """Return True if all fields agree that affect the result, except the seed."""
    first, second = (records.result_fields(r) for r in (derived, run))
    return all(_is_equal(name, first.get(name), second.get(name)) for name in {*first, *second})


def _is_equal(name: str, first: Any, second: Any) -> bool:
    if name in ("seed", "name"):
        return True
    if name == "steps":
        return abs(first - second) <= STEP_TOLERANCE
    if name == "optim.lr":
        return math.isclose(first, second, rel_tol=TOLERANCE)
    return first == second
