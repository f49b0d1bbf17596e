"""Tests of the isoFLOP law: recovery, bias, and budgets without a minimum."""

import types

import numpy as np
import pytest

from lm.laws.forms import isoflop

BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)


def sweep(alpha=0.31, beta=0.31, noise=0.0, shift=1.0, seed=0, sizes=9):
    rng = np.random.default_rng(seed)
    rows = []
    for c in BUDGETS:
        best = (alpha / beta) ** (1 / (alpha + beta)) * (c / 6) ** (beta / (alpha + beta))
        for n in best * shift * np.geomspace(0.2, 5, sizes):
            d = c / 6 / n
            loss = 1.7 + 400 * n**-alpha + 400 * d**-beta
            rows.append({"name": f"{c:g} {n:.4g}", "flops": c, "params": n, "tokens": d,
                         "loss": loss * np.exp(noise * rng.standard_normal())})  # fmt: skip
    return rows


def fit_isoflop(rows, **options):
    return isoflop.isoflop(rows, **{"x": "params", "y": "loss", **options})


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_equal_exponents_have_no_bias(method):
    fit = fit_isoflop(sweep(), method=method, points=400, bootstrap=0)
    assert fit.params["exponent"] == pytest.approx(0.5, abs=1e-3)
    assert fit.predict(1e21).value == pytest.approx((1e21 / 6) ** 0.5, rel=0.01)


def test_parameters_and_tokens_share_the_budget():
    n, d = (fit_isoflop(sweep(0.34, 0.28), x=x, bootstrap=0) for x in ("params", "tokens"))
    assert n.params["exponent"] + d.params["exponent"] == pytest.approx(1)
    assert n.predict(1e21).value * d.predict(1e21).value == pytest.approx(1e21 / 6)
    assert str(n).startswith("N* = ") and str(d).startswith("D* = ")


def test_minimum_outside_the_sizes_is_excluded():
    rows = sweep()
    for row in rows:
        if row["flops"] == 1e19 and row["params"] < 2e9:
            row["flops"] = 0.0 if row["params"] < 1.3e9 else row["flops"]
    rows = [row for row in rows if row["flops"]]
    fit = fit_isoflop(rows, bootstrap=0)
    assert fit.n == 4
    assert fit.excluded[0][0] == "1e+19 FLOPs" and "below the smallest size" in fit.excluded[0][1]
    assert fit_isoflop(rows, edges="keep", bootstrap=0).n == 5


def test_akima_minimum_at_the_edge_is_excluded():
    rows = [r for r in sweep() if r["flops"] < 1e20 or r["params"] > 5e9]
    fit = fit_isoflop(rows, method="akima", bootstrap=0)
    assert fit.n == 4 and "at or below the smallest size" in dict(fit.excluded)["1e+20 FLOPs"]


def test_parabola_that_opens_down_is_excluded():
    rows = sweep()
    for row in rows:
        if row["flops"] == 1e20:
            row["loss"] = 4 - row["loss"] / 2
    assert dict(fit_isoflop(rows, bootstrap=0).excluded)["1e+20 FLOPs"] == "the parabola opens down"


def test_too_few_budgets_raise_with_the_reasons():
    rows = [r for r in sweep() if r["flops"] == 1e18 or r["params"] > 2e10]
    with pytest.raises(
        ValueError,
        match="these runs have 1 .*too few|these runs have 1 .*outside|these runs have 1 .*below",
    ):
        fit_isoflop(rows)


def test_budgets_of_single_sizes_raise_one_reason():
    rows = [{"flops": 10.0**k, "params": 10.0**k, "loss": 3.0 - 0.1 * k} for k in range(1, 5)]
    with pytest.raises(ValueError, match="none of the 4 budgets has two$"):
        fit_isoflop(rows)


