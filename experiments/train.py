"""Train a run, or resume it from its last checkpoint.

uv run python -m experiments.train --config=configs/base.py:100K --config.optim.lr=0.01

With --dry_run=TARGET, the command checks itself on simulated devices and trains nothing. Commands
for SLURM, TPU pods and Kubernetes are in configs/clusters/.
"""

from experiments.common import cli, console, next_command, progress_view, target_plan

_CONFIG = cli.config_flag()
cli.host_flags()
_DRY_RUN = target_plan.dry_run_flag()


def main() -> int:
    run = cli.load_config(_CONFIG)
    if _DRY_RUN.value:
        target_plan.check_started_runs([run])
        return target_plan.print_dry_run([run], _DRY_RUN.value)
    cli.make_run_folders([run])
    cli.tune_memory()
    # tune_memory restarts the process, so JAX is imported after it.
    from lm.parallel import deterministic, distributed, mesh
    from lm.runs import records
    from lm.training import loop

    mesh.initialize_devices()
    deterministic.fix_threads(run.mesh.deterministic_shards)
    cli.join()
    distributed.run_on_primary(lambda: records.check_same_config(run))
    if distributed.run_on_primary(lambda: records.is_finished(run)):
        _print_ignored_fields(run)
    else:
        text = loop.validate_session(run, progress_view.preparing)
        _print_header(run, text)
        try:
            with progress_view.ProgressBars() as bars:
                bars.started(run)
                loop.train(
                    run, lambda row: bars.stepped(run, row), lambda row: bars.evaluated(run, row)
                )
        except loop.Diverged as error:
            console.print_line(str(error))
            return 1
    return distributed.run_on_primary(lambda: _print_result(run))


def _print_header(run, text) -> None:
    """Print devices, size, expected time and text of a run, in the form of experiments.sweep."""
    from experiments.common import disk_space, kernel_lines
    from lm.parallel import mesh, peak_flops
    from lm.sweeps.planning import cost

    device_mesh = mesh.make_run_mesh(run)
    peak = mesh.peak_flops_per_second(device_mesh, run.model.dtype)
    console.print_line(f"devices: {mesh.describe_devices(device_mesh)}")
    kernel_lines.print_kernels([run])
    console.print_line(peak_flops.describe_peak(mesh.device_kind(device_mesh), peak))
    expected = cost.estimate_cost(run, peak, mesh.device_platform(device_mesh))
    console.print_plan([expected], set())
    disk_space.print_disk_space([run], set(), has_table=False)
    console.print_epochs(text.epochs(run.steps))
    console.print_text([run])
    if not run.data.heldout_fraction:
        console.print_line("data.heldout_fraction=0: no held-out loss is computed")


def _print_ignored_fields(run) -> None:
    """Print that the run is finished, and each changed eval field, which has no effect on it."""
    from lm.config import schema
    from lm.runs import records

    folder = records.run_dir(run)
    console.print_line(f"{folder} is finished: no step is trained")
    stored = schema.flatten(records.read_config(folder))
    for field, value in schema.flatten(run).items():
        if field.startswith("eval.") and value != stored[field]:
            console.print_line(
                f"{field}={value!r} has no effect on a finished run, which has {stored[field]!r}:"
                " use experiments.evaluate"
            )


def _print_result(run) -> int:
    """Print the result of a finished run and its directory. Return 1 if the run has diverged."""
    from lm.config import schema
    from lm.runs import json_files, records, task_results
    from lm.runs.integrity import stored_results

    folder = records.run_dir(run)
    facts = records.read_facts(folder)
    if facts["status"] == "diverged":
        console.print_line(f"{folder}: diverged, {facts['reason']}: choose a new name")
        return 1
    step = facts["ends_at"]
    evaluation = {row["step"]: row for row in records.load_evals(folder)}.get(step, {})
    if "loss" in evaluation:
        console.print_line(f"evaluation of the checkpoint of step {step}:")
        console.evaluation(evaluation)
    elif stored_results.has_final_evaluation(schema.flatten(run) | facts):
        problem = json_files.find_missing_step(folder / "evals.jsonl", step)
        console.print_line(f"{folder} has no result: {problem}")
        return 1
    else:
        console.print_line(f"no held-out loss: data.heldout_fraction={run.data.heldout_fraction}")
    console.tasks(task_results.task_results(evaluation))
    if facts["reason"]:
        console.print_line(facts["reason"])
    next_command.print_next("sample", f"--run={folder}")
    console.print_line(f"run directory: {folder}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
