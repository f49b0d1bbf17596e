"""Gain of pre-training of rows with known scores."""

import numpy as np
import pytest

from lm.reports.plots import style, transfer
from lm.reports.sections.abilities import transfer_section
from lm.reports.tuned_abilities import pretraining_gain

TASK, OTHER = "file:my/captions?template=chat", "file:my/sst2?template=chat&n=500"
SIZES = (1000, 4000, 16000)


def prompt_row(size, bleu, start="", steps=100, sources=("chat:a",), columns=None):
    """Return the row of a finished run on conversations with the BLEU of its translations."""
    return {
        **{"name": f"t/{size}-{bleu}-{start}-{steps}", "status": "done", "seed": 0, "steps": steps},
        **{"params.non_embedding": size, "start.run": start, "data.loss_on": "answers"},
        **{"data.sources": dict.fromkeys(sources, 1.0), "unique_tokens": 1000, "optim.lr": 0.01},
        **{"eval.loss": 2.0, f"eval.task.{TASK}.accuracy": 0.0, f"eval.task.{TASK}.bleu": bleu},
        **{f"eval.task_se.{TASK}.bleu": 0.3, f"eval.task.{TASK}.bleu_baseline_nearest": 8.0},
        **(columns or {}),
    }


def rows() -> list[dict]:
    """Return runs of three sizes whose gain is -2, 1 and 4 BLEU, with a worse learning rate."""
    result = []
    for size, tuned in zip(SIZES, (8.0, 12.0, 18.0), strict=True):
        scratch = {1000: 10.0, 4000: 11.0, 16000: 14.0}[size]
        result.append(prompt_row(size, tuned, "p/parent"))
        result.append(
            prompt_row(size, 99.0, "p/parent", columns={"eval.loss": 2.5, "optim.lr": 9.0})
        )
        result.append(prompt_row(size, scratch))
        result.append(prompt_row(size, scratch + 2, steps=600))
    return result


def test_best_held_out_loss_selects_the_learning_rate():
    points = pretraining_gain.task_scores(rows())
    tuned = [p for p in points if p["method"] == pretraining_gain.TUNED]
    assert [(p["size"], p["value"]) for p in tuned] == [(1000, 8), (4000, 12), (16000, 18)]
    assert {p["lr"] for p in tuned} == {0.01}
    assert {(p["task"], p["metric"], p["baseline"]) for p in points} == {("captions", "bleu", 8.0)}
    fewer = prompt_row(1000, 50.0, "p/parent", columns={"eval.loss": 1.0, "unique_tokens": 10})
    lossless = prompt_row(4000, 50.0, "p/parent", columns={"eval.loss": "nan"})
    invalid = prompt_row(4000, "nan", "p/parent", columns={f"eval.task.{TASK}.accuracy": "nan"})
    assert pretraining_gain.task_scores([*rows(), fewer, lossless, invalid]) == points


def test_gain_pays_from_the_smallest_significant_size():
    effects = pretraining_gain.compare_methods(pretraining_gain.task_scores(rows()))
    equal = [g for g in effects if g["other"] == pretraining_gain.SCRATCH]
    assert [g["gain"] for g in equal] == pytest.approx([-2, 1, 4])
    assert equal[0]["gain_se"] == pytest.approx(0.3 * 2**0.5)
    assert pretraining_gain.paying_size(equal) == 4000
    assert pretraining_gain.paying_size(equal[:1]) is None
    second_seeds = [
        prompt_row(size, bleu, start, columns={"seed": seed})
        for size, bleu, start in ((1000, 10.0, ""), (4000, 11.0, ""), (16000, 18.0, "p/parent"))
        for seed in range(1, 6)
    ]
    points = pretraining_gain.task_scores([*rows(), *second_seeds])
    sentences = pretraining_gain.describe_gains(pretraining_gain.compare_methods(points))
    assert sentences[0] == (
        "captions: tuned against from scratch pays from 16000 on (+4.0 ± 0.4 BLEU at 16000), and is"
        " worse at 1000"
    )
    assert "total FLOPs pays from 16000 on" in sentences[1]
    assert "worse at 1000" in sentences[1]


def test_one_seed_per_size_gives_no_test():
    effects = pretraining_gain.compare_methods(pretraining_gain.task_scores(rows()))
    for sentence in pretraining_gain.describe_gains(effects):
        assert "is not tested, because each size has one seed (+" in sentence
        assert "pays" not in sentence and "worse" not in sentence


