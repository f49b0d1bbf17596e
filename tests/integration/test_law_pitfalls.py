"""Twenty-three pitfalls of fitting scaling laws, one test each.

The rows are in notebooks/data/published, or synthetic.
"""

import csv
import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from lm.laws import backtesting
from lm.laws.forms import (
    compute_optimal,
    downstream,
    evaluation_curves,
    isoflop,
    log_linear,
    power_laws,
)

DATA = pathlib.Path(__file__).parent.parent.parent / "notebooks" / "data" / "published"
NAMES: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss"}
INCLUDED = {"in_fit": 1}


@functools.cache
def rows(case="chinchilla-epoch"):
    with open(DATA / f"{case}.csv") as file:
        return list(csv.DictReader(file))


@functools.cache
def headline():
    return power_laws.chinchilla(rows(), **NAMES, where=INCLUDED)


def synthetic_rows(noise=0.0, ratios=(5, 20, 80), alpha=0.34, beta=0.28, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "name": f"{n:.3g}x{m}",
            "params": n,
            "tokens": n * m,
            "flops": 6 * n * n * m,
            "loss": (1.8 + 300 * n**-alpha + 700 * (n * m) ** -beta)
            * np.exp(noise * rng.standard_normal()),
        }
        for n in np.geomspace(1e7, 1e9, 6)
        for m in ratios
    ]


def test_01_the_scale_of_the_objective_does_not_matter():
    weighted = [{**row, "w": 1 / 240} for row in rows()]
    fit = power_laws.chinchilla(weighted, **NAMES, where=INCLUDED, weights="w", bootstrap=0)
    assert fit.params == pytest.approx(headline().params, rel=1e-5)
    assert fit.objective == pytest.approx(headline().objective / 240)
    assert fit.gradient < 1e-5


@pytest.mark.parametrize(
    "start",
    [
        {
            "log_A": np.log(406.4),
            "log_B": np.log(410.7),
            "log_E": np.log(1.69),
            "alpha": 0.34,
            "beta": 0.28,
        },
        {"log_A": 0, "log_B": 0, "log_E": 0, "alpha": 0.5, "beta": 0.5},
    ],
)
def test_02_single_bad_start_reaches_the_optimum(start):
    fit = power_laws.chinchilla(rows(), **NAMES, where=INCLUDED, starts=[start], bootstrap=0)
    assert fit.n_starts == 1 and fit.objective <= 0.0010183


def test_03_tiny_weights_do_not_stop_the_fit():
    weighted = [{**row, "w": 1e-15} for row in synthetic_rows(0.003)]
    start = [{"E": 1.0, "A": np.exp(5), "B": np.exp(5), "alpha": 0.1, "beta": 0.1}]
    fit = power_laws.chinchilla(weighted, **NAMES, weights="w", starts=start, bootstrap=0)
    assert fit.params["alpha"] == pytest.approx(0.34, abs=0.05) and not fit.warnings


def test_04_flat_objective_has_a_warning_or_an_error():
    narrow = [row for row in synthetic_rows(0.004) if float(row["params"]) < 4e7]
    fit = power_laws.chinchilla(narrow, **NAMES, loss="log_squares")
    assert any("determine" in text for text in fit.warnings)
    with pytest.raises(ValueError, match="in every row"):
        power_laws.chinchilla(narrow[:3], **NAMES)


@pytest.mark.slow
def test_05_huber_delta_is_printed_and_changes_the_fit():
    narrow, wide = (
        power_laws.chinchilla(rows(), **NAMES, where=INCLUDED, delta=d, bootstrap=0)
        for d in (1e-7, 1e1)
    )
    absolute = power_laws.chinchilla(rows(), **NAMES, where=INCLUDED, loss="absolute", bootstrap=0)
    squares = power_laws.chinchilla(
        rows(), **NAMES, where=INCLUDED, loss="log_squares", bootstrap=0
    )
    narrow.backtester = None  # it would be computed to print the fit
    assert narrow.params["beta"] == pytest.approx(absolute.params["beta"], abs=1e-3)
    assert wide.params == pytest.approx(squares.params, rel=1e-5)
    assert "huber (delta 1e-07)" in str(narrow)


def test_06_squares_and_huber_are_different_estimators():
    huber, squares = (
        power_laws.chinchilla(
            rows(),
            **NAMES,
            where=lambda r: r["in_fit"] == "1" and float(r["flops"]) < 1e21,
            loss=loss,
            bootstrap=0,
        )
        for loss in ("huber", "squares")
    )
    squares.backtester = None  # it would be computed to print the fit
    assert huber.params["beta"] == pytest.approx(0.396, abs=1e-3)
    assert squares.params["beta"] == pytest.approx(0.459, abs=1e-3)
    assert "sum of squares" in str(squares)


