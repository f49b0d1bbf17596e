"""Says what a run or a sweep will cost, and trains nothing.

uv run python -m experiments.plan --sweep=configs/sweeps/quickstart.py
uv run python -m experiments.plan --config=configs/base.py:1B
"""

from absl import flags

from experiments import cli, show

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
_CONFIG = cli.config_flag()


def main() -> int:
    runs = cli.load_sweep(_SWEEP.value) if _SWEEP.value else [cli.load_config(_CONFIG)]
    from lm import config, mesh, plan, records

    mesh.start()
    for run in runs:
        config.check(run)
    device_mesh = mesh.make(config.Mesh())
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    show.say(f"{mesh.describe(device_mesh)}, {peak / 1e9:.0f} GFLOP/s in matrix products")
    costs = [plan.cost(run, peak, mesh.platform(device_mesh)) for run in runs]
    show.plan(costs, {run.name for run in runs if records.is_finished(run)})
    return 0


if __name__ == "__main__":
    cli.start(main)
