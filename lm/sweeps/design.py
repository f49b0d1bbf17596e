"""Create cooldown branches, and compare their final loss with independently trained runs.

    runs = design.cooldown_branches(run, tokens=[1e6, 2e6, 4e6])
    for branch in design.branch_agreement(records.load_runs("runs/branches")):
        print(branch["tokens"], branch["difference"], branch["agrees"])

A trunk run has a constant learning rate after its warm-up. A cooldown branch starts from a
checkpoint of the trunk run and decays the learning rate. An independent run trains from the first
step with the schedule of a branch. The spread of independent runs over seeds is the noise of the
comparison.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lm.config import model_sizes, optimizer_config, schema
from lm.config.schedules import batch_size_schedule
from lm.laws import comparability, run_table
from lm.sweeps import hyperparameter_values

SIZE, TOKENS, LOSS = "params.non_embedding", "tokens", "eval.loss"  # columns
LEVEL = 0.95  # confidence level of the intervals


def cooldown_branches(
    run: schema.Run, tokens: Sequence[float], decay: float = 0.2
) -> list[schema.Run]:
    """Return a trunk run with constant learning rate and one cooldown branch per token budget.

    All budgets together cost little more than the largest one (Hägele et al. 2024,
    arXiv:2405.18392). A branch restores the full state of the trunk. In the last fraction `decay`
    of its steps, the learning rate decays to optim.final_lr_fraction. Names end in "-trunk", "-2M"
    and so on. Budgets are exact within 1%. Rules for hyperparameters are resolved for the largest
    budget, because all runs need one learning rate and one batch size. Raises ValueError for an
    invalid budget or decay, and if a cooldown would begin during the warm-up of the trunk.
    """
    if not 0 < decay < 1 or not tokens or min(tokens) <= 0:
        raise ValueError(
            f"branches: tokens={list(tokens)} must be above 0, and decay={decay} in (0, 1)"
        )
    run = _without_rules(run, max(tokens))
    interval = max(
        round(0.01 * model_sizes.steps_for_budget(run, tokens=min(tokens)) * (1 - decay)), 1
    )
    first_steps = [
        round(model_sizes.steps_for_budget(run, tokens=n) * (1 - decay) / interval) * interval
        for n in sorted(tokens)
    ]
    trunk = copy.deepcopy(run)
    trunk.name = f"{run.name}-trunk"
    trunk.steps = first_steps[-1]
    trunk.is_prediction_target = False
    trunk.optim = _without_decay(trunk.optim, "constant")
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(trunk.data)
    optim = batch_size_schedule.resolve_tokens(trunk.optim, schedule, trunk.steps)
    n_warmup = optimizer_config.count_warmup_steps(optim, trunk.steps)
    if first_steps[0] <= n_warmup:
        raise ValueError(
            f"branches: the cooldown of tokens={min(tokens):g} begins at step {first_steps[0]},"
            f" within the {n_warmup} steps of warm-up of {trunk.name}. Use a shorter warm-up."
        )
    # The trunk saves a checkpoint where each branch begins.
    trunk.checkpoint_interval = math.gcd(
        *first_steps, model_sizes.round_to_multiple(run.checkpoint_interval, interval)
    )
    runs = [trunk]
    for first_step, budget in zip(first_steps, sorted(tokens), strict=True):
        branch = copy.deepcopy(run)
        branch.name = f"{run.name}-{budget / 1e6:g}M"
        branch.steps = round(first_step / (1 - decay))
        branch.optim = dataclasses.replace(_without_decay(run.optim, "wsd"), decay=decay)
        branch.start = schema.Start(run=trunk.name, step=first_step, restore="full_state")
        runs.append(branch)
    return runs


def _without_rules(run: schema.Run, tokens: float) -> schema.Run:
    """Return the run with the hyperparameters of its rules for a token budget, and no rules."""
    resolved = copy.deepcopy(run)
    resolved.steps = model_sizes.steps_for_budget(run, tokens=tokens)
    hyperparameter_values.resolve_rules(resolved)
    resolved.optim.lr_rule = resolved.optim.weight_decay_rule = ""
    resolved.data.batch_size_rule = ""
    return resolved


def _without_decay(optim: schema.Optimizer, schedule: str) -> schema.Optimizer:
    """Return the optimizer with another schedule, and without a number of decay steps or tokens."""
    return dataclasses.replace(optim, schedule=schedule, decay_steps=0, decay_tokens=0)


def branch_agreement(
    rows: Sequence[Mapping], y: str = LOSS, tolerance: float = 0.02, level: float = LEVEL
) -> list[dict]:
    """Compare each branch with the independent runs of its size and its token budget.

    Return dicts with the keys size, tokens, branch_loss, independent_loss (geometric mean),
    n_independent, difference, lo, hi and agrees. difference: log loss of the branch minus the mean
    log loss of the independent runs. lo, hi: interval of this difference for one more independent
    run, by Student's t with a standard deviation over seeds pooled over all budgets. tolerance:
    relative difference up to which budgets are equal. Raises ValueError if no branch has two
    independent runs.
    """
    branches, independent = _split_rows(rows, y)
    comparisons = []
    residuals: list[float] = []
    degrees = 0  # of freedom
    for branch in sorted(branches, key=lambda row: (row[SIZE], row[TOKENS])):
        log_losses = np.log([row[y] for row in independent if _is_same(row, branch, tolerance)])
        if len(log_losses):
            residuals += list(log_losses - log_losses.mean())
            degrees += len(log_losses) - 1
            comparisons.append(_compare(branch, y, log_losses))
    from scipy import special  # its import takes longer than that of all laws

    if not degrees:
        raise ValueError(
            f"{len(branches)} branches, {len(independent)} independent runs: a branch needs two"
            f" independent runs of its size and tokens with different seeds, as in"
            f" configs/sweeps/branches.py"
        )
    sd = float(np.sqrt(np.square(residuals).sum() / degrees))
    quantile = float(special.stdtrit(degrees, (1 + level) / 2))
    for comparison in comparisons:
        half_width = quantile * sd * (1 + 1 / comparison["n_independent"]) ** 0.5
        comparison |= {
            "lo": -half_width,
            "hi": half_width,
            "agrees": abs(comparison["difference"]) <= half_width,
        }
    return comparisons


def _split_rows(rows: Sequence[Mapping], y: str) -> tuple[list[Mapping], list[Mapping]]:
    """Return finished branches and finished independent runs with a finite loss."""
    finished = [
        row for row in rows if row["status"] == "done" and np.isfinite(run_table.to_number(row[y]))
    ]
    trunks = {comparability.trunk_name(row) for row in rows}
    branches = [row for row in finished if comparability.trunk_name(row)]
    independent = [
        row for row in finished if not row.get("start.run") and row["name"] not in trunks
    ]
    return branches, independent


def _compare(branch: Mapping, y: str, log_losses: np.ndarray) -> dict:
    """Return the comparison of a branch with independent runs, without its interval."""
    return {
        "size": branch[SIZE],
        "tokens": branch[TOKENS],
        "branch_loss": branch[y],
        "independent_loss": float(np.exp(log_losses.mean())),
        "n_independent": len(log_losses),
        "difference": float(np.log(branch[y]) - log_losses.mean()),
    }


def _is_same(row: Mapping, branch: Mapping, tolerance: float) -> bool:
    """Return True if a run has the size and, within tolerance, the tokens of a branch."""
    return row[SIZE] == branch[SIZE] and abs(row[TOKENS] / branch[TOKENS] - 1) <= tolerance
