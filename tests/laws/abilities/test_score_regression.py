"""Regression of many scores: recovery of slopes, calibrated draws, refusals."""

import numpy as np
import pytest

from lm.laws.abilities import score_regression

N_TASKS, LOSSES = 60, np.array([5.5, 5.3, 5.1, 4.9, 4.7, 4.6, 4.5, 4.4, 4.3])
FAMILIES = [f"f{i % 6}" for i in range(N_TASKS)]


def simulate(seed: int, target: float) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of runs [R, T] and of a new run [T] at a loss."""
    rng = np.random.default_rng(seed)
    losses = np.append(LOSSES, target)
    level, slope = rng.normal(0.3, 0.5, N_TASKS), rng.normal(-0.8, 0.3, N_TASKS)
    noise = rng.uniform(0.1, 0.4, N_TASKS) * rng.standard_normal((len(losses), N_TASKS))
    scores = 1 / (1 + np.exp(-(level + slope * (losses[:, None] - 4.8) + noise)))
    return scores[:-1], scores[-1]


def fit(scores, features=LOSSES[:, None], trunks=tuple("abcdefghi")):
    return score_regression.fit_scores(features, scores, trunks, FAMILIES)


def test_intervals_cover_the_scores_of_a_new_run():
    covered, widths = [], []
    for seed in range(8):
        scores, truth = simulate(seed, 4.0)
        draws = fit(scores).draw(np.full((1000, 1), 4.0), np.random.default_rng(0))
        lo, hi = np.quantile(draws, [0.05, 0.95], axis=0)
        covered.append((lo <= truth) & (truth <= hi))
        widths.append(hi - lo)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.06)
    assert 0.1 < np.mean(widths) < 0.5


def test_noisy_slopes_are_close_to_the_mean_slope():
    rng = np.random.default_rng(1)
    logits = -0.8 * (LOSSES[:, None] - 4.8) + 0.3 * rng.standard_normal((len(LOSSES), N_TASKS))
    equal = fit(1 / (1 + np.exp(-logits)))
    assert equal.own_JT[0].tolist() == [1.0] * N_TASKS and equal.own_JT[1].max() < 0.4
    different = fit(simulate(0, 4.0)[0])
    assert different.own_JT[1].mean() > equal.own_JT[1].mean()


def test_branches_of_a_trunk_count_as_one_run():
    scores = simulate(2, 4.0)[0]
    branches = np.repeat(scores, 3, axis=0), np.repeat(LOSSES[:, None], 3, axis=0)
    repeated = fit(branches[0], branches[1], [name for name in "abcdefghi" for _ in range(3)])
    single = fit(scores)
    assert np.allclose(repeated.variances_T, single.variances_T)
    assert np.allclose(np.abs(repeated.coefficients_JT), np.abs(single.coefficients_JT))


def test_seeds_of_few_sizes_do_not_show_whether_the_form_fits():
    scores = simulate(2, 4.0)[0]
    for sizes, n in (([1, 1, 1, 1, 2, 2, 2, 2, 2], 2), ([1, 1, 1, 2, 2, 2, 3, 3, 3], 3)):
        with pytest.raises(ValueError, match=f"^{n} independent runs .* at least 4 runs"):
            score_regression.fit_scores(
                LOSSES[:, None], scores, tuple("abcdefghi"), FAMILIES, groups=sizes
            )
    enough = [1, 1, 1, 2, 2, 2, 3, 3, 4]
    few = score_regression.fit_scores(
        LOSSES[:, None], scores, tuple("abcdefghi"), FAMILIES, groups=enough
    )
    assert few.variances_T == pytest.approx(fit(scores).variances_T, rel=0.05)
    branches = (
        list("aabbccdee"),
        [(1, 1), (1, 2), (1, 1), (1, 2), (2, 1), (2, 2), (2, 2), (3, 1), (3, 2)],
    )
    with pytest.raises(ValueError, match="^3 independent runs"):  # two seeds of 1 and 2, one of 3
        score_regression.fit_scores(
            LOSSES[:, None], scores, branches[0], FAMILIES, groups=branches[1]
        )


@pytest.mark.parametrize(("form", "own"), [(0.3, 0.1), (0.0, 0.3)])
def test_intervals_of_several_seeds_cover_a_new_size(form, own):
    """form: SD of the error of the form of a size. own: SD between seeds. Sizes have 3 seeds."""
    covered, degrees = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = np.array([5.5, 5.2, 4.9, 4.7, 4.5, 4.3, 4.1])
        level, slope = rng.normal(0.3, 0.5, N_TASKS), rng.normal(-0.8, 0.3, N_TASKS)
        logits = level + slope * (sizes[:, None] - 4.8)
        logits = logits + form * rng.standard_normal(logits.shape)
        seeds = np.repeat(logits, 3, axis=0)
        scores = 1 / (1 + np.exp(-(seeds + own * rng.standard_normal(seeds.shape))))
        model = score_regression.fit_scores(
            np.repeat(sizes, 3)[:18, None], scores[:18], [str(i) for i in range(18)], FAMILIES,
            groups=np.repeat(sizes, 3)[:18].tolist(),
        )  # fmt: skip
        draws = model.draw(np.full((500, 1), sizes[-1]), rng)
        lo, hi = np.quantile(draws, [0.05, 0.95], axis=0)
        covered.append((lo <= scores[-1]) & (scores[-1] <= hi))
        degrees.append(model.degrees - score_regression.PRIOR_DEGREES)
    assert np.mean(covered) == pytest.approx(0.91, abs=0.035)
    assert np.mean(degrees) < 5 if form else np.mean(degrees) > 14


def test_shared_errors_widen_the_mean_of_the_scores():
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((len(LOSSES), 1)) + 0.3 * rng.standard_normal((9, N_TASKS))
    own = rng.standard_normal((len(LOSSES), N_TASKS))
    sd = []
    for noise in (own, shared):
        model = fit(1 / (1 + np.exp(-0.3 * noise)))
        draws = model.draw(np.full((1000, 1), 4.5), np.random.default_rng(0))
        sd.append(draws.mean(axis=1).std())
    assert sd[1] > 2 * sd[0]


def test_constant_features_are_left_out_and_few_runs_refused():
    features = np.stack([LOSSES, np.full(9, 16.0)], 1)
    scores = simulate(4, 4.0)[0]
    assert fit(scores, features).is_varied_K.tolist() == [True, False]
    with pytest.raises(ValueError, match="3 independent runs do not determine 2 coefficients"):
        fit(scores, trunks=tuple("aaabbbccc"))
    with pytest.raises(ValueError, match="use at least 3 runs of different sizes"):
        fit(scores, features[:, 1:])
