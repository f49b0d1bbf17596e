"""Transfer analysis of rows with known gains."""

import pytest

from lm.reports import transfer_analysis
from lm.reports.plots import style, transfer


def run_row(size, tokens, loss, start="", seed=0, **columns):
    """Return the row of a finished run, fine-tuned if `start` names a parent."""
    name = f"s/{size}-{tokens}-{start}-{seed}"
    return {
        **{"name": name, "status": "done", "params.non_embedding": size, "unique_tokens": tokens},
        **{"eval.loss": loss, "eval.loss_se": 0.03, "start.run": start, "data.sources": {}},
        **columns,
    }


ROWS = [
    run_row(size, tokens, 3 - tokens / 1e4 - size / 1e4 - (0.4 if start else 0.0), start)
    for size in (1000, 4000)
    for tokens in (1000, 8000)
    for start in ("", "s/parent")
]


def test_pair_has_both_losses_and_the_error_of_the_difference():
    unpaired = run_row(1000, 2000, 2.0)
    failed = run_row(4000, 2000, 2.0, "s/parent", status="failed")
    pairs = transfer_analysis.finetune_pairs([*ROWS, unpaired, failed])
    assert [(pair["size"], pair["tokens"]) for pair in pairs] == [
        (size, tokens) for size in (1000, 4000) for tokens in (1000, 8000)
    ]
    assert all(pair["gain"] == pytest.approx(0.4) for pair in pairs)
    assert pairs[0]["gain_se"] == pytest.approx(0.03 * 2**0.5)


def test_pairs_average_over_seeds():
    rows = [
        run_row(1000, 1000, loss, start, seed)
        for seed, loss in enumerate((2.0, 2.4))
        for start in ("", "s/p")
    ]
    rows[1]["eval.loss"] = 1.0
    (pair,) = transfer_analysis.finetune_pairs(rows)
    assert pair["scratch"] == pytest.approx(2.2) and pair["tuned"] == pytest.approx(1.7)
    variances = (0.4**2 / 2 + 1.4**2 / 2) / 2  # of the means over two seeds
    assert pair["gain_se"] == pytest.approx((2 * 0.03**2 + variances) ** 0.5)


def task_row(size, n_clusters, accuracies, seed=0):
    """Return the row of a run that was tuned on n clusters, with the accuracies of tasks."""
    tasks = "+".join(f"copy?length={i + 2}" for i in range(n_clusters))
    columns = {"data.sources": {f"tasks:{tasks}": 0.9, "docs": 0.1}}
    columns |= {f"eval.task.{task}.accuracy": value for task, value in accuracies.items()}
    columns |= {f"eval.task_se.{task}.accuracy": 0.04 for task in accuracies}
    return run_row(size, 0, 2.0, "s/p" if n_clusters else "", seed, **columns)


def test_accuracies_are_means_over_group_and_seeds():
    rows = [
        task_row(1000, 0, {"a": 0.0, "b": 0.2}),
        task_row(1000, 3, {"a": 0.4, "b": 0.6, "c": 1.0}, 0),
        task_row(1000, 3, {"a": 0.6, "b": 0.8, "c": 1.0}, 1),
    ]
    points = transfer_analysis.mean_accuracy(rows, {"new": ["a", "b"], "tuned": ["c"]})
    keys = [(point["n_clusters"], point["group"], point["n_runs"]) for point in points]
    assert keys == [(0, "new", 1), (3, "new", 2), (3, "tuned", 2)]
    assert [point["value"] for point in points] == pytest.approx([0.1, 0.6, 1.0])
    sampling_error, seed_variance = 0.04 / 2**0.5, 0.2**2 / 2
    assert points[0]["se"] == pytest.approx(sampling_error)
    assert points[1]["se"] == pytest.approx((sampling_error**2 + seed_variance / 2) ** 0.5)


def test_transfer_figures_show_every_pair_and_group():
    figure = transfer.finetuned_vs_scratch([*ROWS, run_row(1000, 2000, 2.0)])
    (axes,) = figure.axes
    markers = [line for line in axes.lines if str(line.get_gid()).startswith("tip:")]
    assert len(markers) == len(ROWS)
    points = transfer_analysis.mean_accuracy(
        [task_row(n, k, {"a": 0.5, "c": 1.0}) for n in (1000, 4000) for k in (0, 3)],
        {"new": ["a"], "tuned": ["c"]},
    )
    figure = transfer.unseen_task_accuracy(points)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["new", "tuned"]
    assert "4 runs" in figure.get_supxlabel()
    for figure in (transfer.finetuned_vs_scratch([]), transfer.unseen_task_accuracy([])):
        assert len(figure.axes) == 1


