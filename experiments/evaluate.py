"""Evaluate the last checkpoint of a run on held-out text or on tasks.

uv run python -m experiments.evaluate --run=runs/quickstart/600K
uv run python -m experiments.evaluate --run=runs/quickstart/600K --sources='{"text:my/folder": 1}'
uv run python -m experiments.evaluate --run=runs/quickstart/600K --tasks="copy?length=4 file:my/set"
"""

from absl import flags

from experiments.common import cli, console

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_SOURCES = flags.DEFINE_string("sources", None, "JSON of sources and weights; default: of the run")
_STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; default: the last")
_TASKS = flags.DEFINE_string("tasks", None, "space-separated tasks, instead of held-out text")
_OVERLAP = flags.DEFINE_integer(
    "overlap", 0, "count examples that share this number of consecutive words with training text"
)
_KEEP = flags.DEFINE_bool("keep", False, "add the task results to the records of the run")
_SEQUENCES = flags.DEFINE_integer(
    "n_sequences", None, "held-out sequences per source; default: eval.n_sequences of the run"
)


def main() -> int:
    run = cli.load_run(_RUN.value)  # before JAX is imported
    import jax

    from lm.data import dataset
    from lm.evaluation import heldout, tasks
    from lm.parallel import mesh
    from lm.runs import records
    from lm.training import loaded_model

    if _SOURCES.value:
        run.data.sources = cli.parse_sources(_SOURCES.value)
        # The model was not trained on these sources, so any part is held out: half is enough.
        run.data.heldout_fraction = 0.5
    run.eval.n_sequences = _SEQUENCES.value or run.eval.n_sequences
    task_list = tasks.load_tasks(_TASKS.value or "")
    mesh.initialize_devices()
    program, state = loaded_model.restore_model(run, _STEP.value)
    text = dataset.open_dataset(run.data, run.seed, console.preparing)
    if task_list:
        row = _evaluate_tasks(run, program, state, text, task_list)
        if _KEEP.value:
            records.extend_evals(records.run_dir(run), int(state["step"]), row)
        return 0
    with jax.set_mesh(program.mesh):
        row = heldout.evaluate_heldout(run, program.mesh, program.score, state["params"], text)
    console.evaluation(row)
    return 0


def _evaluate_tasks(run, program, state: dict, text, task_list: list) -> dict[str, float]:
    """Evaluate tasks, print the results, and return them as columns of a record."""
    import jax

    from lm.evaluation import contamination, task_eval

    with jax.set_mesh(program.mesh):
        results = task_eval.evaluate_tasks(
            run, program.mesh, program.score, state["params"], text.tokenizer, task_list
        )
    console.tasks(results)
    n_words = _OVERLAP.value
    overlaps = contamination.count_overlaps(task_list, run.data, n_words) if n_words else {}
    for name, counts in overlaps.items():
        console.print_line(
            f"{name}: {counts['n_overlap']} of {counts['n_checkable']} examples with at least"
            f" {n_words} words share {n_words} consecutive words with the training text"
        )
        results[name] |= {key: {"value": n} for key, n in counts.items()}
    return task_eval.to_columns(results)


if __name__ == "__main__":
    cli.run_main(main)