def test_rows_without_a_gain_rarely_pay():
    """The seeds differ by 1 BLEU, and most sizes have one seed."""
    rng = np.random.default_rng(0)
    n_paying = 0
    for _ in range(100):
        scores = 10 + rng.standard_normal(9)
        plan = [(size, start, 0) for size in SIZES for start in ("", "p/parent")]
        plan += [(1000, start, seed) for start, seed in (("", 1), ("p/parent", 1), ("", 2))]
        made = [
            prompt_row(size, score, start, columns={"seed": seed})
            for (size, start, seed), score in zip(plan, scores, strict=True)
        ]
        effects = pretraining_gain.compare_methods(pretraining_gain.task_scores(made))
        n_paying += "pays" in pretraining_gain.describe_gains(effects)[0]
    assert n_paying <= 5


def test_run_without_facts_is_ignored():
    lost = {k: v for k, v in prompt_row(1000, 9.0).items() if not k.startswith(("params", "eval"))}
    points = pretraining_gain.task_scores([*rows(), lost | {"status": "lost"}])
    assert points == pretraining_gain.task_scores(rows())


def test_comparisons_without_a_test_do_not_weaken_the_others():
    """The seeds of `tuned` differ much more than those from scratch."""
    made = [
        prompt_row(size, mean + sd * deviation, start, columns={"seed": seed})
        for size in SIZES
        for start, mean, sd in (("p/parent", 20.0, 2.0), ("", 8.0, 0.1))
        for seed, deviation in enumerate((-1, 0, 1))
    ]
    points = pretraining_gain.task_scores(made)
    errors = {p["method"]: p["se"] for p in points}
    assert errors["tuned"] == pytest.approx((0.3**2 + 4 / 3) ** 0.5)
    assert errors["from scratch"] == pytest.approx((0.3**2 + 0.01 / 3) ** 0.5)
    effects = pretraining_gain.compare_methods(points)
    (sentence,) = pretraining_gain.describe_gains(effects)
    untested = [{**e, "task": f"t{i}", "seed_degrees": 0} for i in range(40) for e in effects]
    assert pretraining_gain.describe_gains([*effects, *untested])[0] == sentence
    assert "pays from 1000 on" in sentence


def test_degrees_of_a_gain_are_those_of_the_noisier_method():
    made = [
        prompt_row(1000, 10 + 2 * seed, "p/parent", columns={"seed": seed}) for seed in range(3)
    ] + [prompt_row(1000, 10 + 0.1 * seed, columns={"seed": seed}) for seed in range(6)]
    (effect,) = pretraining_gain.compare_methods(pretraining_gain.task_scores(made))
    known = 2 * 0.3**2  # errors of the items
    noise = 4 / 3
    assert effect["seed_degrees"] == pytest.approx((known + noise) ** 2 / (noise**2 / 2), rel=0.02)


def test_errors_contain_the_variance_between_seeds():
    seeds = [
        prompt_row(1000, bleu, columns={"seed": seed}) for seed, bleu in enumerate((9.0, 11.0))
    ]
    (point,) = pretraining_gain.task_scores(seeds)
    assert (point["value"], point["n_runs"]) == (10, 2)
    assert point["se"] == pytest.approx((0.3**2 + 2 / 2) ** 0.5)


def test_classifications_are_in_percent_and_runs_on_all_tasks_differ():
    column = f"eval.task.{OTHER}.accuracy"
    several = prompt_row(1000, 5.0, "p/q", sources=("chat:a", "chat:b"), columns={column: 0.75})
    points = pretraining_gain.task_scores([several, prompt_row(1000, 5.0, columns={column: 0.5})])
    assert {(p["task"], p["method"], p["value"]) for p in points} == {
        *[("captions", "tuned on all tasks", 5), ("captions", "from scratch", 5)],
        *[("sst2", "tuned on all tasks", 75), ("sst2", "from scratch", 50)],
    }
    (gain,) = [g for g in pretraining_gain.compare_methods(points) if "sst2" in g["task"]]
    assert (gain["method"], gain["gain"]) == ("tuned on all tasks", 25)