def test_rows_outside_the_budgets_are_excluded():
    rows = [
        {**row, "flops": row["flops"] * (1.04 if i % 2 else 1)} for i, row in enumerate(sweep())
    ]
    rows.append({"name": "far", "flops": 5e18, "params": 1e8, "tokens": 1e9, "loss": 3.0})
    fit = fit_isoflop(rows, budgets=BUDGETS, bootstrap=0)
    assert fit.n == 5 and ("far", "flops is at no budget") in fit.excluded
    assert [budget.n_runs for budget in fit.budgets] == [9] * 5


def test_nearest_limits_the_runs_of_a_parabola():
    wide, narrow = (
        fit_isoflop(sweep(0.4, 0.2), method="parabola", bootstrap=0),
        fit_isoflop(sweep(0.4, 0.2), method="parabola", nearest=3, bootstrap=0),
    )
    true = (2 ** (1 / 0.6)) * (1e21 / 6) ** (1 / 3)
    errors = [abs(np.log(fit.predict(1e21).value / true)) for fit in (wide, narrow)]
    assert errors[1] < 0.5 * errors[0]


def test_interval_covers_the_exponent():
    hits = []
    for seed in range(60):
        lo, hi = fit_isoflop(sweep(noise=0.002, seed=seed), bootstrap=300, seed=seed).interval(
            "exponent"
        )
        hits.append(lo <= 0.5 <= hi)
    assert np.mean(hits) >= 0.88


def test_akima_noise_is_in_units_of_the_loss():
    small, large = (
        fit_isoflop(sweep(), method="akima", noise=s, bootstrap=300) for s in (0.004, 0.016)
    )
    assert small.se["exponent"] < large.se["exponent"]
    weighted = fit_isoflop(
        sweep(), method="akima", noise=0.01, weighted=True, median=True, bootstrap=300
    )
    assert weighted.params["exponent"] == pytest.approx(0.5, abs=0.05)


def test_akima_replaces_a_biased_parabola():
    """The vertex of a parabola is off the minimum if the exponents of the loss differ."""
    true = (2 ** (1 / 0.6)) * (1e19 / 6) ** (1 / 3)
    for noise, seed in ((0.0, 0), (5e-5, 1)):
        rows = sweep(0.4, 0.2, noise=noise, seed=seed)
        auto, parabola = (fit_isoflop(rows, method=m, bootstrap=50) for m in ("auto", "parabola"))
        errors = [abs(np.log(fit.budgets[2].x / true)) for fit in (auto, parabola)]
        assert auto.budgets[2].method == "akima" and errors[0] < 0.5 * errors[1]
    noisy = fit_isoflop(sweep(0.31, 0.31, noise=0.002), bootstrap=0)
    assert {budget.method for budget in noisy.budgets} == {"parabola"}


def test_weights_are_bounded_and_a_dominating_budget_has_a_warning():
    rows = [row for row in sweep(noise=0.002) if row["flops"] <= 1e19]
    quiet, *others = BUDGETS[:3]
    steep = [{**row, "loss": 1.7 + 30 * (row["loss"] - 1.7)} if row["flops"] == quiet else row
             for row in sweep() if row["flops"] in (quiet, *others)]  # fmt: skip
    fit = fit_isoflop(steep, weighted=True, noise=0.01)
    weights = [budget.weight for budget in fit.budgets]
    assert max(weights) == isoflop.MAX_WEIGHT and sorted(weights)[1] == pytest.approx(1)
    assert any("1e+18 has" in text and "of the weight" in text for text in fit.warnings)
    even = fit_isoflop(rows, weighted=True)
    assert not any("of the weight" in text for text in even.warnings)
    assert all(len(budget.resampled_x) == 1000 for budget in even.budgets)


def test_influential_budget_has_a_warning():
    rows = sweep(noise=0.0)
    for row in rows:
        if row["flops"] == 1e20:
            row["params"] *= 2.5
    fit = fit_isoflop(rows)
    assert fit.exponents_without["1e+20"] == pytest.approx(0.5, abs=1e-6)
    assert any("one budget decides: without 1e+20" in text for text in fit.warnings)


