"""Task statistics of synthetic ladders with known properties."""

import numpy as np
import pytest

from lm.reports import task_analysis
from lm.reports.sections.abilities import task_section

SIZES = (1e4, 3e4, 1e5, 3e5, 1e6)


def rows(accuracies, chance=0.25, n=200, task="t", **metrics):
    """Return one run per size, with the accuracy and other metrics of one task."""
    results = []
    for i, (size, accuracy) in enumerate(zip(SIZES, accuracies, strict=False)):
        row = {"name": f"s/{size:g}", "params.non_embedding": size, "status": "done"}
        row |= {f"eval.task.{task}.{k}": v for k, v in (("accuracy", accuracy), ("n", n))}
        row[f"eval.task.{task}.chance"] = chance
        row[f"eval.task_se.{task}.accuracy"] = (accuracy * (1 - accuracy) / n) ** 0.5
        row |= {f"eval.task.{task}.{k}": v[i] for k, v in metrics.items()}
        results.append(row)
    return results


@pytest.mark.parametrize(
    "accuracies, verdict",
    [
        ((0.25, 0.26, 0.24, 0.25, 0.27), "not above baseline"),
        ((0.25, 0.20, 0.15, 0.10, 0.05), "below baseline"),
        ((0.25, 0.26, 0.45, 0.60, 0.80), "predictable from 100000 on"),
        ((0.40, 0.50, 0.60, 0.70, 0.80), "predictable from 10000 on"),
        ((0.25, 0.26, 0.24, 0.25, 0.60), "not stable"),  # one size does not predict the next
        ((0.40, 0.80, 0.45, 0.80, 0.45), "not stable"),
        ((0.50, 0.51, 0.50, 0.52, 0.51), "noisy"),  # size has no effect
    ],
)
def test_verdict_matches_the_accuracies_of_the_ladder(accuracies, verdict):
    (result,) = task_analysis.task_verdicts(rows(accuracies))
    assert result["verdict"] == verdict