def test_tuned_instruction_is_compared_with_a_model_without_it():
    """An unseen instruction is a test of its own. Two instructions of a file are one task."""
    seen, unseen = (
        OTHER.replace("&n=", f"&instruction={line}&n=") for line in ("Rate+it.", "Good%3F")
    )
    scores = {f"eval.task.{task}.accuracy": score for task, score in ((seen, 0.8), (unseen, 0.7))}
    sources = ("chat:sst2?instruction=Rate+it.", "chat:sst2?instruction=Judge+it.")
    alone = prompt_row(1000, 5.0, columns={f"eval.task.{OTHER}.accuracy": 0.5})
    one_task = prompt_row(1000, 5.0, "p/q", sources=sources, columns=scores)
    points = pretraining_gain.task_scores([one_task, alone])
    assert {(p["task"], p["method"], p["value"]) for p in points if "sst2" in p["task"]} == {
        *[("sst2", "tuned", 80), ("sst2 (Good?)", "tuned", 70), ("sst2", "from scratch", 50)],
    }
    all_tasks = prompt_row(1000, 5.0, "p/q", sources=(*sources, "chat:b"), columns=scores)
    (gain,) = [
        effect
        for effect in pretraining_gain.compare_methods(
            pretraining_gain.task_scores([all_tasks, alone])
        )
        if effect["task"] == "sst2"
    ]
    assert (gain["method"], gain["gain"]) == ("tuned on all tasks", pytest.approx(30))
    untold = one_task | {f"eval.task.{OTHER}.accuracy": 0.3}  # the same run without the instruction
    points = pretraining_gain.task_scores([untold, alone])
    assert {(p["task"], p["value"]) for p in points if p["method"] == "tuned"} >= {
        *[("sst2 (Rate it.)", 80), ("sst2", 30)]
    }
    longer = prompt_row(1000, 5.0, sources=("chat:sst2",), steps=600)
    methods = {p["method"] for p in pretraining_gain.task_scores([one_task, longer])}
    assert methods == {"tuned", "from scratch, total FLOPs"}
    parts = prompt_row(1000, 5.0, "p/q", sources=("chat:a?only=sst2", "chat:a?only=nli"))
    (point, *_) = pretraining_gain.task_scores([parts])
    assert point["method"] == "tuned on all tasks"
    both = scores | {f"eval.task.{seen.replace('Rate', 'Judge')}.accuracy": 0.75}
    points = pretraining_gain.task_scores([one_task | both])
    assert {p["task"] for p in points if "sst2" in p["task"]} == {
        *("sst2 (Rate it.)", "sst2 (Judge it.)", "sst2 (Good?)")
    }


def test_labels_contain_the_wording_and_the_selection():
    labels = {
        OTHER: "sst2",
        "file:my/sst2?template=question&n=5": "sst2 (question)",
        "file:my/test_unseen_task.jsonl.gz?template=chat&only=nli": "test_unseen_task: nli",
        "file:my/sst2?instruction=Good+or+bad%3F&template=chat": "sst2 (Good or bad?)",
        "copy?length=3": "copy (length=3)",
    }
    assert {task: pretraining_gain.task_label(task) for task in labels} == labels


@pytest.mark.parametrize("other", ["file:new/sst2?template=chat&n=500", OTHER + "0"])
def test_tasks_with_equal_labels_are_not_mixed(other):
    """Tasks of another folder or with another number of items have other items."""
    columns = {f"eval.task.{OTHER}.accuracy": 0.5, f"eval.task.{other}.accuracy": 0.9}
    tuned = prompt_row(1000, 5.0, "p/q", columns={f"eval.task.{OTHER}.accuracy": 0.6})
    points = pretraining_gain.task_scores([tuned, prompt_row(1000, 5.0, columns=columns)])
    gains = [g for g in pretraining_gain.compare_methods(points) if "sst2" in g["task"]]
    assert [g["gain"] for g in gains] == pytest.approx([10])
    assert len({p["task"] for p in points}) == 3


def test_runs_with_another_number_of_steps_are_not_compared():
    """Twice the steps at one size are left out there, with both methods, and are no FLOPs arm."""
    double = [prompt_row(16000, 30.0, "p/parent", 200), prompt_row(16000, 29.0, steps=200)]
    double = [row | {"eval.loss": 1.0} for row in double]
    points = pretraining_gain.task_scores(rows())
    for added in (double, double[:1], [double[0] | {"status": "running"}, double[1]]):
        assert pretraining_gain.task_scores([*rows(), *added]) == points
    assert (
        pretraining_gain.task_scores([*rows(), *[row | {"status": "failed"} for row in double]])
        == points
    )
    twice = [row | {"steps": 200} for row in rows() if row["steps"] == 100]
    second = [row | {"seed": 1} for row in rows() if row["steps"] == 100]
    scores = pretraining_gain.task_scores([*rows(), *twice, *second])
    assert {p["n_runs"] for p in scores if p["method"] != pretraining_gain.TOTAL_FLOPS} == {2}
    on_all = [prompt_row(n, 9.0, "p/q", sources=("chat:a", "chat:b")) for n in SIZES]
    scores = pretraining_gain.task_scores([*twice, *on_all])
    assert {effect["method"] for effect in pretraining_gain.compare_methods(scores)} == {"tuned"}
    only_double = [row for row in rows() if row["params.non_embedding"] != 16000] + double
    largest = [p for p in pretraining_gain.task_scores(only_double) if p["size"] == 16000]
    assert [p["value"] for p in largest] == [30, 29]  # the only number of steps of this size


