"""Best learning rates of synthetic runs with a known optimum."""

import numpy as np
import pytest

from lm.reports import lr_analysis

NOISE = 0.003


def run(rule, width, depth, rate, seed=0, log2_best=-5.0, noise=NOISE) -> dict:
    """Return a row whose log loss is a parabola in log2 of the rate with a known vertex."""
    rng = np.random.default_rng([width, depth, round(1e6 * rate), seed, len(rule)])
    log_loss = 0.9 + 0.02 * (np.log2(rate) - log2_best) ** 2 + noise * rng.standard_normal()
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
    """Return runs whose best rate is 2^-5 at width 16 and grows as the width to the slope."""
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
        assert optimum["loss"] == pytest.approx(np.exp(0.9), rel=0.01) and optimum["n_runs"] == 12


def width_exponent(optima) -> dict:
    """Return the only exponent of the best rate against the width."""
    (exponent,) = lr_analysis.lr_exponents(optima, lr_analysis.WIDTH)
    return exponent


def test_rate_exponents_are_recovered():
    exponent = width_exponent(lr_analysis.optimal_lr(sweep(-1.0)))
    assert exponent["lo"] < -1 < exponent["hi"] < -0.8 and exponent["values"] == [16, 32, 64]
    exponent = width_exponent(lr_analysis.optimal_lr(sweep(0.0, "mup")))
    assert exponent["lo"] < 0 < exponent["hi"] and exponent["hi"] - exponent["lo"] < 0.3
    assert not exponent["warnings"]


def test_exponent_intervals_have_their_nominal_coverage():
    n_inside = 0
    for trial in range(40):
        rows = sweep(-0.5, seeds=(100 + 2 * trial, 101 + 2 * trial), noise=0.01)
        exponent = width_exponent(lr_analysis.optimal_lr(rows, bootstrap=300))
        n_inside += exponent["lo"] < -0.5 < exponent["hi"]
    assert n_inside >= 34  # of 40, for 95% intervals


def test_seed_offsets_do_not_widen_intervals():
    rows = sweep()
    shifted_rows = [
        row | {lr_analysis.LOSS: row[lr_analysis.LOSS] * (1.1 if row["seed"] else 1)}
        for row in rows
    ]
    optima, shifted_optima = lr_analysis.optimal_lr(rows), lr_analysis.optimal_lr(shifted_rows)
    for optimum, shifted in zip(optima, shifted_optima, strict=True):
        for key in ("lr", "lo", "hi"):
            assert shifted[key] == pytest.approx(optimum[key])
        assert shifted["loss"] == pytest.approx(1.1**0.5 * optimum["loss"])


def test_three_runs_do_not_determine_the_noise():
    rows = [row for row in sweep(0.0, seeds=(0,)) if 2.0**-6 <= row[lr_analysis.RATE] <= 2.0**-4]
    assert all("noise" in optimum["warning"] for optimum in lr_analysis.optimal_lr(rows))


def test_minimum_at_the_edge_is_excluded_from_exponents():
    rows = [row for row in sweep() if row[lr_analysis.RATE] <= 2.0**-5]
    optima = {optimum[lr_analysis.WIDTH]: optimum for optimum in lr_analysis.optimal_lr(rows)}
    assert "the largest rate, 0.03125" in optima[16]["warning"] and not optima[64]["warning"]
    exponent = width_exponent(list(optima.values()))
    assert exponent["values"] == [32, 64] and "model.d_model=16" in exponent["warnings"][0]
    exponent = width_exponent([optima[16], optima[64]])
    assert np.isnan(exponent["slope"]) and "two best rates" in exponent["warnings"][-1]