def test_07_five_excluded_runs_change_beta():
    all_runs = power_laws.chinchilla(rows(), **NAMES, bootstrap=0)
    assert all_runs.params["beta"] - headline().params["beta"] == pytest.approx(0.086, abs=0.002)
    assert [reason for _, reason in headline().excluded] == ["in_fit is 0, not 1"] * 5


def test_08_percentile_intervals_of_a_skewed_b_are_positive():
    fit = headline()
    lo, hi = fit.interval("B")
    assert fit.params["B"] - 1.96 * fit.se["B"] < 0 < lo
    assert hi - fit.params["B"] > 1.5 * (fit.params["B"] - lo)
    assert fit.se["a"] / fit.derived["a"] < 0.05 < fit.se["B"] / fit.params["B"]


def test_09_the_definition_of_n_changes_the_exponent():
    optima = [row for row in rows("isoflop-optima-tables") if row["table"] == "nanochat_jan26"]
    table = backtesting.compare_conventions(
        log_linear.log_linear, optima, by="count", x="flops", y="params_opt"
    )
    assert [round(row["exponent"], 2) for row in table.rows] == [0.54, 0.37, 0.7]


def test_10_nominal_budgets_change_the_exponent():
    where: dict[str, Any] = {
        "table": "nanochat_jan26",
        "count": "kaplan_style_projections_and_head",
    }
    table = backtesting.compare_conventions(
        log_linear.log_linear,
        rows("isoflop-optima-tables"),
        x=["flops", "flops_as_printed"],
        y="params_opt",
        where=where,
    )
    assert [round(row["exponent"], 3) for row in table.rows] == [0.536, 0.524]


def test_11_parameters_are_stored_with_all_digits():
    without_score = dataclasses.replace(headline(), backtester=None)
    stored = json.loads(json.dumps(without_score.to_dict()))["params"]
    assert stored == headline().params
    rounded = {k: float(f"{v:.2g}") for k, v in stored.items()}
    n, d = headline().x
    error = headline().values(rounded, n, d) / headline().y - 1
    assert np.abs(error).mean() > 1.5 * headline().mare


def test_13_mean_of_a_falling_curve_has_a_bias():
    curve = [{"run": "a", "tokens": i, "loss": 3 - 0.1 * i} for i in range(10)]
    last, mean = (
        evaluation_curves.final_evaluations(curve, ["loss"], last=k)[0]["loss"] for k in (1, 5)
    )
    assert mean - last == pytest.approx(0.2)


@pytest.mark.slow
def test_14_curves_are_reduced_or_resampled_as_whole_runs():
    train = [row for row in rows("olmo-ladder") if row["split"] == "train"]
    finals = evaluation_curves.final_evaluations(train, ["c4_loss"], last=1)
    assert len(finals) == 16
    names: dict[str, Any] = {"n": "params", "d": "tokens", "y": "c4_loss"}
    final_fit = power_laws.chinchilla(finals, **names, bootstrap=0)
    late = [row for row in train if int(row["ckpt"]) > 0.5 * int(row["n_ckpts"])]
    curve_fit = power_laws.chinchilla(late, **names, group="run", bootstrap=50)
    assert curve_fit.n_runs == 16
    middle = [row for row in late if int(row["ckpt"]) < 0.7 * int(row["n_ckpts"])]
    assert backtesting.holdout(final_fit, middle).mean > 2 * final_fit.mare


def test_15_minimum_outside_the_sizes_is_excluded():
    fit = isoflop.isoflop(
        rows(), x="params", y="loss", c="isoflop_budget", where=INCLUDED, bootstrap=0
    )
    assert fit.excluded[0][0] == "1e+20 FLOPs" and "below the smallest" in fit.excluded[0][1]


def test_16_parabolas_are_biased_if_the_exponents_differ():
    asymmetric = [row for row in rows("approach2-synthetic") if row["surface"] == "asymmetric"]
    sweep: dict[str, Any] = {"x": "tokens", "y": "loss", "bootstrap": 0}
    automatic = isoflop.isoflop(asymmetric, **sweep)
    wide = isoflop.isoflop(asymmetric, **sweep, method="parabola")
    narrow = isoflop.isoflop(asymmetric, **sweep, method="parabola", nearest=5)
    law = power_laws.chinchilla(asymmetric, **NAMES, bootstrap=0)
    true = compute_optimal.allocation(law, 1e22).d
    assert wide.predict(1e22).value / true == pytest.approx(0.769, abs=0.01)
    assert narrow.predict(1e22).value / true > 0.95
    assert automatic.predict(1e22).value / true == pytest.approx(1, abs=0.02)