def test_all_seeds_of_a_size_have_one_learning_rate():
    def seeds(losses_by_rate, seed):
        columns = [{"eval.loss": y, "optim.lr": x, "seed": seed} for x, y in losses_by_rate]
        return [prompt_row(1000, 100 * c["optim.lr"], columns=c) for c in columns]

    runs = [*seeds([(0.02, 2.0), (0.04, 1.9)], 0), *seeds([(0.0200000001, 2.1)], 1)]
    (point,) = pretraining_gain.task_scores(runs)
    assert (point["lr"], point["n_runs"]) == (pytest.approx(0.02), 2)
    (point,) = pretraining_gain.task_scores([*runs, *seeds([(0.04, 2.3)], 1)])
    assert point["lr"] == pytest.approx(0.02)  # mean losses 2.05 and 2.1
    (point,) = pretraining_gain.task_scores([*runs[:2], *seeds([(0.08, 2.3)], 1)])
    assert point["lr"] == pytest.approx(0.06)  # no common rate


@pytest.mark.parametrize("status", ["failed", None])
def test_longer_run_from_scratch_needs_no_finished_tuned_run(status):
    """The tuned run has failed, or has not started."""
    scratch, longer = prompt_row(1000, 10.0), prompt_row(1000, 12.0, steps=600)
    longer["eval.loss"] = 1.0
    tuned = [prompt_row(1000, 5.0, "p/q") | {"status": status}] if status else []
    points = pretraining_gain.task_scores([longer, *tuned, scratch])
    scores = {p["method"]: p["value"] for p in points}
    assert scores == {pretraining_gain.SCRATCH: 10, pretraining_gain.TOTAL_FLOPS: 12}


@pytest.mark.parametrize(("n_seeds", "text"), [(1, "items alone"), (2, "items and seeds.")])
def test_captions_state_the_sources_of_errors(n_seeds, text):
    seeds = [row | {"seed": seed} for row in rows() for seed in range(n_seeds)]
    points = pretraining_gain.task_scores(seeds)
    effects = pretraining_gain.compare_methods(points)
    for drawn in (
        transfer.tuned_scores_vs_size(points),
        transfer.pretraining_gain_vs_size(effects),
    ):
        assert text in " ".join(drawn.get_supxlabel().split())


def test_figures_and_table_show_all_methods():
    points = pretraining_gain.task_scores(rows())
    lines = transfer_section._score_lines(points)
    assert [line["parameters"] for line in lines] == list(SIZES)
    assert lines[0]["best baseline"] == "nearest 8.0" and lines[0]["tuned"] == (8.0, 0.3)
    figure = transfer.tuned_scores_vs_size(points)
    effects = transfer.pretraining_gain_vs_size(pretraining_gain.compare_methods(points))
    for drawn in (figure, effects):
        tips = [a.get_gid() for axes in drawn.axes for a in axes.get_children() if a.get_gid()]
        assert sum(str(tip).startswith("tip:") for tip in tips) >= 6
    assert transfer.tuned_scores_vs_size([], style.DARK) and transfer.pretraining_gain_vs_size([])


def test_bits_per_byte_gain_if_they_fall():
    bits = f"eval.task.{TASK}.bits_per_byte"
    errors = f"eval.task_se.{TASK}.bits_per_byte"
    pair = [
        prompt_row(1000, 9.0, "p/parent", columns={bits: 1.5, errors: 0.1}),
        prompt_row(1000, 9.0, columns={bits: 2.0, errors: 0.1}),
    ]
    without = prompt_row(4000, 9.0)  # a record without the metric
    points = pretraining_gain.task_scores([*pair, without], metric="bits_per_byte")
    assert [(p["size"], p["value"], p["metric"]) for p in points] == [
        (1000, 1.5, "bits_per_byte"),
        (1000, 2.0, "bits_per_byte"),
    ]
    assert np.isnan(points[0]["baseline"]) and not points[0]["baseline_name"]
    (effect,) = pretraining_gain.compare_methods(points)
    assert effect["gain"] == pytest.approx(0.5)
    (sentence,) = pretraining_gain.describe_gains([effect])
    assert "+0.500 ± 0.141 bits per byte" in sentence
    figure = transfer.tuned_scores_vs_size(points, style.LIGHT)
    (axes,) = [axes for axes in figure.axes if axes.get_ylabel()]
    assert axes.get_ylabel() == "Score (bits per byte)"
