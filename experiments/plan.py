"""Says what a run or a sweep will cost, here or on a machine that is not here; trains nothing.

uv run python -m experiments.plan --sweep=configs/sweeps/quickstart.py
uv run python -m experiments.plan --config=configs/pod.py:1T --config.mesh.fsdp=256 \
    --config.mesh.tensor=8 --target=tpu:v5p:8x16x16
uv run python -m experiments.plan --config=configs/pod.py:10B --target=gpu:h200:8x16 --search=3

The target's own compiler says what fits (extras tpu and gpu; no such device is needed); where it is
not installed, or with --estimate, arithmetic does, and the table says so.
"""

import json

from absl import flags

from experiments.common import cli, console
from lm.config import schema, validation
from lm.sweeps.planning import hardware

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
_CONFIG = cli.config_flag()
_TARGET = flags.DEFINE_string("target", "here", "; ".join(hardware.EXAMPLES))
_SEARCH = flags.DEFINE_integer("search", 0, "so many layouts are proposed for each run", 0)
_ESTIMATE = flags.DEFINE_bool("estimate", False, "by arithmetic; compile nothing")
_JSON = flags.DEFINE_bool("json", False, "print the rows as JSON, and nothing else")


def main() -> int:
    target = None if _TARGET.value == "here" else hardware.parse_target(_TARGET.value)
    if target is None and (_SEARCH.value or _ESTIMATE.value):
        raise ValueError(f"--search and --estimate need a --target: {', '.join(hardware.EXAMPLES)}")
    runs = cli.load_sweep(_SWEEP.value) if _SWEEP.value else [cli.load_config(_CONFIG)]
    for run in runs:
        validation.validate_run(run)
    return _here(runs) if target is None else _there(runs, target)


def _here(runs: list[schema.Run]) -> int:
    """At the speed that is measured on these devices."""
    from lm.parallel import mesh
    from lm.runs import records
    from lm.sweeps.planning import cost

    mesh.initialize_devices()
    device_mesh = mesh.make_mesh(schema.Mesh())
    peak = mesh.peak_flops_per_second(device_mesh, runs[0].model.dtype)
    costs = [cost.estimate_cost(run, peak, mesh.device_platform(device_mesh)) for run in runs]
    if _JSON.value:
        print(json.dumps(costs, indent=1))
        return 0
    console.print_line(
        f"{mesh.describe_devices(device_mesh)}, {peak / 1e9:.0f} GFLOP/s in matrix products"
    )
    console.plan(costs, {run.name for run in runs if records.is_finished(run)})
    return 0


def _there(runs: list[schema.Run], target: hardware.Target) -> int:
    """At the speed that its vendor names, in the memory that its compiler says is needed."""
    from lm.sweeps.planning import aot_compile, cost, layout_search

    aot_compile.initialize_target_compiler(target)
    extra = aot_compile.missing_extra(target)
    compiling = not (_ESTIMATE.value or extra)
    if not _JSON.value:
        if extra and not _ESTIMATE.value:
            console.print_line(
                f"an estimate: no compiler for {target.platform} here (uv sync --extra {extra})"
            )
        _machine(target)
    rows = []
    for run in runs:
        if _SEARCH.value:
            rows += layout_search.search_layouts(run, target, _SEARCH.value, compiling)
        else:
            rows.append(cost.plan_run(run, target, compiling))
    if _JSON.value:
        print(json.dumps(rows, indent=1))
        return 0
    console.table([_bytes(row) for row in rows], "GiB a device")
    console.table([_time(row) for row in rows], "Seconds a step, and the whole run")
    for row in rows:
        sent = [f"{k} {v['bytes'] / 1e9:.3g} in {v['n']:,}" for k, v in row["collectives"].items()]
        if sent:
            console.print_line(
                f"\n{row['name']}: GB that each device sends a step: {', '.join(sent)}"
            )
    console.print_line(
        "\nAt best: the longest of the three, at the vendor's figures. Expected: at the share of"
        f" the peak that is assumed, not measured, for a {target.platform}."
    )
    return 0


def _machine(target: hardware.Target) -> None:
    chip = target.spec
    console.print_line(
        f"{target.name}: {target.n_devices:,} devices of {chip.memory / hardware.GIB:.2f} GiB,"
        f" {chip.bfloat16 / 1e12:.4g} TFLOP/s in bfloat16 ({chip.source})"
    )


def _bytes(row: dict) -> dict[str, str]:
    """A line of the table of memory."""
    gib = {k: f"{v / hardware.GIB:.2f}" for k, v in row.items() if k.startswith("bytes_")}
    return {
        "run": row["name"],
        "parameters": f"{row['params_total']:.4g}",
        "active": f"{row['params_active']:.4g}",
        "FLOPs": f"{row['flops']:.2e}",
        "mesh": " ".join(f"{k}={n}" for k, n in row["mesh"].items()) or "one device",
        "pieces": str(row["optim.grad_accumulation_steps"]),
        "remat": row["model.remat"],
        "weights": gib["bytes_params"],
        "optimizer": gib["bytes_optimizer"],
        "of a step": gib["bytes_temporaries"],
        "needed": gib["bytes_needed"],
        "fits": f"{gib['bytes_over']} too much" if row["bytes_over"] else "yes",
        "how": row["how"],
    }


def _time(row: dict) -> dict[str, str]:
    """A line of the table of time."""

    def number(key: str, form: str = ".3g") -> str:
        return "-" if row[key] is None else format(row[key], form)

    return {
        "run": row["name"],
        "mesh": " ".join(f"{k}={n}" for k, n in row["mesh"].items()) or "one device",
        "remat": row["model.remat"],
        "compute": number("compute_seconds"),
        "memory": number("memory_seconds"),
        "network": number("network_seconds"),
        "at best": number("roofline_seconds"),
        "bound by": row["bound"],
        "share of peak": f"{row['reached']:.0%}",
        "expected": number("step_seconds"),
        "hours": number("hours", ",.3g") if (row["hours"] or 0) < 1000 else number("hours", ",.0f"),
        "device-hours": number("device_hours", ",.0f"),
        "compiled in": number("compile_seconds", ".0f"),
    }


if __name__ == "__main__":
    cli.run_main(main)