def specialist(size, n, method, bits, steps=300):
    """Return the row of a run that was trained on n examples of the task "sums"."""
    source, is_tuned = f"chat:my/sums/train.jsonl?cap={n}", method == "tuned"
    columns = {"eval.task.file:my/sums?n=9&template=chat.bits_per_byte": bits}
    columns["eval.task.file:my/sums?n=9&template=chat.accuracy"] = 0.5
    columns["eval.task_se.file:my/sums?n=9&template=chat.bits_per_byte"] = 0.1
    config = {"data.sources": {source: 1.0}, "data.loss_on": "answers", "steps": steps}
    config |= {"data.batch_size": 2, "data.seq_len": 5, "name": f"s/{size}-{n}-{method}-{steps}"}
    facts = {f"rows.n_documents.{source}": n, "flops_per_token.full": 10.0, "parent.flops": 7e6}
    return run_row(size, n, 2.0, "s/parent" if is_tuned else "") | columns | config | facts


def general(size):
    """Return the row of a pre-trained run that was evaluated with 0 and 2 examples per prompt."""
    tasks = {f"eval.task.file:my/sums?n=9&shots={k}.bits_per_byte": 5.0 - k for k in (0, 2)}
    tasks |= {f"eval.task.file:my/sums?n=9&shots={k}.accuracy": 0.1 for k in (0, 2)}
    return run_row(size, 0, 2.0) | tasks | {"name": "s/parent", "data.loss_on": "all", "steps": 9}


SPECIALISTS = [
    general(1000),
    specialist(1000, 100, "tuned", 2.0),
    specialist(1000, 100, "scratch", 4.0),
    specialist(1000, 1000, "tuned", 1.0),
    specialist(1000, 1000, "scratch", 3.0),
    specialist(1000, 1000, "scratch", 1.5, steps=900),
]
# {run: {step: loss}}. The tuned run on 1000 examples has its best loss at step 20. The longer run
# from scratch has the same loss at step 60.
LOSSES = {
    "s/1000-1000-tuned-300": {0: 3.0, 10: 2.0, 20: 1.0, 30: 1.1},
    "s/1000-1000-scratch-900": {20: 3.0, 40: 2.0, 60: 1.0, 80: 0.9},
    "s/1000-100-tuned-300": {0: 3.0, 10: 1.0},
    "s/1000-100-scratch-300": {10: 3.0, 20: 2.0},
}
EVALS = {
    name: [{"step": step, "loss": loss} for step, loss in losses.items()]
    for name, losses in LOSSES.items()
}


def test_task_quality_names_the_training_method():
    points = transfer_analysis.task_quality(SPECIALISTS)
    methods = [(point["method"], point["n_examples"], point["value"]) for point in points]
    assert methods == [
        ("prompted, 0 shots", 0, 5.0),
        ("prompted, 2 shots", 0, 3.0),
        ("tuned", 100, 2.0),
        ("from scratch", 100, 4.0),
        ("tuned", 1000, 1.0),
        ("from scratch", 1000, 3.0),
        ("from scratch, same FLOPs", 1000, 1.5),
    ]
    assert {point["task"] for point in points} == {"sums"} and points[2]["se"] == 0.1
    double = [specialist(1000, 1000, method, 0.5, 900) for method in ("tuned", "scratch")]
    points = transfer_analysis.task_quality([*double, *SPECIALISTS])
    assert [point["method"] for point in points[:2]] == ["tuned", "from scratch"]
    points = transfer_analysis.task_quality([double[0] | {"status": "running"}, double[1]])
    assert [point["method"] for point in points] == ["from scratch"]


@pytest.mark.parametrize(
    "task, name",
    [
        ("file:my/sst2?n=100", "sst2"),
        ("copy?length=4&n=200", "copy"),
        ("pair:my/blimp?n=9#binding/principle", "blimp/principle"),
    ],
)
def test_base_name_of_a_task_has_no_folder_and_no_options(task, name):
    assert transfer_analysis.task_base_name(task) == name


