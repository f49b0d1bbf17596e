"""Tests of accuracy from loss, of the two-step law and of the one-step law."""

import json
import types

import numpy as np
import pytest

from lm.laws.forms import downstream, power_laws


def tasks(noise=0.0, seed=0, n=30):
    rng = np.random.default_rng(seed)
    return [
        {
            "name": f"r{i}",
            "flops": 10 ** (18 + 4 * i / n),
            "loss": x,
            "acc": 1 - 0.75 / (1 + np.exp(-4 * (x - 0.9))) + noise * rng.standard_normal(),
        }
        for i, x in enumerate(np.linspace(1.8, 0.5, n))
    ]


def test_sigmoid_is_recovered():
    fit = downstream.accuracy_from_loss(tasks(), x="loss", y="acc", chance=0.25, bootstrap=0)
    assert fit.params == pytest.approx({"a": -0.75, "x0": 0.9, "k": 4.0, "b": 1.0}, rel=1e-3)


def test_sigmoid_is_within_its_bounds():
    fit = downstream.accuracy_from_loss(tasks(0.02), x="loss", y="acc", chance=0.25)
    assert -1 <= fit.params["a"] <= 0 <= fit.params["b"] <= 1
    for loss in (0.01, 5.0):
        prediction = fit.predict(loss)
        assert 0.25 <= prediction.lo <= prediction.hi <= 1


def test_exponential_fits_errors_and_accuracies():
    rows = [{"loss": x, "err": 0.8 - 2.5 * np.exp(-0.9 * x)} for x in np.linspace(2, 4, 6)]
    fit = downstream.accuracy_from_loss(rows, x="loss", y="err", form="exponential")
    assert fit.params == pytest.approx({"eps": 0.8, "k": 2.5, "gamma": 0.9}, rel=1e-4)
    for row in rows:
        row["acc"] = 1 - row["err"]
    mirror = downstream.accuracy_from_loss(rows, x="loss", y="acc", form="exponential")
    assert mirror.predict(2.5).value == pytest.approx(1 - fit.predict(2.5).value)


def test_anchor_is_not_counted_as_a_run():
    rows = tasks(0.01)[:10]
    free = downstream.accuracy_from_loss(rows, x="loss", y="acc", bootstrap=0)
    anchored = downstream.accuracy_from_loss(rows, x="loss", y="acc", anchor=(0, 1), bootstrap=0)
    assert anchored.n == free.n == 10
    assert abs(anchored.predict(0.01).value - 1) <= abs(free.predict(0.01).value - 1) + 1e-9


def test_evaluations_of_a_run_are_smoothed_and_grouped():
    rng = np.random.default_rng(0)
    rows = [
        {
            "run": f"run{r}",
            "tokens": i,
            "loss": x,
            "acc": 1 - 0.7 / (1 + np.exp(-4 * (x - 0.9))) + shift,
        }
        for r in range(12)
        for shift in [0.01 * rng.standard_normal()]
        for i, x in enumerate(np.linspace(1.8, 0.5 + r / 20, 20))
    ]
    fit = downstream.accuracy_from_loss(rows, x="loss", y="acc", run="run", drop=0.1, window=5)
    assert (fit.n, fit.n_runs) == (12 * 18, 12)


def test_task_at_chance_raises():
    rng = np.random.default_rng(0)
    rows = [{"loss": x, "acc": 0.25 + 0.005 * rng.standard_normal()} for x in np.linspace(3, 2, 20)]
    with pytest.raises(ValueError, match="acc is at chance"):
        downstream.accuracy_from_loss(rows, x="loss", y="acc", chance=0.25)


def test_accuracies_in_percent_raise_with_their_rows():
    rows = [{**row, "acc": 100 * row["acc"]} for row in tasks()]
    with pytest.raises(ValueError, match="between 0 and 1 .*r0"):
        downstream.accuracy_from_loss(rows, x="loss", y="acc")


def chinchilla_rows(noise=0.003):
    rng = np.random.default_rng(1)
    return [
        {
            "params": n,
            "tokens": d,
            "loss": (0.3 + 30 * n**-0.25 + 60 * d**-0.25) * np.exp(noise * rng.standard_normal()),
        }
        for n in np.geomspace(1e7, 1e9, 5)
        for d in (1e9, 1e10, 1e11)
    ]


def test_two_step_has_the_uncertainty_of_both_steps():
    step1 = power_laws.chinchilla(chinchilla_rows(), n="params", d="tokens", y="loss")
    step2 = downstream.accuracy_from_loss(tasks(0.01), x="loss", y="acc", chance=0.25)
    law = downstream.two_step(step1, step2)
    both = law.predict(5e9, 5e11)
    loss = step1.predict(5e9, 5e11, noise=False)
    second_only = step2.predict(loss.value)
    assert both.value == pytest.approx(second_only.value)
    assert both.hi - both.lo > 0.95 * (second_only.hi - second_only.lo)
    assert both.lo < both.value < both.hi and str(law).startswith("L(N, D) = ")
    assert "step 2: back-test: " in str(law) and law.output == "acc"
    json.dumps(law.to_dict(), allow_nan=False)


