"""Evaluates the newest checkpoint of a run again, on held-out text of its own or other sources.

uv run python -m experiments.evaluate --run=runs/quickstart/600K
uv run python -m experiments.evaluate --run=runs/quickstart/600K --sources='{"text:my/folder": 1}'
uv run python -m experiments.evaluate --run=runs/quickstart/600K --tasks="copy?length=4 file:my/set"
"""

from absl import flags

from experiments.common import cli, console

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_SOURCES = flags.DEFINE_string("sources", None, "JSON of sources and weights, in place of its own")
_STEP = flags.DEFINE_integer("step", None, "checkpoint; the newest if not given")
_TASKS = flags.DEFINE_string("tasks", None, "names with spaces between, in place of held-out text")
_OVERLAP = flags.DEFINE_integer("overlap", 0, "words in a row that tasks may share with training")
_KEEP = flags.DEFINE_bool("keep", False, "add what the tasks gave to the run's records")
_SEQUENCES = flags.DEFINE_integer("n_sequences", None, "held-out sequences a source")


def main() -> int:
    import jax

    from lm.data import dataset
    from lm.evaluation import contamination, heldout, task_eval, tasks
    from lm.parallel import mesh
    from lm.runs import records
    from lm.training import loaded_model

    if not _RUN.value:
        raise ValueError("--run=FOLDER is missing, such as --run=runs/quickstart/600K")
    run = records.read_config(_RUN.value)
    if _SOURCES.value:
        run.data.sources = cli.parse_sources(_SOURCES.value)
        run.data.heldout_fraction = 0.5  # all of it is new to the model: a fair half is enough
    run.eval.n_sequences = _SEQUENCES.value or run.eval.n_sequences
    asked = tasks.load_tasks(_TASKS.value or "")
    mesh.initialize_devices()
    program, state = loaded_model.restore_model(run, _STEP.value)
    text = dataset.open_dataset(run.data, run.seed, console.preparing)
    if asked:
        with jax.set_mesh(program.mesh):
            params, tokenizer = state["params"], text.tokenizer
            results = task_eval.evaluate_tasks(
                run, program.mesh, program.score, params, tokenizer, asked
            )
        console.tasks(results)
        met = (
            contamination.count_overlaps(asked, run.data, _OVERLAP.value) if _OVERLAP.value else {}
        )
        for name, counts in met.items():
            console.print_line(
                f"{name}: {counts['n_overlap']} of the {counts['n_checkable']} examples long enough"
                f" share {_OVERLAP.value} words in a row with the training text"
            )
            results[name] |= {key: {"value": n} for key, n in counts.items()}
        if _KEEP.value:
            records.extend_evals(_RUN.value, int(state["step"]), task_eval.to_columns(results))
        return 0
    with jax.set_mesh(program.mesh):
        row = heldout.evaluate_heldout(run, program.mesh, program.score, state["params"], text)
    console.evaluation(row)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