def test_compute_saved_counts_to_an_equal_loss_from_scratch():
    (point,) = transfer_analysis.compute_saved(SPECIALISTS, EVALS)  # for 1000 examples
    assert (point["tuned_flops"], point["scratch_flops"]) == (20 * 100, 60 * 100)
    assert point["flops_ratio"] == 3.0
    assert point["is_loss_reached"] and point["pretraining_flops"] == 7e6
    (bound,) = transfer_analysis.compute_saved(SPECIALISTS[:3], EVALS)
    assert not bound["is_loss_reached"] and bound["flops_ratio"] == 2.0
    lossless = [{k: v for k, v in general(1000).items() if k != "eval.loss"}]
    assert transfer_analysis.compute_saved([*SPECIALISTS, *lossless], EVALS) == [point]
    worse = next(row for row in SPECIALISTS if row["name"] == "s/1000-1000-tuned-300")
    worse = worse | {"name": "worse", "eval.loss": 2.5}
    evals = EVALS | {"worse": [{"step": 40, "loss": 2.5}]}
    assert transfer_analysis.compute_saved([*SPECIALISTS, worse], evals) == [point]


def test_forgetting_compares_loss_on_text_of_the_parent():
    parent = run_row(1000, 50, 2.0) | {"eval.loss.docs": 1.5, "data.sources": {"docs": 1.0}}
    losses = {"eval.loss.docs": 1.9, "eval.loss.code": 1.0, "eval.loss_se.docs": 0.02}
    child = run_row(1000, 80, 1.0, parent["name"]) | losses
    orphan = run_row(1000, 90, 1.0, "s/missing") | losses
    (point,) = transfer_analysis.forgetting([parent, child, orphan])
    assert (point["before"], point["after"], point["after_se"]) == (1.5, 1.9, 0.02)
    assert point["source"] == "docs" and point["tokens"] == 80


def test_left_out_cluster_is_compared_with_tuning_on_it():
    def tuned(name, tasks, accuracies, seed=0):
        sources = {"tasks:" + "+".join(tasks): 1.0, "docs": 0.1}
        columns = {"name": f"s/{name}", "start.run": "s/p", "data.sources": sources}
        return task_row(1000, 1, accuracies, seed) | columns

    rows = [
        tuned("full-0", ["a", "b", "c"], {"a": 1.0, "b": 0.8, "c": 1.0, "new": 0.3}),
        tuned("full-1", ["a", "b", "c"], {"a": 0.8, "b": 0.6, "c": 1.0, "new": 0.3}, 1),
        tuned("not-evaluated", ["c"], {"c": 1.0, "new": 0.1}),  # no accuracy of the cluster a, b
        tuned("without", ["c"], {"a": 0.2, "b": 0.4}),
    ]
    (point,) = transfer_analysis.leave_one_cluster_out(rows)
    assert point["cluster"] == ["a", "b"] and point["without"] == pytest.approx(0.3)
    assert point["with"] == pytest.approx(0.8) and point["gap"] == pytest.approx(0.5)
    assert point["gap_se"] == pytest.approx((0.04**2 / 2 + 0.04**2 / 2 + 0.2**2 / 4) ** 0.5)
    assert "n = 1 runs" in transfer.left_out_clusters([point]).get_supxlabel()


def test_quality_figures_show_every_method_and_mark_bounds():
    figure = transfer.task_quality_vs_data(transfer_analysis.task_quality(SPECIALISTS))
    tips = [artist.get_gid() for artist in figure.axes[0].lines if artist.get_gid()]
    assert len(tips) == 5 and "tip:1K from scratch, same FLOPs: 1.50 ± 0.10" in tips
    bounds = transfer_analysis.compute_saved(SPECIALISTS[:3], EVALS)
    lines = transfer.compute_saved_vs_size(bounds).axes[0].lines
    (marker,) = [line for line in lines if line.get_gid()]
    assert "more than 2.0 times" in str(marker.get_gid())
    assert marker.get_markerfacecolor() == style.LIGHT["paper"]


@pytest.mark.parametrize(
    "plot",
    [
        transfer.task_quality_vs_data,
        transfer.compute_saved_vs_size,
        transfer.left_out_clusters,
        transfer.forgetting_vs_size,
    ],
)
def test_figures_without_points_can_be_drawn(plot):
    plot([]).draw_without_rendering()
