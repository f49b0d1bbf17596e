"""The coordinate check: do the first steps of training do the same at every width and depth?

    uv run python -m experiments.coordinate_check --config=configs/base.py:10K uv run python -m
    experiments.coordinate_check --config=FILE --widths=64,128,256 --depths= --steps=8

Prints, for each parametrization, the exponents with which activations and their changes grow, and
draws them (--out). An exponent of 0 is what lets hyperparameters transfer. The configured model is
the base; --config.optim.lr its learning rate. About four minutes on two idle CPU cores.
"""

import dataclasses

from absl import flags

from experiments.common import cli, console

_CONFIG = cli.config_flag()
_WIDTHS = flags.DEFINE_list("widths", ["1", "2", "4", "8"], "times that of the config")
_DEPTHS = flags.DEFINE_list("depths", ["1", "2", "4", "8"], "times that of the config")
_RULES = flags.DEFINE_list("rules", ["standard", "mup", "completep"], "parametrizations")
_STEPS = flags.DEFINE_integer("steps", 6, "steps between the first look and the last", 1)
_SEEDS = flags.DEFINE_integer("seeds", 2, "draws of the weights, and of the text", 1)
_OUT = flags.DEFINE_string("out", "figures/coordinates", "the figure, without its ending")


def main() -> int:
    run = cli.load_config(_CONFIG)
    cli.tune_memory()
    from lm.config import model_sizes, validation
    from lm.data import dataset
    from lm.parallel import mesh
    from lm.reports import lr_analysis
    from lm.reports.plots import learning_rates, scaling, style
    from lm.sweeps import coordinate_check

    device_mesh = mesh.make_mesh(run.mesh)
    base, rows, n_steps = run.model, [], _STEPS.value + 1
    wide = [(int(times) * base.d_model, base.n_layers) for times in _WIDTHS.value]
    deep = [(base.d_model, int(times) * base.n_layers) for times in _DEPTHS.value]
    for seed in range(_SEEDS.value):
        text = dataset.open_dataset(run.data, seed, console.preparing)
        batches = [text.batch(step) for step in range(n_steps)]
        for rule in _RULES.value:
            for width, depth in dict.fromkeys(wide + deep):
                shape = model_sizes.resize_model(base, width, depth)
                shape = dataclasses.replace(shape, parametrization=rule, scan_unroll=1)
                one = validation.validate_run(dataclasses.replace(run, model=shape, seed=seed))
                rows += coordinate_check.measure_activations(one, batches, device_mesh)
                console.print_line(f"seed {seed}, {rule}: width {width}, {depth} layers")
    for along in ("width", "depth"):
        for rule in _RULES.value:
            mine = learning_rates.rows_along([row for row in rows if row["rule"] == rule], along)
            if mine:
                lines = [_line(one) for one in lr_analysis.activation_exponents(mine, along)]
                console.table(lines, title=f"{rule}: exponents of {along}")
    if _OUT.value:
        for ending, theme in (("", style.LIGHT), ("-dark", style.DARK)):
            meta = {"figure": "coordinates", "rows": style.hash_data(rows)}
            scaling.save(
                learning_rates.activation_changes(rows, theme), f"{_OUT.value}{ending}", meta
            )
        console.print_line(f"figure: {_OUT.value}.png, .svg and the same for dark pages")
    return 0


def _line(one: dict) -> dict[str, str]:
    return {
        "step": str(one["step"]),
        "part": one["part"],
        "scale": _with_error(one["rms"], one["rms_se"]),
        "change": _with_error(one["change"], one["change_se"]) if one["step"] else "",
    }


def _with_error(slope: float, error: float) -> str:
    """One seed has no error."""
    return f"{slope:+.2f}" + (f" ± {error:.2f}" if error == error else "")


if __name__ == "__main__":
    cli.run_main(main)