def test_shared_trunk_runs_have_a_warning():
    independent = sweep(sizes=5)
    shared = [{**row, "start.run": f"trunk-{i % 5}", "start.restore": "full_state"}
              for i, row in enumerate(independent)]  # fmt: skip
    fit = fit_isoflop(shared, bootstrap=0)
    assert any("25 rows share 5 trunks" in text for text in fit.warnings)
    assert not any("trunks" in text for text in fit_isoflop(independent, bootstrap=0).warnings)


def test_resampled_runs_have_intervals_like_those_of_the_noise():
    """Both bootstraps estimate the same error, so half-widths agree within a factor of two."""
    widths = {}
    for resample in ("runs", "noise"):
        fit = fit_isoflop(
            sweep(noise=0.002, sizes=15), method="parabola", resample=resample, bootstrap=400
        )
        low, high = fit.interval("exponent")
        assert low < 0.5 < high
        widths[resample] = high - low
    assert 0.5 < widths["runs"] / widths["noise"] < 2


def test_two_budgets_have_a_warning():
    for n_budgets in (2, 3):
        rows = [row for row in sweep(noise=0.002) if row["flops"] in BUDGETS[:n_budgets]]
        text = " ".join(fit_isoflop(rows, bootstrap=50).warnings)
        assert ("two budgets determine a line" in text) == (n_budgets == 2)


def test_weight_of_a_budget_is_at_most_four_medians():
    budgets = [types.SimpleNamespace(log_x_sd=sd, weight=1.0) for sd in (0.01, 0.5, 1.0, 2.0)]
    isoflop._set_weights(budgets)
    median = np.median([0.01**2, 0.5**2, 1.0, 4.0])
    assert [budget.weight for budget in budgets] == pytest.approx(
        [4, median * 4, median, median / 4]
    )


def test_resampled_runs_of_a_parabola_have_its_vertex():
    """Without noise, each resample of at least three sizes determines the same parabola."""
    sizes = np.geomspace(1e7, 1e9, 15)
    rows = [
        {"flops": c, "params": n * (c / 1e18) ** 0.5, "loss": 2 + 0.05 * np.log(n / 8e7) ** 2}
        for c in (1e18, 1e19, 1e20) for n in sizes
    ]  # fmt: skip
    fit = fit_isoflop(rows, method="parabola", resample="runs", bootstrap=50)
    for budget in fit.budgets:
        vertex = 8e7 * (budget.budget / 1e18) ** 0.5
        assert budget.resampled_x == pytest.approx(np.full(50, vertex), rel=1e-6)


def test_ensemble_is_as_wide_as_the_scatter_of_the_minima():
    """The lines through the resampled minima are widened if their noise is below the scatter."""
    scattered = sweep()
    for row in scattered:
        row["params"] *= 1.1 ** (BUDGETS.index(row["flops"]) % 2)
    line = np.polyfit(np.log(BUDGETS), np.log([b.x for b in fit_isoflop(scattered).budgets]), 1,
                      cov=True)[1][0, 0] ** 0.5  # fmt: skip
    quiet = fit_isoflop(scattered, method="parabola", noise=1e-6, bootstrap=4000)
    # Student's t of three degrees of freedom has the variance 3.
    assert "widened" in quiet.resampling and line < quiet.se["exponent"] < 2.5 * line
    noisy = fit_isoflop(scattered, method="parabola", noise=0.03, bootstrap=400)
    assert "widened" not in noisy.resampling and noisy.se["exponent"] > quiet.se["exponent"]


def test_half_of_the_resamples_suffice_for_an_ensemble():
    for n_missing, has_ensemble in ((50, True), (52, False)):
        fit = fit_isoflop(sweep(noise=0.002), bootstrap=100)
        fit.ensemble = {}
        for budget in fit.budgets[:4]:
            budget.resampled_x[:n_missing] = np.nan
        isoflop._widen(fit, fit.budgets)
        assert bool(fit.ensemble) == has_ensemble
        assert ("fewer than half" in " ".join(fit.warnings)) != has_ensemble
