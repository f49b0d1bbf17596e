"""The coordinate check: do the first steps of training do the same at every width and depth?

    uv run python -m experiments.coordinates --config=configs/base.py:10K
    uv run python -m experiments.coordinates --config=FILE --widths=64,128,256 --depths= --steps=8

Prints, for each parametrization, the exponents with which activations and their changes grow, and
draws them (--out). An exponent of 0 is what lets hyperparameters transfer. The configured model is
the base; --config.optim.lr its learning rate. About four minutes on two idle CPU cores.
"""

import dataclasses

from absl import flags

from experiments import cli, show

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
    from lm import checks, coordinates, data, drift, mesh, plots, rate_plots, sizes, style

    device_mesh = mesh.make(run.mesh)
    base, rows, n_steps = run.model, [], _STEPS.value + 1
    wide = [(int(times) * base.d_model, base.n_layers) for times in _WIDTHS.value]
    deep = [(base.d_model, int(times) * base.n_layers) for times in _DEPTHS.value]
    for seed in range(_SEEDS.value):
        text = data.load(run.data, seed, show.preparing)
        batches = [text.batch(step) for step in range(n_steps)]
        for rule in _RULES.value:
            for width, depth in dict.fromkeys(wide + deep):
                shape = sizes.reshaped(base, width, depth)
                shape = dataclasses.replace(shape, parametrization=rule, unroll=1)
                one = checks.check(dataclasses.replace(run, model=shape, seed=seed))
                rows += coordinates.measured(one, batches, device_mesh)
                show.say(f"seed {seed}, {rule}: width {width}, {depth} layers")
    for along in ("width", "depth"):
        for rule in _RULES.value:
            mine = rate_plots.varying([row for row in rows if row["rule"] == rule], along)
            if mine:
                lines = [_line(one) for one in drift.growth(mine, along)]
                show.table(lines, title=f"{rule}: exponents of {along}")
    if _OUT.value:
        for ending, theme in (("", style.LIGHT), ("-dark", style.DARK)):
            meta = {"figure": "coordinates", "rows": style.fingerprint(rows)}
            plots.save(rate_plots.coordinates(rows, theme), f"{_OUT.value}{ending}", meta)
        show.say(f"figure: {_OUT.value}.png, .svg and the same for dark pages")
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
    cli.start(main)
