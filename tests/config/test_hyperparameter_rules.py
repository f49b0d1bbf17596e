"""Rules for learning rate and batch size against published numbers."""

import pytest

from lm.config import hyperparameter_rules


def test_kaplan_learning_rate_ends_where_the_paper_says():
    # "Breaks down" near 10^10 parameters; 2.41e-4 at 2.155e9 is read off the paper on the step law.
    assert hyperparameter_rules.kaplan_lr(2.155e9) == pytest.approx(2.41e-4, rel=0.01)
    with pytest.raises(ValueError, match=r"n=2e\+10 is beyond the rule"):
        hyperparameter_rules.kaplan_lr(2e10)


def test_kaplan_critical_batch_doubles_for_every_13_percent_of_loss():
    ratio = hyperparameter_rules.kaplan_batch(0.87 * 3) / hyperparameter_rules.kaplan_batch(3)
    assert ratio == pytest.approx(2, rel=0.05)
    assert (
        1e6 < hyperparameter_rules.kaplan_batch(2.8) < 2e6
    )  # "1-2 million tokens" for the largest


@pytest.mark.parametrize(
    "n, layers, d_model, lr, sequences",
    [(6.9e9, 30, 4096, 4.2e-4, 2304), (67e9, 95, 8192, 3.2e-4, 4608)],
)
def test_deepseek_rule_gives_the_settings_of_its_two_models(n, layers, d_model, lr, sequences):
    per_token = 72 * layers * d_model**2 + 12 * layers * d_model * 4096  # the paper's M
    choice = hyperparameter_rules.deepseek(per_token * 2e12)
    assert choice.lr == pytest.approx(lr, rel=0.03)
    assert choice.batch_tokens == pytest.approx(sequences * 4096, rel=0.1)


def test_porian_batch_is_what_the_authors_give_in_sequences():
    for n in (5e6, 1e8, 9e8):
        assert hyperparameter_rules.porian(n).batch_tokens == pytest.approx(
            2048 * 0.00037 * n**0.703, rel=0.001
        )


@pytest.mark.parametrize(
    "n, d, lr", [(536e6, 20e9, 1.5e-3), (536e6, 8e9, 1.2e-3), (268e6, 20e9, 3.4e-3)]
)
def test_step_law_lies_near_the_optima_it_was_fitted_to(n, d, lr):
    assert hyperparameter_rules.step_law(n, d).lr == pytest.approx(
        lr, rel=0.3
    )  # grid of factors 1.4


def test_rules_refuse_what_is_no_size():
    with pytest.raises(ValueError, match="n=0 must be a finite number above 0"):
        hyperparameter_rules.step_law(0, 1e9)
    with pytest.raises(ValueError, match="flops=nan"):
        hyperparameter_rules.deepseek(float("nan"))
