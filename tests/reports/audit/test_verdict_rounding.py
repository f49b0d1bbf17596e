"""Rounded results and intervals that agree with the exact verdict."""

from lm.reports.audit import prediction_results, verdict_rounding


def test_rounding_does_not_change_a_verdict():
    assert verdict_rounding.count_digits(1.192, 1.0924, 1.2372) == 4
    assert verdict_rounding.count_digits(1.09185, 1.0, 1.0918) == 6  # outside by 5e-5
    assert verdict_rounding.count_digits(1.0918, 1.0, 1.09185) == 4
    assert verdict_rounding.format_percentages(0.5, 0.06, 0.9996) == ["50.0", "6.0", "100.0"]
    assert verdict_rounding.format_percentages(1, 0.06, 0.99996) == ["100.000", "6.000", "99.996"]
    assert verdict_rounding.format_percentages(0.3062, 0.30622, 0.5)[:2] == ["30.620", "30.622"]
    texts = verdict_rounding.format_percentages(0.0596, 0.05951, 0.059599)
    assert texts == ["5.9600", "5.9510", "5.9599"]


def test_perfect_score_is_not_printed_inside_its_interval():
    quantity = {"name": "eval.task.upper.accuracy", "method": "two_step", "level": 0.9}
    quantity |= {"measured": 1.0, "lo": 0.06, "hi": 0.9997, "is_inside": False}
    text = prediction_results._describe(quantity)
    assert text.endswith("was 100.00%, outside the 90% interval 6.00% to 99.97% (two-step).")
