"""Coordinate check: compare the first training steps across widths and depths.

    uv run python -m experiments.coordinate_check --config=configs/base.py:10K \\
        --widths=1,4 --depths= --steps=4

The command prints, for each parametrization, the exponents with which activations and their changes
grow with width and depth. Hyperparameters transfer between sizes if the exponents of the changes
are near 0. The configured model is the base shape, and --config.optim.lr is its learning rate.
--config.optim.name=muon checks Muon, whose learning rates scale differently from those of AdamW.
With the defaults, the command takes about four minutes on two idle CPU cores. --out names the
figure.
"""

import dataclasses
import re

from absl import flags

from experiments.common import cli, console, next_command, progress_view
from lm.config import fields, schema
from lm.runs import filesystem

_CONFIG = cli.config_flag()
_WIDTHS = flags.DEFINE_list("widths", ["1", "2", "4", "8"], "multiples of the configured width")
_DEPTHS = flags.DEFINE_list("depths", ["1", "2", "4", "8"], "multiples of the configured depth")
_RULES = flags.DEFINE_list("rules", ["standard", "mup", "completep"], "parametrizations")
_STEPS = flags.DEFINE_integer("steps", 6, "number of training steps", 1, 1000)
_SEEDS = flags.DEFINE_integer("seeds", 2, "number of seeds of weights and text", 1, 1000)
_OUT = flags.DEFINE_string("out", "figures/coordinates", "path of the figure, without suffix")


def main() -> int:
    run = cli.load_config(_CONFIG)
    check_lists()
    runs = resized_runs(run)
    if _OUT.value:
        filesystem.open_path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
    cli.tune_memory()
    rows = measure(run, runs)
    print_exponents(rows)
    next_command.print_next("train", *next_command.config_arguments())
    if _OUT.value:
        save_figures(rows)
    return 0


def check_lists() -> None:
    """Check the values of --widths, --depths and --rules. Raises ValueError."""
    for flag in (_WIDTHS, _DEPTHS):
        if not all(re.fullmatch("[1-9][0-9]{0,3}", factor) for factor in flag.value):
            problem = "must be whole numbers from 1 to 9999 with commas, such as 1,2,4"
            raise ValueError(f"--{flag.name}={','.join(flag.value)} {problem}")
    if not _WIDTHS.value and not _DEPTHS.value:
        raise ValueError("--widths and --depths are both empty: set one, such as --widths=1,2,4")
    known = fields.choices(schema.Model)["parametrization"]
    if not _RULES.value or not {*_RULES.value} <= {*known}:
        raise ValueError(
            f"--rules={','.join(_RULES.value)} must be one or more of {', '.join(known)}, with"
            " commas: correct the name"
        )


def resized_runs(run: schema.Run) -> list[schema.Run]:
    """Return the runs of every parametrization and shape. Raises ValueError for an invalid one."""
    from lm.config import model_sizes, validation

    base = run.model
    wide_shapes = [(int(factor) * base.d_model, base.n_layers) for factor in _WIDTHS.value]
    deep_shapes = [(base.d_model, int(factor) * base.n_layers) for factor in _DEPTHS.value]
    runs = []
    for rule in dict.fromkeys(_RULES.value):
        for width, depth in dict.fromkeys(wide_shapes + deep_shapes):
            model = model_sizes.resize_model(base, width, depth)
            model = dataclasses.replace(model, parametrization=rule, scan_unroll=1)
            runs.append(dataclasses.replace(run, model=model))
            validation.validate_run(runs[-1])
    return runs


def measure(run: schema.Run, runs: list[schema.Run]) -> list[dict]:
    """Train resized runs for a few steps with every seed. Return the rows of all of them."""
    from lm.data import dataset
    from lm.parallel import mesh
    from lm.sweeps import coordinate_check

    device_mesh = mesh.make_mesh(run.mesh)
    rows = []
    for seed in range(_SEEDS.value):
        text = dataset.open_dataset(run.data, seed, progress_view.preparing)
        batches = [text.batch(step) for step in range(_STEPS.value + 1)]
        for resized in runs:
            model, seeded = resized.model, dataclasses.replace(resized, seed=seed)
            rows += coordinate_check.measure_activations(seeded, batches, device_mesh)
            shape = f"width {model.d_model}, {model.n_layers} layers"
            console.print_line(f"measured: seed {seed}, {model.parametrization}, {shape}")
    return rows


def print_exponents(rows: list[dict]) -> None:
    """Print a table of exponents for each direction and parametrization."""
    from lm.reports import lr_analysis
    from lm.reports.plots import learning_rates

    for along in ("width", "depth"):
        for rule in dict.fromkeys(_RULES.value):
            rule_rows = [row for row in rows if row["rule"] == rule]
            selected = learning_rates.rows_along(rule_rows, along)
            if selected:
                exponents = lr_analysis.activation_exponents(selected, along)
                lines = [_table_line(exponent) for exponent in exponents]
                console.table(lines, title=f"{rule}: exponents of {along}")


def save_figures(rows: list[dict]) -> None:
    """Draw the changes of activations, in a light and a dark theme. Print the written files."""
    from lm.reports.plots import learning_rates, style

    metadata = {"figure": "coordinates", "rows": style.hash_data(rows)}
    for suffix, theme in (("-dark", style.DARK), ("", style.LIGHT)):
        figure = learning_rates.activation_changes(rows, theme)
        for path in style.save_figure(figure, f"{_OUT.value}{suffix}", metadata):
            console.print_line(f"figure: {path}")


def _table_line(exponent: dict) -> dict[str, str]:
    has_change = exponent["step"] > 0
    return {
        "step": str(exponent["step"]),
        "part": exponent["part"],
        "scale": _with_error(exponent["rms"], exponent["rms_se"]),
        "change": _with_error(exponent["change"], exponent["change_se"]) if has_change else "",
    }


def _with_error(slope: float, error: float) -> str:
    """Format a slope with its standard error, which is NaN for one seed."""
    return f"{slope:+.2f}" + (f" ± {error:.2f}" if error == error else "")


if __name__ == "__main__":
    cli.run_main(main)
