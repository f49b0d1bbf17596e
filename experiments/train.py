"""Train a run, or resume it from its last checkpoint.

uv run python -m experiments.train --config=configs/base.py:100K --config.optim.lr=0.01
"""

from experiments.common import cli, console

_CONFIG = cli.config_flag()
cli.host_flags()


def main() -> int:
    run = cli.load_config(_CONFIG)
    cli.make_run_folders([run])
    cli.tune_memory()
    # tune_memory restarts the process, so JAX is imported after it.
    from lm.parallel import deterministic, distributed, mesh
    from lm.runs import records
    from lm.training import loop

    mesh.initialize_devices()
    deterministic.fix_threads(run.mesh.deterministic_shards)
    cli.join()
    if distributed.run_on_primary(lambda: records.is_finished(run)):
        folder = records.run_dir(run)
        console.print_line(f"{folder}: {records.read_facts(folder)['status']}")
        return 0
    try:
        with console.ProgressBars() as bars:
            bars.started(run)
            loop.train(run, lambda row: bars.stepped(run, row))
    except loop.Diverged as error:
        console.print_line(str(error))
        return 1
    console.evaluation(records.load_evals(records.run_dir(run))[-1])
    reason = records.read_facts(records.run_dir(run)).get("reason")
    if reason:
        console.print_line(reason)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
