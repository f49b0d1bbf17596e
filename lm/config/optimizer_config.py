"""The config group of the optimizer, and the numbers of steps that follow from its fields.

    optimizer_config.count_warmup_steps(optim, run.steps)
    optimizer_config.compute_learning_rate(optim, run.steps, np.arange(run.steps), np)

The length of the warm-up is a fraction of the steps, a number of steps, or a number of tokens. The
length of the decay of the schedule wsd has the same three forms. A number above 0 replaces the
fraction, and only one of the two numbers may be above 0.

Weight decay per step, where lr(t) is the learning rate and `peak` its largest value:

coupled      weight_decay * lr(t), as in PyTorch and optax
independent  weight_decay * lr(t) / peak (Loshchilov and Hutter 2019, arXiv:1711.05101; Wortsman et
             al. 2023, arXiv:2309.14322)

lr_rule and weight_decay_rule name rules of lm/sweeps/hyperparameter_values.py.

The decay per step is equal at all widths and depths under every parametrization, because the
learning-rate factor of a weight does not change it. Qiu et al. 2025 (arXiv:2512.05620) recommend an
independent decay of 1 / width for compute-optimal runs: set weight_decay in the recipe. The factors
of optim.layer_decay also multiply the decay.
"""

import dataclasses
from types import ModuleType
from typing import Any, Literal

from lm.config import fields

field = fields.field  # A short name, because it occurs once per field.
MAX_TOKENS = 2**63 - 1


@fields.config_group("optim")
@dataclasses.dataclass
class Optimizer:
    """Optimizer, learning-rate schedule, weight decay and gradient handling.

    warmup_steps and warmup_tokens replace warmup; decay_steps and decay_tokens replace decay. The
    three factors of the weight decay multiply weight_decay. The other weights, the matrices of the
    layers, have the factor 1.
    """

    name: Literal["adamw", "lion", "muon"] = field(
        "adamw", "Optimizer; muon updates the matrices of the layers, adamw all other weights."
    )
    lr: float = field(3e-3, "Peak learning rate.", "vmapped", "traced", gt=0, le=1e38)
    lr_rule: str = field(
        "", "Rule that sets lr before a run starts: step_law, horizon:TOKENS, law:RUNS."
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = field(
        "cosine", "Learning rate after warm-up; wsd is warm-up, stable, decay."
    )
    warmup: float = field(0.05, "Fraction of the steps with linear warm-up.", ge=0, le=1)
    warmup_steps: int = field(0, "Steps of warm-up; 0 is the fraction optim.warmup.", ge=0)
    warmup_tokens: int = field(
        0, "Tokens of warm-up; 0 is the fraction optim.warmup.", ge=0, le=MAX_TOKENS
    )
    decay: float = field(0.2, "Fraction of the steps with decay, for wsd only.", ge=0, le=1)
    decay_steps: int = field(0, "Steps of decay, for wsd; 0 is the fraction optim.decay.", ge=0)
    decay_tokens: int = field(
        0, "Tokens of decay, for wsd; 0 is the fraction optim.decay.", ge=0, le=MAX_TOKENS
    )
    final_lr_fraction: float = field(
        0.1, "Final learning rate as a fraction of the peak.", ge=0, le=1, hash_name="lr_end"
    )
    b1: float = field(0.9, "Decay of the first moment; muon's matrices: 0.95.", ge=0, le=0.999999)
    b2: float = field(0.95, "Decay of the second moment.", ge=0, le=0.999999)
    b2_half_life_tokens: int = field(
        0,
        "Half-life of the second moment in tokens, instead of b2; 0 is b2 (arXiv:2507.07101).",
        ge=0,
        le=MAX_TOKENS,
    )
    eps: float = field(1e-8, "Constant added to the root of the second moment.", ge=1e-30)
    moment_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "Type of the stored first moment; the second moment is float32."
    )
    weight_decay: float = field(
        0.1, "Decoupled decay, times the learning rate; not on norms.", "vmapped", "traced", ge=0
    )
    weight_decay_rule: str = field(
        "", "Rule that sets weight_decay before a run starts: power_lines, law:RUNS."
    )
    independent_weight_decay: bool = field(
        False,
        "Multiply weight_decay by the schedule, not by the peak learning rate.",
        "vmapped",
        "traced",
    )
    embedding_decay_factor: float = field(
        1.0, "Factor of weight_decay for embedding and positions.", "vmapped", "traced", ge=0
    )
    head_decay_factor: float = field(
        1.0, "Factor of weight_decay for an untied head.", "vmapped", "traced", ge=0
    )
    norm_decay_factor: float = field(
        0.0, "Factor of weight_decay for norms and biases.", "vmapped", "traced", ge=0
    )
    layer_decay: float = field(1.0, "Learning rate of a layer, relative to the layer above.", gt=0)
    frozen: str = field("", "Paths or axes that are not trained, as embed,mlp.", hash_name="freeze")
    clip_norm: float = field(
        1.0, "Largest global gradient norm; 0 is off.", ge=0, smallest=1e-6, hash_name="clip"
    )
    grad_accumulation_steps: int = field(
        0,
        "Micro-batches per step. 0 is automatic: 1, and more for large steps on CPU.",
        "execution",
        "plan",
        ge=0,
        chunks="batch",
    )
    on_nonfinite: Literal["stop", "skip", "rewind"] = field(
        "stop", "Non-finite loss or gradient: stop, skip the update, or rewind.", "execution"
    )


