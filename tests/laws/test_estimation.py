"""Tests of interval coverage, resampling of whole runs, and warnings of a fit."""

from typing import Any

import numpy as np
import pytest

from lm.laws import solver
from lm.laws.forms import power_laws

TRUTH = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}


def loss(n, d):
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


def design(sizes, ratios, noise, seed):
    rng = np.random.default_rng(seed)
    return [
        {
            "name": f"{n:.3g} x {r}",
            "params": n,
            "tokens": n * r,
            "loss": loss(n, n * r) * np.exp(noise * rng.standard_normal()),
        }
        for n in np.geomspace(1e7, 1e9, sizes)
        for r in ratios
    ]


def check_coverage(hits):
    """Check the fraction of 200 intervals of 95% that contain the truth."""
    assert 0.90 <= np.mean(hits) <= 0.985, np.mean(hits)


@pytest.mark.slow
def test_intervals_of_seven_runs_cover_a_larger_run():
    sizes, target = np.geomspace(3e4, 2e6, 7), 4e6
    hits = {"measurement": [], "alpha": [], "E": []}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = [
            {
                "name": str(i),
                "params": n,
                "loss": (1.2 + 30 * n**-0.3) * np.exp(0.005 * rng.standard_normal()),
            }
            for i, n in enumerate(sizes)
        ]
        fit = power_laws.power(rows, x="params", y="loss", bootstrap=300, seed=seed)
        prediction = fit.predict(target)
        measured = (1.2 + 30 * target**-0.3) * np.exp(0.005 * rng.standard_normal())
        hits["measurement"].append(prediction.lo <= measured <= prediction.hi)
        for name, true in (("alpha", 0.3), ("E", 1.2)):
            lo, hi = fit.interval(name)
            hits[name].append(lo <= true <= hi)
    for results in hits.values():
        check_coverage(results)


@pytest.mark.slow
def test_intervals_of_a_chinchilla_sweep_cover_the_truth():
    start = [{"E": 1.5, "A": 200, "B": 400, "alpha": 0.3, "beta": 0.25}]
    hits = {name: [] for name in [*TRUTH, "a", "law"]}
    for seed in range(200):
        rows = design(6, (5, 20, 80, 320), 0.004, seed)
        fit = power_laws.chinchilla(
            rows, n="params", d="tokens", y="loss", bootstrap=300, seed=seed, starts=start
        )
        prediction = fit.predict(4e9, 8e10, noise=False)
        hits["law"].append(prediction.lo <= loss(4e9, 8e10) <= prediction.hi)
        a = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
        for name, true in {**TRUTH, "a": a}.items():
            lo, hi = fit.interval(name)
            hits[name].append(lo <= true <= hi)
    for results in hits.values():
        check_coverage(results)


def test_parameters_are_recovered_within_their_noise():
    fit = power_laws.chinchilla(
        design(12, (5, 20, 80, 320), 0.002, 0), n="params", d="tokens", y="loss", loss="log_squares"
    )
    for name, true in TRUTH.items():
        assert abs(fit.params[name] - true) < 4 * fit.se[name]
    assert fit.params["E"] == pytest.approx(1.8, abs=0.05)
    assert fit.params["alpha"] == pytest.approx(0.34, abs=0.03)
    assert fit.params["beta"] == pytest.approx(0.3, abs=0.02)


def test_rows_of_a_run_or_trunk_are_resampled_together():
    rng = np.random.default_rng(0)
    rows = [
        {"run": f"{n:.3g}", "tokens": n * r, "params": n, "loss": loss(n, n * r) * np.exp(shift)}
        for n in np.geomspace(1e7, 1e9, 40)
        for shift in [0.01 * rng.standard_normal()]
        for r in (5, 10, 20, 40, 80, 160)
    ]
    names: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss", "bootstrap": 300}
    by_run = power_laws.chinchilla(rows, **names, group="run")
    branches = [{"start.run": row["run"], "start.restore": "full_state", **row, "run": i}
                for i, row in enumerate(rows)]  # fmt: skip
    by_trunk = power_laws.chinchilla(branches, **names)
    finetuned = [{**row, "start.restore": "weights"} for row in branches]  # no cooldown branches
    separate = power_laws.chinchilla(finetuned, **names)
    for fitted in (by_trunk, separate):
        fitted.backtester = None  # it would be computed to print the fit
    assert (by_run.n_runs, by_trunk.n_runs, separate.n_runs) == (40, 40, 240)
    assert by_run.se["E"] > 1.5 * separate.se["E"]
    assert by_trunk.se == by_run.se
    assert "240 runs share 40 trunks" in str(by_trunk) and "trunks" not in str(separate)


