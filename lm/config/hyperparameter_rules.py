"""Published rules for learning rate, batch size and weight decay by size, data and compute.

    step_law(n=1e9, d=20e9)         # RecommendedRates(lr=0.000996..., batch_tokens=441892...)
    deepseek(flops=1e20), porian(n=1e8), kaplan_lr(n=1e8), kaplan_batch(loss=3.0)
    apply_step_law(run, n_tokens)   # sets the batch size, the steps and the optimizer of a run
    published_lr_range(run)         # lowest and highest learning rate of the rules

Each rule was fitted to one recipe (tokenizer, schedule, optimizer, decay). Use a rule to choose the
range of a sweep, not instead of a sweep. The rules disagree by factors of two and more. All are for
the standard parametrization and for models above ten million parameters.

Units: batch sizes in tokens, losses in nats per token, peak learning rates of Adam or AdamW.
"""

import math
from typing import NamedTuple

from lm.config import model_sizes, schema

# Settings of the runs to which the Step Law was fitted, besides learning rate and batch size.
STEP_LAW_WARMUP_STEPS, STEP_LAW_FINAL_LR, STEP_LAW_WEIGHT_DECAY = 2000, 1e-5, 0.1
MIN_RULE_PARAMS = 1e7  # the rules are for larger models
MAX_KAPLAN_PARAMS = 1.2e10  # the learning rate of kaplan_lr is positive below
# Ranges of published training runs, with a margin. Values outside of them often fail.
USUAL_RANGES = {
    "optim.lr": (1e-7, 0.3),
    "optim.b1": (0, 0.99),
    "optim.b2": (0.5, 0.9999),
    "optim.eps": (1e-20, 1e-4),
    "optim.weight_decay": (0, 10),
    "optim.clip_norm": (0.01, 1e3),
    "optim.layer_decay": (0.1, 1),
    "model.norm_eps": (1e-9, 1e-3),
    "model.logit_softcap": (1, 1e3),
    "model.attention_softcap": (1, 1e3),
    "model.z_loss": (0, 0.1),
    "model.router_z_loss": (0, 0.1),
    "model.load_balancing_weight": (0, 1),
    "model.router_bias_rate": (0, 0.1),
    "model.rope_theta": (100, 1e9),
    "model.local_rope_theta": (100, 1e9),
    "model.lora_alpha": (0.1, 1e3),
    "model.base_width": (8, 2**16),
    "model.base_depth": (1, 2**10),
}


class RecommendedRates(NamedTuple):
    """Recommended learning rate and batch size."""

    lr: float  # peak learning rate of Adam or AdamW
    batch_tokens: float  # tokens per step


def kaplan_lr(n: float) -> float:
    """Return lr = 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, arXiv:2001.08361, appendix D.6).

    n: parameters without embeddings. Raises ValueError from 1.2e10, where lr is not positive.
    """
    lr = 0.003239 - 0.0001395 * math.log(_positive("n", n))
    if lr <= 0:
        raise ValueError(f"n={n:g} must be below 1.2e10, where lr is 0: use step_law")
    return lr


def kaplan_batch(loss: float) -> float:
    """Return the critical batch size in tokens, 2e8 / L^(1/0.21) (Kaplan et al. 2020, eq. 1.4).

    loss: training loss in nats per token. With this batch size, a run reaches the loss with twice
    the minimum number of steps and twice the minimum number of tokens.
    """
    return 2e8 / _positive("loss", loss) ** (1 / 0.21)


def deepseek(flops: float) -> RecommendedRates:
    """Return lr = 0.3118 C^-0.1250, batch = 0.2920 C^0.3271 (Bi et al. 2024, arXiv:2401.02954).

    flops: training FLOPs C without those of embedding and head. The source is equation 1.
    """
    c = _positive("flops", flops)
    return RecommendedRates(0.3118 * c**-0.1250, 0.2920 * c**0.3271)


def porian(n: float) -> RecommendedRates:
    """Return lr = 3.7 N^-0.36, batch = 0.7576 N^0.703 (Porian et al. 2024, arXiv:2406.19146).

    n: parameters with the head, without the embedding. The rule holds for compute-optimal runs.
    """
    return RecommendedRates(3.7 * _positive("n", n) ** -0.36, 0.7576 * n**0.703)


def step_law(n: float, d: float) -> RecommendedRates:
    """Return lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571 (Li et al. 2025, arXiv:2503.04715).

    n: parameters without embedding and head; d: training tokens.
    """
    lr = 1.79 * _positive("n", n) ** -0.713 * _positive("d", d) ** 0.307
    return RecommendedRates(lr, 0.58 * d**0.571)


