"""Best learning rates of synthetic runs with a known optimum."""

import numpy as np
import pytest

from lm.reports import lr_analysis

NOISE = 0.003


def run(rule, width, depth, rate, seed=0, at=-5.0, noise=NOISE) -> dict:
    """Return a row whose log loss is a parabola in log2 of the rate, with its vertex at `at`."""
    rng = np.random.default_rng([width, depth, round(1e6 * rate), seed, len(rule)])
    log_loss = 0.9 + 0.02 * (np.log2(rate) - at) ** 2 + noise * rng.standard_normal()
    row = {"name": f"s/{rule}-{width}x{depth}-{rate}-{seed}", "status": "done", "seed": seed}
    row |= {
        lr_analysis.RULE: rule,
        lr_analysis.WIDTH: width,
        lr_analysis.DEPTH: depth,
        lr_analysis.RATE: rate,
    }
    return row | {
        "model.base_width": 16, "model.base_depth": 2, lr_analysis.LOSS: float(np.exp(log_loss)),
    }  # fmt: skip


def sweep(
    slope=-1.0, rule="standard", seeds=(0, 1), widths=(16, 32, 64), noise=NOISE
) -> list[dict]:
    return [
        run(rule, width, 2, 2.0**-power, seed, -5 + slope * np.log2(width / 16), noise)
        for width in widths
        for power in range(3, 9)
        for seed in seeds
    ]


def test_known_best_rate_is_within_its_interval():
    for optimum in lr_analysis.optimal_lr(sweep()):
        known = 2 ** (-5 - np.log2(optimum[lr_analysis.WIDTH] / 16))
        assert optimum["lo"] < known < optimum["hi"] < 1.3 * optimum["lo"]
        assert optimum["lr"] == pytest.approx(known, 0.1)
        assert optimum["loss"] == pytest.approx(np.exp(0.9), rel=0.01) and optimum["n"] == 12


def test_rate_exponents_are_recovered():
    (line,) = lr_analysis.lr_exponents(lr_analysis.optimal_lr(sweep(-1.0)), lr_analysis.WIDTH)
    assert line["lo"] < -1 < line["hi"] < -0.8 and line["values"] == [16, 32, 64]
    (line,) = lr_analysis.lr_exponents(lr_analysis.optimal_lr(sweep(0.0, "mup")), lr_analysis.WIDTH)
    assert line["lo"] < 0 < line["hi"] and line["hi"] - line["lo"] < 0.3 and not line["doubts"]


def test_exponent_intervals_have_their_nominal_coverage():
    inside = 0
    for trial in range(40):
        rows = sweep(-0.5, seeds=(100 + 2 * trial, 101 + 2 * trial), noise=0.01)
        (line,) = lr_analysis.lr_exponents(
            lr_analysis.optimal_lr(rows, bootstrap=300), lr_analysis.WIDTH
        )
        inside += line["lo"] < -0.5 < line["hi"]
    assert inside >= 34  # of 40, at 95%


def test_seed_offsets_do_not_widen_intervals():
    rows = sweep()
    apart = [
        row | {lr_analysis.LOSS: row[lr_analysis.LOSS] * (1.1 if row["seed"] else 1)}
        for row in rows
    ]
    for a, b in zip(lr_analysis.optimal_lr(rows), lr_analysis.optimal_lr(apart), strict=True):
        assert [a[k] for k in ("lr", "lo", "hi")] == pytest.approx(
            [b[k] for k in ("lr", "lo", "hi")]
        )
        assert b["loss"] == pytest.approx(1.1**0.5 * a["loss"])


def test_three_runs_do_not_determine_the_noise():
    rows = [row for row in sweep(0.0, seeds=(0,)) if 2.0**-6 <= row[lr_analysis.RATE] <= 2.0**-4]
    assert all("noise" in optimum["doubt"] for optimum in lr_analysis.optimal_lr(rows))


def test_minimum_at_the_edge_is_excluded_from_exponents():
    rows = [row for row in sweep() if row[lr_analysis.RATE] <= 2.0**-5]
    optima = {optimum[lr_analysis.WIDTH]: optimum for optimum in lr_analysis.optimal_lr(rows)}
    assert "the largest rate, 0.03125" in optima[16]["doubt"] and not optima[64]["doubt"]
    (line,) = lr_analysis.lr_exponents(list(optima.values()), lr_analysis.WIDTH)
    assert line["values"] == [32, 64] and "model.d_model=16" in line["doubts"][0]
    (line,) = lr_analysis.lr_exponents([optima[16], optima[64]], lr_analysis.WIDTH)
    assert np.isnan(line["slope"]) and "two best rates" in line["doubts"][-1]


def test_unfinished_runs_do_not_change_the_best_rate():
    rows = sweep()
    broken = [row | {"status": "diverged", lr_analysis.LOSS: 0.1} for row in rows[:3]]
    a, b = (lr_analysis.optimal_lr(some)[1] for some in (rows, [*broken, *rows]))
    assert a["lr"] == b["lr"] and a["n"] == b["n"]


def test_base_shape_runs_represent_every_parametrization():
    wide = sweep(0.0, "mup", widths=(32, 64))
    rows = lr_analysis.share_base_shape([*sweep(), *wide])
    assert len(rows) == 3 * 12 + 3 * 12
    base = [row for row in rows if row[lr_analysis.WIDTH] == 16]
    assert sorted(row[lr_analysis.RULE] for row in base) == ["mup"] * 12 + ["standard"] * 12


def test_activation_exponents_are_recovered():
    rows = [
        {"rule": "mup", "width": width, "depth": 2, "seed": seed, "step": 1, "part": "mlp"}
        | {"rms": 1.0, "change": 0.1 * width ** (0.5 + 0.1 * seed)}
        for width in (16, 64)
        for seed in (0, 1)
    ]
    (optimum,) = lr_analysis.activation_exponents(rows, "width")
    assert optimum["change"] == pytest.approx(0.55) and optimum["change_se"] == pytest.approx(0.05)
    assert optimum["rms"] == pytest.approx(0) and optimum["n"] == 2
