"""Hyperparameters from rules: published ones, and laws that are fitted to the user's own runs.

    optim.lr_rule            sets optim.lr
    optim.weight_decay_rule  sets optim.weight_decay
    data.batch_size_rule     sets data.batch_size, and steps and intervals for equal tokens

Rules:

    law:RUNS        lm.laws.hyperparameters of the runs in a folder, see configs/sweeps/tune.py;
                    law:notebooks/data/tune needs no training; lr is for the batch size of the run
    step_law        Li et al. 2025, arXiv:2503.04715: learning rate, batch size
    deepseek        Bi et al. 2024, arXiv:2401.02954: learning rate, batch size
    porian          Porian et al. 2024, arXiv:2406.19146: learning rate
    horizon:TOKENS  optim.lr is tuned for a run of TOKENS tokens; a run of T tokens uses
                    optim.lr * (TOKENS / T)^0.3 (Delphi, Marin project 2026), with muP or CompleteP
    power_lines     Bergsma et al. 2025, arXiv:2505.13738: weight decay

The rules apply when a config or a sweep is loaded. The run is validated before and after. A run
stores the numbers and the names of the rules.
"""

import functools
import math
import warnings

from lm.config import field_names, hyperparameter_rules, model_sizes, schema
from lm.laws.tuning import hyperparameter_law
from lm.runs import records

HORIZON_EXPONENT = 0.3
RULES = {
    "optim.lr_rule": ("law:RUNS", "step_law", "deepseek", "porian", "horizon:TOKENS"),
    "optim.weight_decay_rule": ("law:RUNS", "power_lines"),
    "data.batch_size_rule": ("law:RUNS", "step_law", "deepseek"),
}
MAX_INCREASE = 0.01  # expected loss increase of a law up to which there is no warning


def resolve_rules(run: schema.Run) -> None:
    """Set the hyperparameters of a valid run that have a rule.

    The batch size is the power of two rows that is nearest to the rule. Raises ConfigError for an
    unknown rule, for a run that restores the full state of another run, and for runs that do not
    determine a law.
    """
    fields = schema.flatten(run)
    rules = {field: str(fields[field]) for field in RULES if fields[field]}
    for field, rule in rules.items():
        _check_rule(field, rule)
        if run.start.run and run.start.restore == "full_state":
            raise schema.ConfigError(
                f"{field}={rule!r} contradicts start.restore='full_state', which continues with the"
                f" values of {run.start.run}: set {field}='', or start.restore='weights'"
            )
    if not rules:
        return
    counts = model_sizes.count_parameters(model_sizes.resolved_model(run))
    tokens = model_sizes.training_tokens(run)
    if rule := rules.get("data.batch_size_rule"):
        n_rows = _batch_tokens(rule, counts, tokens) / run.data.seq_len
        run.data.batch_size = 2 ** max(round(math.log2(n_rows)), 0)
        previous_steps = run.steps
        run.steps = model_sizes.steps_for_budget(run, tokens=tokens)
        _scale_intervals(run, run.steps / previous_steps)
    if rule := rules.get("optim.lr_rule"):
        run.optim.lr = _learning_rate(rule, run, counts, tokens)
    if rule := rules.get("optim.weight_decay_rule"):
        run.optim.weight_decay = _weight_decay(rule, run, counts, tokens)


def _check_rule(field: str, rule: str) -> None:
    """Raise ConfigError for a rule that the field does not have."""
    name, colon, argument = rule.partition(":")
    forms = {form.partition(":")[0]: ":" in form for form in RULES[field]}
    if name not in forms or forms[name] != bool(colon) or (colon and not argument):
        allowed = ", ".join(RULES[field])
        shown = field_names.shorten(repr(rule))
        raise schema.ConfigError(f"{field}={shown} is unknown; allowed: {allowed}")


def _scale_intervals(run: schema.Run, factor: float) -> None:
    """Scale the intervals in steps by a factor, so that they have the same number of tokens.

    An interval above 0 remains at least 1, and a multiple of another interval remains one.
    """

    def scale(interval: int) -> int:
        return max(round(interval * factor), 1) if interval else 0

    n_checkpoints = run.permanent_checkpoint_interval // max(run.checkpoint_interval, 1)
    n_evaluations = run.eval.task_interval // max(run.eval.interval, 1)
    run.log_interval = scale(run.log_interval)
    run.checkpoint_interval = scale(run.checkpoint_interval)
    run.permanent_checkpoint_interval = n_checkpoints * run.checkpoint_interval
    run.eval.interval = scale(run.eval.interval)
    run.eval.task_interval = n_evaluations * run.eval.interval