def test_unfinished_runs_do_not_change_the_best_rate():
    rows = sweep()
    diverged = [row | {"status": "diverged", lr_analysis.LOSS: 0.1} for row in rows[:3]]
    optimum = lr_analysis.optimal_lr(rows)[1]
    optimum_with_diverged = lr_analysis.optimal_lr([*diverged, *rows])[1]
    for key in ("lr", "n_runs"):
        assert optimum_with_diverged[key] == optimum[key]


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
    (exponent,) = lr_analysis.activation_exponents(rows, "width")
    assert exponent["change"] == pytest.approx(0.55)
    assert exponent["change_se"] == pytest.approx(0.05)
    assert exponent["rms"] == pytest.approx(0) and exponent["n"] == 2


def test_resamples_spread_as_the_noise_of_the_residuals():
    """The noise has n - p degrees of freedom, with an intercept per seed, and both groups."""
    rows = sweep(0.0, widths=(16, 32))
    squares, designs = 0.0, []
    optima = lr_analysis.optimal_lr(rows, reach=9, bootstrap=20_000)
    for width in (16, 32):
        group = [row for row in rows if row[lr_analysis.WIDTH] == width]
        t, seed = (np.array([row[column] for row in group]) for column in ("optim.lr", "seed"))
        design = np.stack([seed == 0, seed == 1, np.log2(t), np.log2(t) ** 2], 1).astype(float)
        log_loss = np.log([row[lr_analysis.LOSS] for row in group])
        solution, (residual,), *_ = np.linalg.lstsq(design, log_loss, rcond=None)
        squares += residual
        designs.append((design, solution))
    variance = squares / (2 * 12 - 2 * 4)
    for optimum, (design, (*_, b, c)) in zip(optima, designs, strict=True):
        slopes = np.array([0, 0, -1 / (2 * c), b / (2 * c**2)])  # of the vertex -b / 2c
        sd = np.sqrt(variance * slopes @ np.linalg.inv(design.T @ design) @ slopes)
        assert np.log2(optimum["lr"]) == pytest.approx(-b / (2 * c))
        assert optimum["log2_lr_resamples"].std() == pytest.approx(sd, rel=0.03)
        assert np.log2(optimum["hi"] / optimum["lo"]) == pytest.approx(2 * 1.96 * sd, rel=0.04)


@pytest.mark.parametrize("side", [-1, 1])
def test_interval_at_one_edge_excludes_the_optimum(side):
    """The vertex is one doubling from one edge of the rates, and two from the other."""
    rows = []
    for width in (16, 32):
        for power in range(4):
            for seed, sign in ((0, 1), (1, -1)):
                row = run("mup", width, 2, 2.0 ** (side * power), seed, side * 2.0, noise=0)
                # The noise of both seeds cancels, so the fitted vertex is exact.
                noise = 0.016 * sign * (-1) ** power
                rows.append(row | {lr_analysis.LOSS: row[lr_analysis.LOSS] * np.exp(noise)})
    near, far = ("hi", "lo") if side > 0 else ("lo", "hi")
    optima = lr_analysis.optimal_lr(rows)
    for optimum in optima:
        assert optimum["warning"] == "the interval reaches the edge of the tested rates"
        assert optimum["lr"] == pytest.approx(4.0**side)
        assert optimum[near] == pytest.approx(8.0**side)
        assert optimum["rate_range"][0] < optimum[far] < optimum["rate_range"][1]
    assert np.isnan(width_exponent(optima)["slope"])


def test_least_loss_at_either_edge_is_excluded():
    """The rate next to an edge is no edge."""
    for powers, word in (((-5, -4, -3), "smallest"), ((-7, -6, -5), "largest")):
        rows = [
            run("mup", width, 2, 2.0**power, seed, -5.0, noise=1e-4)
            for width in (16, 32)
            for power in powers
            for seed in (0, 1)
        ]
        optima = lr_analysis.optimal_lr(rows)
        assert all(f"the {word} rate" in optimum["warning"] for optimum in optima)
        rows += [row | {lr_analysis.RATE: 2.0**p, lr_analysis.LOSS: 9.0} for row in rows[:1]
                 for p in (-8, -2)]  # fmt: skip
        assert not lr_analysis.optimal_lr(rows)[0]["warning"].startswith("the least loss")
