"""Rules for learning rate and batch size agree with published numbers."""

import pytest

from lm.config import hyperparameter_rules, model_sizes, optimizer_config, schema, validation


def test_kaplan_learning_rate_is_limited_to_its_range():
    """The paper states that the rule fails near 1e10 parameters.

    The rate 2.41e-4 at 2.155e9 parameters is quoted by Li et al. 2025, arXiv:2503.04715.
    """
    assert hyperparameter_rules.kaplan_lr(2.155e9) == pytest.approx(2.41e-4, rel=0.01)
    with pytest.raises(ValueError, match=r"n=2e\+10 must be below 1.2e10"):
        hyperparameter_rules.kaplan_lr(2e10)


def test_kaplan_batch_doubles_when_the_loss_drops_13_percent():
    """The paper states 1 to 2 million tokens for the largest models."""
    ratio = hyperparameter_rules.kaplan_batch(0.87 * 3) / hyperparameter_rules.kaplan_batch(3)
    assert ratio == pytest.approx(2, rel=0.05)
    assert 1e6 < hyperparameter_rules.kaplan_batch(2.8) < 2e6


@pytest.mark.parametrize(
    "n_layers, d_model, lr, n_sequences", [(30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608)]
)
def test_deepseek_rule_gives_the_settings_of_its_models(n_layers, d_model, lr, n_sequences):
    """The models have 7B and 67B parameters and were trained on 2e12 tokens."""
    flops_per_token = 72 * n_layers * d_model**2 + 12 * n_layers * d_model * 4096
    rates = hyperparameter_rules.deepseek(flops_per_token * 2e12)
    assert rates.lr == pytest.approx(lr, rel=0.03)
    assert rates.batch_tokens == pytest.approx(n_sequences * 4096, rel=0.1)


@pytest.mark.parametrize("n", [5e6, 1e8, 9e8])
def test_porian_batch_equals_the_published_sequences(n):
    batch_tokens = hyperparameter_rules.porian(n).batch_tokens
    assert batch_tokens == pytest.approx(2048 * 0.00037 * n**0.703, rel=0.001)


@pytest.mark.parametrize(
    "n, d, lr", [(536e6, 20e9, 1.5e-3), (536e6, 8e9, 1.2e-3), (268e6, 20e9, 3.4e-3)]
)
def test_step_law_is_near_the_optima_it_was_fitted_to(n, d, lr):
    """The authors searched a grid of learning rates with factors of 1.4."""
    assert hyperparameter_rules.step_law(n, d).lr == pytest.approx(lr, rel=0.3)


def test_rules_reject_numbers_that_are_not_positive():
    with pytest.raises(ValueError, match="n=0 must be a finite number above 0"):
        hyperparameter_rules.step_law(0, 1e9)
    with pytest.raises(ValueError, match="flops=nan must be a finite number above 0"):
        hyperparameter_rules.deepseek(float("nan"))


def test_power_lines_decay_has_the_published_timescale():
    """At one token per parameter the timescale is 1.084 of the steps; it falls with the root."""
    assert 1 / hyperparameter_rules.power_lines_decay(0.01, 1000, 1.0) == pytest.approx(10.84)
    decays = [hyperparameter_rules.power_lines_decay(0.01, 1000, r) for r in (20.0, 80.0)]
    assert decays[1] / decays[0] == pytest.approx(4**0.527)
    with pytest.raises(ValueError, match="n_steps=0 must be a finite number above 0"):
        hyperparameter_rules.power_lines_decay(0.01, 0, 20.0)


@pytest.mark.parametrize(
    "group, field, value",
    [
        ("model", "parametrization", "mup"),
        ("optim", "name", "lion"),
        ("start", "run", "parent"),
        ("model", "d_model", 64),
    ],
)
def test_range_of_rates_is_unknown_outside_of_the_rules(group, field, value):
    run = schema.Run(model=model_sizes.ladder_model("100M"), steps=10_000)
    assert hyperparameter_rules.published_lr_range(run) is not None
    setattr(getattr(run, group), field, value)
    assert hyperparameter_rules.published_lr_range(run) is None


@pytest.mark.parametrize(
    "fields, fraction",
    [({"warmup": 0.02}, 0.02), ({"warmup_tokens": 10**6}, 0.05), ({"warmup": 0.0}, 0.0)],
)
def test_step_law_replaces_any_other_warmup(fields, fraction):
    run = schema.Run(model=model_sizes.ladder_model("10M"), optim=schema.Optimizer(**fields))
    hyperparameter_rules.apply_step_law(run, n_tokens=1e8)
    validation.validate_run(run)
    assert optimizer_config.count_warmup_steps(run.optim, run.steps) == round(fraction * run.steps)
