"""Selection of rows: compute frontier, token budgets, other runs."""

from lm.runs import run_selection


def run(size: float, tokens: float, loss: float, **columns) -> dict:
    row = {"name": f"s/{size:g}-{tokens:g}", "status": "done", "params.non_embedding": size}
    return row | {"tokens": tokens, "flops": 6 * size * tokens, "eval.loss": loss} | columns


def test_frontier_has_no_run_that_less_compute_surpasses():
    rows = [run(1, 10, 3.0), run(1, 20, 2.9), run(2, 10, 2.8), run(2, 20, 2.85), run(4, 20, 2.5)]
    unfinished = run(8, 20, 2.0, status="running")
    frontier = run_selection.compute_frontier([*reversed(rows), unfinished])
    assert [row["eval.loss"] for row in frontier] == [3.0, 2.8, 2.5]


def test_largest_run_has_the_most_tokens_of_its_size():
    rows = [run(4, 10, 2.0), run(4, 5, 2.5), run(1, 40, 3.0)]
    assert run_selection.largest_run(rows) is rows[0]


def test_law_of_size_and_tokens_needs_three_budgets():
    rows = [run(size, tokens, 3.0) for size in (1, 2) for tokens in (10, 20)]
    refusal = run_selection.refuse_joint_law(rows)
    assert refusal == "2 token budgets do not determine E, B and beta: use at least 3"
    assert run_selection.refuse_joint_law(rows[:1]).startswith("1 token budget does not")
    assert run_selection.refuse_joint_law([*rows, run(1, 40, 3.0)]) == ""


def test_other_runs_are_named_with_their_status():
    others = [{"dir": "runs/s/tuned", "status": "done"}, {"dir": "runs/s/x", "status": "lost"}]
    sentence = run_selection.describe_others(others)
    assert sentence == (
        "2 runs here are not part of this sweep: runs/s/tuned (done), runs/s/x (lost)"
    )
    assert run_selection.describe_others(others[:1]).startswith("1 run here is not part")
    assert run_selection.describe_others([]) == ""


def test_runs_that_share_training_are_related():
    """The trunk run belongs to them, with all its branches, even if its records are missing."""
    on_trunk = ("trunk", "full_state")
    starts = {"branch": on_trunk, "sibling": on_trunk, "tuned": ("sibling", "weights")}
    starts |= {"other": ("", "weights"), "x": ("base", "weights")}
    related = {"trunk", "branch", "sibling", "tuned"}
    assert run_selection.related_names("branch", starts) == related
    assert run_selection.related_names("branch", starts | {"trunk": ("", "")}) == related
    cycle = {"a": ("b", "weights"), "b": ("a", "weights"), "c": ("", "")}
    assert run_selection.related_names("a", cycle) == {"a", "b"}


def test_weights_of_another_sweep_are_no_shared_training():
    starts = {"x": ("base", "weights"), "y": ("base", "weights")}
    assert run_selection.related_names("x", starts) == {"x"}
