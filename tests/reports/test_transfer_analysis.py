"""Transfer analysis of rows with known gains."""

import pytest

from lm.reports import transfer_analysis
from lm.reports.plots import transfer


def row(size, tokens, loss, start="", seed=0, **more):
    name = f"s/{size}-{tokens}-{start}-{seed}"
    return {
        **{"name": name, "status": "done", "params.non_embedding": size, "unique_tokens": tokens},
        **{"eval.loss": loss, "eval.loss_se": 0.03, "start.run": start, "data.sources": {}},
        **more,
    }


ROWS = [
    row(size, tokens, 3 - tokens / 1e4 - size / 1e4 - (0.4 if start else 0.0), start)
    for size in (1000, 4000)
    for tokens in (1000, 8000)
    for start in ("", "s/parent")
]


def test_pair_has_both_losses_and_the_error_of_the_difference():
    alone = row(1000, 2000, 2.0)
    failed = row(4000, 2000, 2.0, "s/parent", status="failed")
    results = transfer_analysis.finetune_pairs([*ROWS, alone, failed])
    assert [(pair["size"], pair["tokens"]) for pair in results] == [
        (size, tokens) for size in (1000, 4000) for tokens in (1000, 8000)
    ]
    assert all(pair["gain"] == pytest.approx(0.4) for pair in results)
    assert results[0]["gain_se"] == pytest.approx(0.03 * 2**0.5)


def test_pairs_average_over_seeds():
    rows = [row(1000, 1000, loss, start, seed) for seed, loss in enumerate((2.0, 2.4))
            for start in ("", "s/p")]  # fmt: skip
    rows[1]["eval.loss"] = 1.0
    (pair,) = transfer_analysis.finetune_pairs(rows)
    assert pair["scratch"] == pytest.approx(2.2) and pair["tuned"] == pytest.approx(1.7)
    assert pair["gain_se"] == pytest.approx(0.03)


def set_tasks(size, n, shares, seed=0):
    sources = {"tasks:" + "+".join(f"copy?length={i + 2}" for i in range(n)): 0.9, "docs": 0.1}
    columns = {f"eval.task.{task}.accuracy": share for task, share in shares.items()}
    errors = {f"eval.task_se.{task}.accuracy": 0.04 for task in shares}
    more = {"data.sources": sources, **columns, **errors}
    return row(size, 0, 2.0, "s/p" if n else "", seed, **more)


def test_accuracies_are_means_over_group_and_seeds():
    rows = [
        set_tasks(1000, 0, {"a": 0.0, "b": 0.2}),
        set_tasks(1000, 3, {"a": 0.4, "b": 0.6, "c": 1.0}, 0),
        set_tasks(1000, 3, {"a": 0.6, "b": 0.8, "c": 1.0}, 1),
    ]
    results = transfer_analysis.mean_accuracy(rows, {"new": ["a", "b"], "tuned": ["c"]})
    kinds = [(point["n_clusters"], point["group"], point["n_runs"]) for point in results]
    assert kinds == [(0, "new", 1), (3, "new", 2), (3, "tuned", 2)]
    assert [point["value"] for point in results] == pytest.approx([0.1, 0.6, 1.0])
    sampling_error, apart = 0.04 / 2**0.5, 0.2**2 / 2
    assert results[0]["se"] == pytest.approx(sampling_error)
    assert results[1]["se"] == pytest.approx(((sampling_error**2 + apart) / 2) ** 0.5)


def test_transfer_figures_show_every_pair_and_group():
    figure = transfer.finetuned_vs_scratch([*ROWS, row(1000, 2000, 2.0)])
    (axes,) = figure.axes
    assert len([line for line in axes.lines if str(line.get_gid()).startswith("tip:")]) == len(ROWS)
    points = transfer_analysis.mean_accuracy(
        [set_tasks(n, k, {"a": 0.5, "c": 1.0}) for n in (1000, 4000) for k in (0, 3)],
        {"new": ["a"], "tuned": ["c"]},
    )
    figure = transfer.unseen_task_accuracy(points)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["new", "tuned"]
    assert "4 runs" in figure.get_supxlabel()
    assert (
        len(transfer.finetuned_vs_scratch([]).axes)
        == len(transfer.unseen_task_accuracy([]).axes)
        == 1
    )  # nothing is no error


def specialist(size, n, way, bits, steps=300, **more):
    source, is_tuned = f"chat:my/sums/train.jsonl?cap={n}", way == "tuned"
    columns = {"eval.task.file:my/sums?n=9&template=chat.bits_per_byte": bits}
    columns["eval.task.file:my/sums?n=9&template=chat.accuracy"] = 0.5
    columns["eval.task_se.file:my/sums?n=9&template=chat.bits_per_byte"] = 0.1
    knobs = {"data.sources": {source: 1.0}, "data.loss_on": "answers", "steps": steps}
    facts = {f"rows.n_documents.{source}": n, "flops_per_token.full": 10.0, "parent.flops": 7e6}
    batch = {"data.batch_size": 2, "data.seq_len": 5, "name": f"s/{size}-{n}-{way}-{steps}"}
    made = row(size, n, 2.0, "s/parent" if is_tuned else "")
    return made | columns | knobs | facts | batch | more