def _learning_rate(rule: str, run: schema.Run, counts: dict, tokens: float) -> float:
    """Return the peak learning rate of a rule."""
    name, _, argument = rule.partition(":")
    n = counts["active_non_embedding"]
    if name == "law":
        return _law_values("optim.lr_rule", argument, counts, tokens, _batch_of(run)).lr.value
    if name == "horizon":
        return run.optim.lr * (_parse_tokens(rule, argument) / tokens) ** HORIZON_EXPONENT
    if name == "deepseek":
        return hyperparameter_rules.deepseek(6.0 * n * tokens).lr
    if name == "porian":
        return hyperparameter_rules.porian(n + counts["head"]).lr
    return hyperparameter_rules.step_law(n, tokens).lr


def _batch_tokens(rule: str, counts: dict, tokens: float) -> float:
    """Return the tokens per step of a rule."""
    name, _, argument = rule.partition(":")
    n = counts["active_non_embedding"]
    if name == "law":
        batch = _law_values("data.batch_size_rule", argument, counts, tokens).batch_tokens
        if batch is None:
            raise _not_varied("data.batch_size_rule", rule, "batch size")
        return batch.value
    if name == "deepseek":
        return hyperparameter_rules.deepseek(6.0 * n * tokens).batch_tokens
    return hyperparameter_rules.step_law(n, tokens).batch_tokens


def _weight_decay(rule: str, run: schema.Run, counts: dict, tokens: float) -> float:
    """Return the weight decay of a rule, for the learning rate and batch size of the run."""
    name, _, argument = rule.partition(":")
    rate = 1.0 if run.optim.independent_weight_decay else run.optim.lr
    if name == "law":
        best = _law_values("optim.weight_decay_rule", argument, counts, tokens, _batch_of(run))
        if best.timescale is None:
            raise _not_varied("optim.weight_decay_rule", rule, "weight decay")
        return 1 / (rate * run.steps * best.timescale.value)
    ratio = tokens / counts["active_non_embedding"]
    return hyperparameter_rules.power_lines_decay(rate, run.steps, ratio)


def _batch_of(run: schema.Run) -> int:
    """Return the tokens per step of a run."""
    return run.data.batch_size * run.data.seq_len


def _law_values(
    field: str, folder: str, counts: dict, tokens: float, batch_tokens: int | None = None
) -> hyperparameter_law.BestHyperparameters:
    """Return the best hyperparameters of the law of a folder. Warn if they are uncertain.

    batch_tokens: tokens per step of the run; None for a batch size by the law.
    """
    try:
        best = _load_law(folder).predict(float(counts["non_embedding"]), tokens, batch_tokens)
    except ValueError as error:
        raise schema.ConfigError(f"{field}=law:{folder}: {error}") from None
    if best.loss_increase > MAX_INCREASE:
        warnings.warn(
            f"{field}=law:{folder}: at {best.factor:.3g} times the size x tokens of its runs the"
            f" law is uncertain: expected loss increase {best.loss_increase:.1%}",
            stacklevel=2,
        )
    return best


@functools.cache
def _load_law(folder: str) -> hyperparameter_law.HyperparameterLaw:
    """Fit the law to the runs in a folder, once per process. Show its warnings."""
    rows = records.load_runs(folder)
    if not rows:
        raise ValueError("the folder has no runs: name a tuning sweep, such as notebooks/data/tune")
    law = hyperparameter_law.hyperparameters(rows)
    for text in law.warnings:
        warnings.warn(f"law:{folder}: {text}", stacklevel=2)
    return law


def _not_varied(field: str, rule: str, name: str) -> schema.ConfigError:
    """Return the error of a law of runs that do not vary a hyperparameter."""
    return schema.ConfigError(
        f"{field}={rule!r}: its runs do not vary the {name}: train at least three values at one"
        " size and token budget"
    )


def _parse_tokens(rule: str, text: str) -> float:
    """Return the number of tokens of horizon:TOKENS."""
    try:
        tokens = float(text)
    except ValueError:
        tokens = 0.0
    if not 0 < tokens < math.inf:
        raise schema.ConfigError(
            f"optim.lr_rule={rule!r} must name a number of tokens above 0, such as horizon:1e9"
        )
    return tokens