def test_17_influential_budget_has_a_warning():
    budgets = np.geomspace(6e18, 1e22, 10)
    sweep = []
    for i, c in enumerate(budgets):
        best = (c / 6) ** 0.5 * (1.35 if i == 9 else 1)
        sweep += [
            {"flops": c, "params": best * f, "loss": 2 + 0.05 * np.log(f) ** 2}
            for f in (0.2, 0.5, 1, 2, 5)
        ]
    fit = isoflop.isoflop(sweep, x="params", y="loss", c="flops")
    assert fit.exponents_without["1e+22"] == pytest.approx(0.5, abs=1e-6)
    assert any("without 1e+22 FLOPs" in text for text in fit.warnings)


def test_18_the_interpolator_changes_the_exponent():
    table = backtesting.compare_conventions(
        isoflop.isoflop,
        rows(),
        method=["parabola", "akima"],
        x="params",
        y="loss",
        c="isoflop_budget",
        where=INCLUDED,
    )
    parabola, akima = (row["exponent"] for row in table.rows)
    assert 0.001 < abs(parabola - akima) < 0.05
    assert all("exponent 95%" in row for row in table.rows)


def test_19_noise_is_in_units_of_the_loss():
    spread = []
    for level in (1.0, 8.0):
        sweep = [
            {"flops": c, "params": (c / 6) ** 0.5 * f, "loss": level * (1 + 0.05 * np.log(f) ** 2)}
            for c in (1e18, 1e19, 1e20)
            for f in np.geomspace(0.2, 5, 9)
        ]
        fit = isoflop.isoflop(sweep, x="params", y="loss", method="akima", noise=0.01 * level)
        spread.append(fit.budgets[0].log_x_sd)
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_20_accuracy_is_bounded_and_chance_raises():
    train = [row for row in rows("olmo-ladder") if row["split"] == "train"]
    names: dict[str, Any] = {"x": "mmlu_bpb", "y": "mmlu_acc", "run": "run", "chance": 0.25}
    fit = downstream.accuracy_from_loss(train, **names, bootstrap=50)
    far = fit.predict([0.05, 4.0])
    assert (far.hi <= 1).all() and (far.lo >= 0.25).all()
    small = [row for row in train if row["model"] == "190M"]
    with pytest.raises(ValueError, match="mmlu_acc is at chance"):
        downstream.accuracy_from_loss(small, **{**names, "chance": 0.35})


@pytest.mark.slow
def test_21_small_fit_error_does_not_extrapolate():
    ladder = rows("olmo-ladder")
    finals = evaluation_curves.final_evaluations(
        [row for row in ladder if row["split"] == "train"], ["c4_loss"]
    )
    large = evaluation_curves.final_evaluations(
        [row for row in ladder if row["split"] == "target"], ["c4_loss"]
    )
    fit = power_laws.chinchilla(finals, n="params", d="tokens", y="c4_loss")
    assert fit.mare == pytest.approx(0.0025, abs=1e-4)
    assert backtesting.holdout(fit, large).worst == pytest.approx(0.038, abs=1e-3)
    assert "back-test" in str(fit)


def test_22_collinear_runs_do_not_predict_off_their_line():
    fit = power_laws.chinchilla(
        synthetic_rows(0.002, ratios=(20,)), **NAMES, loss="log_squares", bootstrap=0
    )
    with pytest.raises(ValueError, match="off it"):
        fit.predict(1e10, 1e10)


def test_23_errors_are_computed_from_the_predictions():
    fit = power_laws.chinchilla(synthetic_rows(0.003), **NAMES, bootstrap=0)
    large = [{"name": "a", "params": 3e9, "tokens": 6e10, "loss": 2.7}]
    (prediction,) = backtesting.holdout(fit, large).predictions
    assert prediction["measured"] == 2.7
    assert prediction["error"] == prediction["value"] / 2.7 - 1
    assert prediction["value"] == fit.predict(3e9, 6e10).value


def test_24_noise_is_at_least_that_between_seeds():
    rng = np.random.default_rng(0)
    repeats = [
        {
            **row,
            "name": f"{row['name']} seed {s}",
            "loss": row["loss"] * np.exp(0.004 * rng.standard_normal()),
        }
        for row in synthetic_rows()
        for s in range(4)
    ]
    fit = power_laws.chinchilla(repeats, **NAMES, loss="log_squares", bootstrap=0)
    assert fit.seed_noise == pytest.approx(0.004, rel=0.25)
    assert fit.sigma >= fit.seed_noise