def test_seed_noise_uses_runs_that_differ_only_in_seed():
    assert task_analysis.task_verdicts(rows([0.4, 0.6, 0.8]))[0]["seed"] is None
    two_seeds = [row | {"seed": 0} for row in rows([0.4, 0.6, 0.8])]
    two_seeds += [row | {"seed": 1} for row in rows([0.5, 0.6, 0.8])]
    verdict = task_analysis.task_verdicts(two_seeds)[0]
    assert verdict["seed"] == pytest.approx((0.1**2 / 2 / 3) ** 0.5)
    assert verdict["noise"] == pytest.approx(np.hypot(verdict["seed"], verdict["sampling"]))
    assert verdict["signal_to_noise"] == pytest.approx(verdict["signal"] / verdict["noise"])
    parents = [
        row | {"start.run": f"s/{i // 3}", "parent.flops": 1.0} for i, row in enumerate(two_seeds)
    ]
    assert task_analysis.task_verdicts(parents)[0]["seed"] == pytest.approx(verdict["seed"])
    other_parents = [row | {"parent.flops": i // 3} for i, row in enumerate(parents)]
    assert task_analysis.task_verdicts(other_parents)[0]["seed"] is None
    same_seed = [row | {"seed": 0} for row in parents]
    assert task_analysis.task_verdicts(same_seed)[0]["seed"] is None
    other_config = [row | {"optim.lr": 0.1} for row in two_seeds[3:]]
    assert task_analysis.task_verdicts(two_seeds[:3] + other_config)[0]["seed"] is None


def test_noise_components_are_separated():
    """The accuracies have known sampling, checkpoint and seed noise."""
    rng, n, evals, runs = np.random.default_rng(0), 400, {}, []
    steps = np.arange(1, 31)
    for seed in range(200):
        trend = 0.1 * steps / 30
        values = 0.5 + 0.05 * rng.standard_normal() + trend + 0.02 * rng.standard_normal(30)
        (row,) = rows([float(values[-1])], n=n)
        runs.append(row | {"name": f"s/{seed}", "seed": seed})
        evals[f"s/{seed}"] = [
            {"step": int(step), "task.t.accuracy": float(value)}
            for step, value in zip(steps, values, strict=True)
        ]
    components = task_analysis.noise_components(runs, "t", evals)
    assert components["sampling"] == pytest.approx((0.6 * 0.4 / n) ** 0.5, rel=0.05)
    assert components["checkpoint"] == pytest.approx(0.02, rel=0.1)
    assert components["seed"] == pytest.approx(np.hypot(0.05, 0.02), rel=0.15)
    assert task_analysis.noise_components(runs, "t", {})["checkpoint"] is None


def test_checkpoint_noise_makes_a_task_noisy():
    ladder = rows((0.40, 0.50, 0.60, 0.70, 0.80), n=5000)
    assert task_analysis.task_verdicts(ladder)[0]["verdict"].startswith("predictable")
    alternating = [{"step": s, "task.t.accuracy": 0.5 + 0.3 * (-1) ** s} for s in range(20, 31)]
    evals = {row["name"]: alternating for row in ladder}
    assert task_analysis.task_verdicts(ladder, evals)[0]["verdict"] == "noisy"


def test_correlation_measures_the_order_of_runs():
    accuracies = (0.3, 0.5, 0.6, 0.7, 0.9)
    ladder = rows(
        accuracies, p_right=(1, 2, 3, 4, 5), bits_per_byte=(5, 4, 3, 2, 1), brier=(1, 2, 3, 4, 5)
    )
    correlations = task_analysis.correlations(ladder)
    assert correlations["p_right"]["t"] == correlations["bits_per_byte"]["t"] == pytest.approx(1)
    assert correlations["brier"]["t"] == pytest.approx(-1)
    at_chance = rows((0.25, 0.24, 0.26), p_right=(1, 2, 3))
    assert task_analysis.correlations(at_chance) == {}


def test_fastest_improving_tasks_have_long_answers():
    by_task = [
        rows((0.1, 0.9), task=name, exact=exact, tokens=(k, k))
        for name, exact, k in (("a", (0, 0.9), 4), ("b", (0, 0.5), 5), ("short", (0, 1), 1))
    ]
    both = [a | b | c for a, b, c in zip(*by_task, strict=True)]
    assert task_analysis.fastest_improving(both) == ["a", "b"]
    choices = rows((0.1, 0.9), task="pair:x#y/z", tokens=(7, 7))  # no exact match
    assert task_analysis.fastest_improving(choices) == []


def test_known_laws_predict_the_next_size_or_refuse_the_task():
    bits = [0.5 + 60 * size**-0.4 for size in SIZES]
    accuracies = [0.25 + 0.75 / (1 + np.exp(3 * (b - 1.2))) for b in bits]
    known = rows(accuracies, bits_per_byte=bits)
    constant = rows([0.25] * 5, task="u", bits_per_byte=bits)
    both = [a | b for a, b in zip(known, constant, strict=True)]
    predictions = task_analysis.predict_task_accuracy(both[:4], 1e6, bootstrap=50)
    assert predictions["t"]["value"] == pytest.approx(accuracies[4], abs=0.02)
    # Four rows leave no residuals of the four parameters of the sigmoid.
    assert predictions["t"]["lo"] is None and predictions["t"]["hi"] is None
    inside = task_analysis.predict_task_accuracy(both, 1e6, bootstrap=50)["t"]
    assert inside["lo"] <= accuracies[4] <= inside["hi"]
    assert "is above chance" in predictions["u"]["refused"]


def test_jump_has_an_interval_and_the_power_of_p():
    shares = (0.0, 0.02, 0.9, 0.95, 1.0)
    smooth = [share**0.25 for share in shares]
    ladder = rows(shares, task="a", exact=shares, tokens=[4] * 5, token_probability=smooth)
    (jump,) = task_analysis.largest_jumps(ladder)
    assert (jump["from"], jump["to"]) == ("s/30000", "s/100000")
    assert jump["exact"] == [0.02, 0.9] and jump["p_power_k"] == pytest.approx(jump["exact"])
    assert jump["p"][1] - jump["p"][0] < 0.7 * (0.9 - 0.02)  # p rises less than p^k
    assert jump["exact_lo"][0] < 0.02 < jump["exact_hi"][0] < jump["exact_lo"][1] < 0.9


def test_accuracies_explained_by_guessing_give_no_prediction():
    falling = rows((0.36, 0.33, 0.28, 0.26), n=100, bits_per_byte=(3.0, 2.5, 2.0, 1.5))
    predictions = task_analysis.predict_task_accuracy(falling, 1e6, bootstrap=50)
    assert "is above chance" in predictions["t"]["refused"]


def test_verdicts_use_the_largest_token_budget():
    long = [row | {"tokens": 2_000_000} for row in rows([0.3, 0.5, 0.6, 0.8, 0.9])]
    short = [
        row | {"tokens": 1_000_000, "name": row["name"] + "-short"}
        for row in rows([0.0, 0.0, 0.0, 0.0, 0.0])
    ]
    trunk = long[0] | {"name": "s/trunk", "eval.task.t.accuracy": 1.0, "tokens": 1_900_000}
    branch = {"start.run": "s/trunk", "start.restore": "full_state"}
    branches = [row | branch for row in long]
    (mixed,) = task_analysis.task_verdicts([trunk, *short, *branches])
    (alone,) = task_analysis.task_verdicts(long)
    assert mixed == alone and mixed["best_score"] == 0.9


def test_best_score_of_a_translation_has_the_metric_of_its_baseline():
    runs = rows([0.0, 0.01], n=1000)
    for chrf, row in zip((30.0, 40.0), runs, strict=True):
        row |= {"eval.task.t.chrf": chrf, "eval.task.t.chrf_baseline_copy": 50.0}
    (verdict,) = task_analysis.task_verdicts(runs)
    assert (verdict["baseline"], verdict["baseline_name"]) == (50, "copy (chrf)")
    assert verdict["best_score"] == 40
    del runs[0]["eval.task.t.chrf"]  # a record of an earlier version
    assert task_analysis.task_verdicts(runs)[0]["best_score"] == 40
    assert "by chrF (0 to 100)" in " ".join(task_section._baseline_notes(runs))
    assert "chrF" not in " ".join(task_section._baseline_notes(rows([0.1, 0.2])))


def test_jump_needs_two_runs():
    answer = {"exact": [0.5], "tokens": [4.0], "token_probability": [0.8], "p_right": [0.4]}
    assert task_analysis.largest_jumps(rows([0.5], **answer)) == []


def test_rows_without_chance_or_number_of_examples_have_a_verdict():
    (row,) = rows([0.5])
    no_chance = {k: v for k, v in row.items() if not k.endswith(".chance")}
    assert task_analysis.task_verdicts([{**no_chance, "start.run": ""}])[0]["chance"] == 0


def test_rank_correlation_leaves_out_runs_without_finite_values():
    finite = rows([0.3, 0.5, 0.6, 0.9], token_probability=[0.2, 0.1, 0.5, 0.4])
    (invalid,) = rows([0.4], token_probability=[float("nan")])
    with_invalid = task_analysis.correlations([*finite, invalid])
    assert with_invalid == task_analysis.correlations(finite) and with_invalid


def test_equal_values_share_their_mean_rank():
    ranks = task_analysis._average_ranks(np.array([0.2, 0.1, 0.2, 0.5]))
    assert ranks.tolist() == [2.5, 1, 2.5, 4]


def test_step_between_two_losses_is_no_law():
    losses = np.linspace(4.0, 5.0, 11)

    def fit_curve(accuracies, losses=losses, sizes=range(11)) -> tuple:
        rows = [
            {"name": f"s/{loss:.2f}", "status": "done", "eval.loss": loss, "tokens": 1e6}
            | {"params.non_embedding": 1000 * (1 + size)}
            | {"eval.task.t.accuracy": accuracy, "eval.task.t.n": 1000, "eval.task.t.chance": 0.5}
            for loss, accuracy, size in zip(losses, accuracies, sizes, strict=True)
        ]
        return task_analysis.accuracy_curves(rows, bootstrap=0)["t"]

    noise = 0.004 * np.cos(7 * losses)
    for middle in (0.0, 0.15):  # a run on the rise does not determine the slope alone
        accuracies = 0.55 + 0.3 * (losses < 4.35) + middle * (abs(losses - 4.4) < 0.01) + noise
        fit, reason = fit_curve(accuracies)
        assert fit is None and reason.startswith("the fitted curve is a step: "), middle
    fit, reason = fit_curve(0.55 + 0.3 / (1 + np.exp(8 * (losses - 4.45))) + noise)
    assert fit and not reason
    seeds = np.sort([*losses, 4.39, 4.41])  # three runs near 4.4 are on the rise
    accuracies = 0.55 + 0.3 * (seeds < 4.35) + 0.15 * (abs(seeds - 4.4) < 0.03)
    fit, reason = fit_curve(accuracies, seeds, (*range(4), 4, 4, 4, *range(5, 11)))
    assert fit is None and "only one size is on its rise" in reason
    assert fit_curve(accuracies, seeds, range(13))[0]