def test_two_steps_with_different_losses_raise():
    step1 = power_laws.chinchilla(chinchilla_rows(), n="params", d="tokens", y="loss", bootstrap=0)
    rows = [{"bpb": row["loss"], "acc": row["acc"]} for row in tasks()]
    with pytest.raises(ValueError, match="step1 predicts loss but step2 reads bpb"):
        downstream.two_step(
            step1, downstream.accuracy_from_loss(rows, x="bpb", y="acc", bootstrap=0)
        )
    with pytest.raises(ValueError, match="must be a fit of accuracy_from_loss"):
        downstream.two_step(step1, step1)


def test_one_step_predicts_accuracy_from_compute():
    rows = [
        {"name": str(c), "flops": c, "acc": 0.25 + 0.75 * np.exp(-50 * c**-0.1)}
        for c in np.geomspace(1e18, 1e22, 8)
    ]
    rows.append({"name": "guess", "flops": 1e15, "acc": 0.24})
    fit = downstream.one_step(rows, x="flops", y="acc", chance=0.25)
    assert fit.params == pytest.approx({"A": 50, "alpha": 0.1}, rel=1e-3)
    assert fit.predict(1e23).value == pytest.approx(0.25 + 0.75 * np.exp(-50 * 1e23**-0.1))
    assert fit.excluded[0][0] == "guess" and fit.score.mean < 1e-6


@pytest.mark.parametrize("form", downstream.FORMS)
def test_slopes_of_a_curve_equal_finite_differences(form):
    """The objective of one row is the squared residual, so its gradient is 2 r J."""
    losses = np.array([0.7, 1.1, 1.6, 2.3])
    accuracies = np.array([0.9, 0.7, 0.4, 0.3])
    build_problem = getattr(downstream, f"_{form}")
    problem = build_problem(losses, accuracies, {"L": "loss", "acc": "acc"})
    theta = {"sigmoid": [-0.6, 1.3, 0.2, 0.9], "exponential": [0.9, 0.35, 1.7]}[form]
    objective = problem.objective("squares", 1e-3)
    weights = np.eye(4)  # a problem per row
    _, gradient, *_ = objective(np.array([theta] * 4), accuracies, weights)
    for i, unit in enumerate(np.eye(len(theta))):
        up, down = (
            objective(np.array([theta] * 4) + step * unit, accuracies, weights)[0]
            for step in (1e-6, -1e-6)
        )
        assert gradient[:, i] == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-8)
    # The parameters with names give the same curve as theta in standard units.
    params = {name: value[0] for name, value in problem.natural(np.array([theta])).items()}
    residuals = problem.values(params, losses) - accuracies
    assert objective(np.array([theta] * 4), accuracies, weights)[0] == pytest.approx(residuals**2)


def test_anchor_is_a_point_of_the_objective():
    """The curve is that of the rows and the anchor; r_squared is that of the rows alone."""
    rows = tasks(0.02)[:12]
    options = {"x": "loss", "y": "acc", "chance": 0.25, "bootstrap": 0}
    anchored = downstream.accuracy_from_loss(rows, anchor=(0.1, 0.97), **options)
    as_row = downstream.accuracy_from_loss([*rows, {"loss": 0.1, "acc": 0.97}], **options)
    assert anchored.params == pytest.approx(as_row.params, rel=1e-6)
    assert anchored.predict(0.4).value == pytest.approx(as_row.predict(0.4).value)
    x, y = (np.array([row[k] for row in rows]) for k in ("loss", "acc"))
    errors = anchored.predict(x).value - y
    assert anchored.r_squared == pytest.approx(1 - np.mean(errors**2) / np.var(y))
    assert not any("explains only" in text for text in anchored.warnings)
    noise = [{"loss": 2 + 0.1 * i, "acc": 0.5 + 0.2 * (-1) ** i} for i in range(8)]
    unexplained = downstream.accuracy_from_loss(noise, **options)
    assert unexplained.r_squared < 0.5
    assert any("explains only" in text for text in unexplained.warnings)


def test_start_of_a_curve_passes_through_its_end_points():
    """A start of the exponential has the accuracies of the lowest and of the highest loss."""
    losses, accuracies = np.array([2.0, 1.0, 3.0, 4.0]), np.array([0.5, 0.8, 0.4, 0.3])
    problem = downstream._exponential(losses, accuracies, {"L": "loss", "acc": "acc"})
    for i, bend in enumerate(problem.starts[:, 2]):
        params = {name: values[i] for name, values in problem.natural(problem.starts).items()}
        assert problem.values(params, np.array([1.0, 4.0])) == pytest.approx([0.8, 0.3])
        assert params["gamma"] == pytest.approx(bend / 3)


def test_point_is_undetermined_if_a_step_does_not_determine_it():
    def step(is_unknown):
        return types.SimpleNamespace(
            values=lambda params, *points: points[0], params={},
            undetermined_at=None if is_unknown is None else lambda *_: np.array(is_unknown),
        )  # fmt: skip

    points, unknown, known = [np.ones(2)], [True, False], [False, False]
    for first, second, expected in (
        (unknown, known, unknown),
        (known, unknown, unknown),
        (unknown, None, unknown),
        (None, [False, True], [False, True]),
        (None, None, known),
    ):
        mask = downstream._is_undetermined(step(first), step(second), None, points)
        assert mask.tolist() == expected