def test_trunk_runs_are_excluded():
    rows = [
        {"name": f"{n:.3g}-{r}", "start.run": f"{n:.3g}-trunk", "start.restore": "full_state"}
        | {"params": n, "tokens": n * r, "loss": loss(n, n * r)}
        for n in np.geomspace(1e7, 1e9, 4)
        for r in (5, 20, 80)
    ]
    trunks = [
        {"name": f"{n:.3g}-trunk", "params": n, "tokens": 80 * n, "loss": 9.0}
        for n in np.geomspace(1e7, 1e9, 4)
    ]
    fit = power_laws.chinchilla(rows + trunks, n="params", d="tokens", y="loss", bootstrap=0)
    reasons = {reason for _, reason in fit.excluded}
    assert fit.n == 12 and reasons == {"trunk run, represented by its branches"}


def test_intervals_need_more_rows_than_parameters():
    rows = design(2, (5, 320), 0.0, 0)
    with pytest.raises(ValueError, match="5 free parameters and only 4 rows"):
        power_laws.chinchilla(rows, n="params", d="tokens", y="loss")
    fit = power_laws.chinchilla(
        rows, n="params", d="tokens", y="loss", tied=True, loss="log_squares"
    )
    assert not fit.ensemble and "no intervals" in str(fit)
    assert np.isnan(fit.predict(1e9, 1e10).lo)


def test_unknown_option_values_list_the_known_values():
    rows = design(4, (5, 20), 0.0, 0)
    names: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss"}
    with pytest.raises(ValueError, match="allowed: huber, absolute, log_squares, squares"):
        power_laws.chinchilla(rows, **names, loss="mse")
    with pytest.raises(ValueError, match="allowed: auto, runs, noise"):
        power_laws.chinchilla(rows, **names, resample="cases")
    with pytest.raises(ValueError, match="no parameter of chinchilla; known: E, A, B, alpha, beta"):
        power_laws.chinchilla(rows, **names, fixed={"gamma": 1})


def test_unconverged_fit_has_a_warning(monkeypatch):
    minimize = solver.minimize

    def one_step(objective, theta, lower, upper, log_y, weights=None, iterations=1, tolerance=0.0):
        return minimize(objective, theta, lower, upper, log_y, weights, 1, 0.0)

    monkeypatch.setattr(solver, "minimize", one_step)
    start = [{"E": 0.5, "A": 9000, "B": 20, "alpha": 0.9, "beta": 0.1}]
    rows = design(5, (5, 20, 80), 0.004, 0)
    fit = power_laws.chinchilla(rows, n="params", d="tokens", y="loss", bootstrap=0, starts=start)
    assert any("has not converged" in text for text in fit.warnings)


def test_fit_equal_to_its_start_has_a_warning(monkeypatch):
    minimize = solver.minimize

    def no_step(objective, theta, lower, upper, log_y, weights=None, iterations=1, tolerance=0.0):
        return minimize(objective, theta, lower, upper, log_y, weights, 0, 0.0)

    monkeypatch.setattr(solver, "minimize", no_step)
    start = [{"E": 0.5, "A": 9000, "B": 20, "alpha": 0.9, "beta": 0.1}]
    rows = design(5, (5, 20, 80), 0.004, 0)
    fit = power_laws.chinchilla(rows, n="params", d="tokens", y="loss", bootstrap=0, starts=start)
    assert any("equals one of its starting points" in text for text in fit.warnings)


def test_part_of_the_starts_has_the_same_optimum():
    rows = design(5, (5, 20, 80), 0.003, 0)
    names: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss", "bootstrap": 0}
    fit = power_laws.chinchilla(rows, **names)
    assert fit.refit is not None
    part = fit.refit(None, max_starts=64)
    assert (fit.n_starts, part.n_starts) == (432, 64)
    assert part.params == pytest.approx(fit.params, rel=1e-4)
