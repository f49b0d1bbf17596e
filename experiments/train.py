"""Trains one run to its end, or goes on with it.

uv run python -m experiments.train --config=configs/base.py:100K --config.optim.lr=0.01
"""

from experiments import cli, show

_CONFIG = cli.config_flag()
cli.host_flags()


def main() -> int:
    run = cli.load_config(_CONFIG)
    cli.tune_memory()
    from lm import exact, hosts, mesh, records, train  # JAX comes after the memory settings

    mesh.start()
    exact.fix_threads(run.mesh.exact)
    cli.join()
    if hosts.first(lambda: records.is_finished(run)):
        show.say(f"{records.folder(run)} is {records.read_facts(records.folder(run))['status']}")
        return 0
    try:
        with show.Bars() as bars:
            bars.started(run)
            train.train(run, lambda row: bars.stepped(run, row))
    except train.Diverged as error:
        show.say(str(error))
        return 1
    show.evaluation(records.evals(records.folder(run))[-1])
    if words := records.read_facts(records.folder(run)).get("reason"):
        show.say(words)
    return 0


if __name__ == "__main__":
    cli.start(main)