def published_lr_range(run: schema.Run) -> tuple[float, float] | None:
    """Return the lowest and highest learning rate of kaplan_lr, deepseek, porian and step_law.

    The rates are those of the size and tokens of the run; a mixture of experts counts its active
    parameters. Return None where no rule holds: below MIN_RULE_PARAMS, for fine-tuning, for other
    parametrizations than the standard one, and for Lion. The updates of Muon have the size of those
    of AdamW (Liu et al. 2025, arXiv:2502.16982).
    """
    model = model_sizes.resolved_model(run)
    counts = model_sizes.count_parameters(model)
    n, n_tokens = counts["active_non_embedding"], model_sizes.training_tokens(run)
    if n < MIN_RULE_PARAMS or run.start.run:
        return None
    if model.parametrization != "standard" or run.optim.name == "lion":
        return None
    rates = [
        step_law(n, n_tokens).lr,
        deepseek(6.0 * n * n_tokens).lr,
        porian(n + counts["head"]).lr,
    ]
    rates += [kaplan_lr(n)] if n < MAX_KAPLAN_PARAMS else []
    return min(rates), max(rates)


def power_lines_decay(lr: float, n_steps: int, tokens_per_param: float) -> float:
    """Return the weight decay 1 / (lr * n_steps * tau) (Bergsma et al. 2025, arXiv:2505.13738).

    The timescale tau = 1.084 r^-0.527 is the fraction of the steps over which AdamW averages its
    updates. r: training tokens per parameter. lr: learning rate of the hidden matrices. The rule
    was fitted under muP to 111 million to 3.3 billion parameters.
    """
    timescale = 1.084 * _positive("tokens_per_param", tokens_per_param) ** -0.527
    return 1 / (_positive("lr", lr) * _positive("n_steps", n_steps) * timescale)


def finetuning_lr(n: float) -> float:
    """Return the learning rate for all weights of a model that others have pre-trained.

    The rate is a thirtieth of the Step Law rate at 20 tokens per parameter. It is 1.6e-5 at 7e9
    parameters, where Touvron et al. 2023 (arXiv:2307.09288, section 3.1) use 2e-5. n: parameters
    without embedding and head. The factor is a convention and not a fit.
    """
    return step_law(n, 20 * n).lr / 30


def unusual_values(run: schema.Run) -> list[str]:
    """Return the fields of a run outside the ranges of published runs, each as one phrase.

    The phrases explain a run that diverged or learned nothing. A value of 0 that switches a feature
    off is usual.
    """
    values = schema.flatten(run)
    phrases = [
        f"{field}={values[field]:g} is unusual (published runs: {low:g} to {high:g})"
        for field, (low, high) in USUAL_RANGES.items()
        if values[field] and not low <= values[field] <= high
    ]
    lr_range = published_lr_range(run)
    if lr_range and run.optim.lr > lr_range[1]:
        rules = f"published rules for this size: {lr_range[0]:.2g} to {lr_range[1]:.2g}"
        phrases.append(f"optim.lr={run.optim.lr:g} is large ({rules})")
    shrinkage = run.optim.lr * run.optim.weight_decay
    if shrinkage >= 1 and not run.optim.independent_weight_decay:
        product = f"optim.lr x optim.weight_decay = {shrinkage:g}"
        phrases.append(f"{product} removes all of a weight in one step (it must be below 1)")
    return phrases


def apply_step_law(run: schema.Run, n_tokens: float) -> None:
    """Set the batch size, the steps and the optimizer of a run by the Step Law.

    The batch size is the power of two that is nearest to the rule, so that a mesh can divide it.
    Weight decay, final learning rate and warm-up are those of the runs behind the law (Li et al.
    2025, arXiv:2503.04715): 0.1, 1e-5 and 2000 steps. In a shorter run, the warm-up is the fraction
    optim.warmup of the steps. It replaces optim.warmup and optim.warmup_tokens. A mixture of
    experts counts its active parameters. n_tokens: training tokens. The law was fitted to 60
    million to one billion parameters and up to 100 billion tokens; above, it is an extrapolation.
    """
    n_params = model_sizes.count_parameters(model_sizes.resolved_model(run))["active_non_embedding"]
    rates = step_law(n_params, n_tokens)
    run.optim.lr = rates.lr
    run.data.batch_size = 2 ** max(round(math.log2(rates.batch_tokens / run.data.seq_len)), 0)
    run.steps = model_sizes.steps_for_budget(run, tokens=n_tokens)
    run.optim.warmup_steps = min(STEP_LAW_WARMUP_STEPS, round(run.optim.warmup * run.steps))
    run.optim.warmup_tokens = 0
    if run.optim.warmup_steps:  # A fraction of 0 remains, because the default would be a warm-up.
        run.optim.warmup = schema.Optimizer.warmup
    run.optim.final_lr_fraction = min(STEP_LAW_FINAL_LR / rates.lr, 1.0)
    run.optim.weight_decay = STEP_LAW_WEIGHT_DECAY


def _positive(name: str, value: float) -> float:
    """Return the value. Raises ValueError unless it is finite and above 0."""
    if not value > 0 or math.isinf(value):
        raise ValueError(f"{name}={value!r} must be a finite number above 0")
    return value
