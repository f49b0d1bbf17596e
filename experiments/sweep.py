"""Runs a sweep: plan, train what is left, predict the largest before it starts, report.

    uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py

The same command goes on after any end, and says so when nothing is left.
"""

from absl import flags

from experiments import cli, show

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
_DIR = flags.DEFINE_string("dir", None, "folder of all runs, in place of each run's own")


def main() -> int:
    runs = cli.load_sweep(_SWEEP.value)
    cli.tune_memory()
    from lm import launch, mesh, plan, report  # JAX comes after the memory settings

    for run in runs:
        run.dir = _DIR.value or run.dir
    mesh.start()
    launch.check(runs, show.preparing)
    left = launch.left(runs)
    device_mesh = mesh.make(runs[0].mesh)
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    show.say(f"{mesh.describe(device_mesh)}, {peak / 1e9:.0f} GFLOP/s in matrix products")
    costs = [plan.cost(run, peak, mesh.platform(device_mesh)) for run in runs]
    show.plan(costs, {run.name for run in runs} - {run.name for run in left})
    show.epochs(launch.epochs(runs))

    folder = launch.folder(runs)
    if left:
        launch.write_down(_SWEEP.value, runs, costs)
        with show.Bars() as bars:
            launch.here(runs, bars.started, bars.stepped, bars.ended)
    else:
        show.say(f"all {len(runs)} runs are done")
    page = report.write(folder)
    found = report.load(folder)
    show.table(report.table(found.rows, found.prediction))
    show.say(str(found.fit or f"no law: {found.refusal}"))
    show.say(report.headline(found)[1])
    show.say(f"report: {page}")
    return int(any(row["status"] != "done" for row in found.rows))


if __name__ == "__main__":
    cli.start(main)