def count_warmup_steps(optim: Optimizer, n_steps: int) -> int:
    """Return the number of steps of warm-up. n_steps: number of steps of the run.

    Raises ValueError if the number is in tokens: call batch_size_schedule.resolve_tokens
    first.
    """
    return _count_steps(optim, "warmup", n_steps)


def count_decay_steps(optim: Optimizer, n_steps: int) -> int:
    """Return the number of steps of decay of the schedule wsd, at least 1.

    n_steps: number of steps of the run. Raises ValueError if the number is in tokens.
    """
    return max(_count_steps(optim, "decay", n_steps), 1)


def compute_learning_rate(
    optim: Optimizer, n_steps: int, step: Any, arrays: ModuleType, peak: Any = None
) -> Any:
    """Return the learning rate at a step that counts from 0, or at an array of steps.

    n_steps: number of steps of the run. arrays: the module np or jnp, whose functions are used.
    peak: peak learning rate; None is optim.lr. optim: without fields in tokens, see resolve_tokens.
    The warm-up is linear and starts above 0. Schedules after the warm-up:

    cosine    half a cosine from peak to peak * final_lr_fraction (Loshchilov and Hutter 2017,
              arXiv:1608.03983)
    linear    linear decay from peak to peak * final_lr_fraction
    wsd       constant, then linear decay to peak * final_lr_fraction over the last steps
              (Hu et al. 2024, arXiv:2404.06395)
    constant  constant
    """
    warmup = count_warmup_steps(optim, n_steps)
    n_after_warmup = max(n_steps - 1 - warmup, 1)
    decay = count_decay_steps(optim, n_steps)
    progress = arrays.clip((step - warmup) / n_after_warmup, 0.0, 1.0)
    shape = {
        "cosine": lambda: 0.5 + 0.5 * arrays.cos(arrays.pi * progress),
        "linear": lambda: 1 - progress,
        "wsd": lambda: arrays.clip((n_steps - 1 - step) / decay, 0.0, 1.0),
        "constant": lambda: 1.0,
    }[optim.schedule]()
    final = 1.0 if optim.schedule == "constant" else optim.final_lr_fraction
    warmup_factor = arrays.minimum((step + 1) / (warmup + 1), 1.0)
    return (optim.lr if peak is None else peak) * warmup_factor * (final + (1 - final) * shape)


def _count_steps(optim: Optimizer, name: str, n_steps: int) -> int:
    """Return the steps of a part of the schedule. name: warmup or decay."""
    if n_tokens := getattr(optim, f"{name}_tokens"):
        problem = "needs the tokens per step: call batch_size_schedule.resolve_tokens first"
        raise ValueError(f"optim.{name}_tokens={n_tokens} {problem}")
    return getattr(optim, f"{name}_steps") or round(getattr(optim, name) * n_steps)