def general(size):
    tasks = {f"eval.task.file:my/sums?n=9&shots={k}.bits_per_byte": 5.0 - k for k in (0, 2)}
    tasks |= {f"eval.task.file:my/sums?n=9&shots={k}.accuracy": 0.1 for k in (0, 2)}
    return row(size, 0, 2.0) | tasks | {"name": "s/parent", "data.loss_on": "all", "steps": 9}


SPECIALISTS = [
    general(1000),
    specialist(1000, 100, "tuned", 2.0),
    specialist(1000, 100, "alone", 4.0),
    specialist(1000, 1000, "tuned", 1.0),
    specialist(1000, 1000, "alone", 3.0),
    specialist(1000, 1000, "alone", 1.5, steps=900),
]
LOSSES = {  # by step: the tuned run is best at 20, and the longer one alone is as good at 60
    "s/1000-1000-tuned-300": {0: 3.0, 10: 2.0, 20: 1.0, 30: 1.1},
    "s/1000-1000-alone-900": {20: 3.0, 40: 2.0, 60: 1.0, 80: 0.9},
    "s/1000-100-tuned-300": {0: 3.0, 10: 1.0},
    "s/1000-100-alone-300": {10: 3.0, 20: 2.0},
}
EVALS = {
    name: [{"step": step, "loss": loss} for step, loss in losses.items()]
    for name, losses in LOSSES.items()
}


def test_task_quality_names_the_training_method():
    results = transfer_analysis.task_quality(SPECIALISTS)
    ways = [(point["way"], point["examples"], point["value"]) for point in results]
    assert ways == [
        ("prompted, 0 shots", 0, 5.0), ("prompted, 2 shots", 0, 3.0),
        ("tuned", 100, 2.0), ("alone", 100, 4.0), ("tuned", 1000, 1.0),
        ("alone", 1000, 3.0), ("alone, same FLOPs", 1000, 1.5),
    ]  # fmt: skip
    assert {point["task"] for point in results} == {"sums"} and results[2]["se"] == 0.1


def test_compute_saved_counts_to_an_equal_loss_from_scratch():
    (point,) = transfer_analysis.compute_saved(SPECIALISTS, EVALS)  # at the most examples
    assert (point["tuned"], point["alone"], point["saved"]) == (20 * 100, 60 * 100, 3.0)
    assert point["reached"] and point["pretraining"] == 7e6
    (never,) = transfer_analysis.compute_saved(SPECIALISTS[:3], EVALS)
    assert not never["reached"] and never["saved"] == 2.0


def test_forgetting_compares_loss_on_text_of_the_parent():
    parent = row(1000, 50, 2.0) | {"eval.loss.docs": 1.5, "data.sources": {"docs": 1.0}}
    more = {"eval.loss.docs": 1.9, "eval.loss.code": 1.0, "eval.loss_se.docs": 0.02}
    child = row(1000, 80, 1.0, parent["name"]) | more
    (point,) = transfer_analysis.forgetting([parent, child, row(1000, 90, 1.0, "s/nobody") | more])
    assert (point["before"], point["after"], point["after_se"]) == (1.5, 1.9, 0.02)
    assert point["source"] == "docs" and point["tokens"] == 80


def test_left_out_cluster_is_compared_with_tuning_on_it():
    def tuned(name, learned, shares, seed=0):
        made = set_tasks(1000, 1, shares, seed) | {"name": f"s/{name}", "start.run": "s/p"}
        return made | {"data.sources": {"tasks:" + "+".join(learned): 1.0, "docs": 0.1}}

    rows = [
        tuned("whole-0", ["a", "b", "c"], {"a": 1.0, "b": 0.8, "c": 1.0, "new": 0.3}),
        tuned("whole-1", ["a", "b", "c"], {"a": 0.8, "b": 0.6, "c": 1.0, "new": 0.3}, 1),
        tuned("few", ["c"], {"c": 1.0, "new": 0.1}),  # was not asked for what it lacks
        tuned("without", ["c"], {"a": 0.2, "b": 0.4}),
    ]
    (point,) = transfer_analysis.leave_one_cluster_out(rows)
    assert point["cluster"] == ["a", "b"] and point["without"] == pytest.approx(0.3)
    assert point["with"] == pytest.approx(0.8) and point["gap"] == pytest.approx(0.5)
    assert point["gap_se"] == pytest.approx((0.04**2 / 2 + 0.04**2 / 4) ** 0.5)
    assert "n = 1 runs" in transfer.left_out_clusters([point]).get_supxlabel()


def test_quality_figures_show_every_method_and_mark_bounds():
    figure = transfer.task_quality_vs_data(transfer_analysis.task_quality(SPECIALISTS))
    tips = [artist.get_gid() for artist in figure.axes[0].lines if artist.get_gid()]
    assert len(tips) == 5 and "tip:1K alone, same FLOPs: 1.50 ± 0.10" in tips
    (line,) = [o for o in transfer.compute_saved_vs_size(transfer_analysis.compute_saved(SPECIALISTS[:3], EVALS)).axes[0].lines
               if o.get_gid()]  # fmt: skip
    assert "more than 2.0 times" in str(line.get_gid())
    assert line.get_markerfacecolor() == transfer.LIGHT["paper"]
    for drawn in (transfer.task_quality_vs_data([]), transfer.compute_saved_vs_size([]), transfer.left_out_clusters([]),
                  transfer.forgetting_vs_size([])):  # fmt: skip
        drawn.draw_without_rendering()
