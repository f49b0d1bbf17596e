"""Evaluates the newest checkpoint of a run again, on held-out text of its own or other sources.

uv run python -m experiments.evaluate --run=runs/quickstart/600K
uv run python -m experiments.evaluate --run=runs/quickstart/600K --sources='{"text:my/folder": 1}'
"""

from absl import flags

from experiments import cli, show

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_SOURCES = flags.DEFINE_string("sources", None, "JSON of sources and weights, in place of its own")
_STEP = flags.DEFINE_integer("step", None, "checkpoint; the newest if not given")
_SEQUENCES = flags.DEFINE_integer("n_sequences", None, "held-out sequences a source")


def main() -> int:
    import jax

    from lm import data, evaluate, mesh, records, train

    if not _RUN.value:
        raise ValueError("--run=FOLDER is missing, such as --run=runs/quickstart/600K")
    run = records.read_config(_RUN.value)
    if _SOURCES.value:
        run.data.sources = cli.parse_sources(_SOURCES.value)
        run.data.heldout = 0.5  # all of it is new to the model: a fair half is enough
    run.eval.n_sequences = _SEQUENCES.value or run.eval.n_sequences
    mesh.start()
    program, state = train.restore(run, _STEP.value)
    text = data.load(run.data, run.seed, show.preparing)
    with jax.set_mesh(program.mesh):
        row = evaluate.evaluate(run, program.mesh, program.score, state["params"], text)
    show.evaluation(row)
    return 0


if __name__ == "__main__":
    cli.start(main)
