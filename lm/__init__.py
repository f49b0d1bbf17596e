"""Scaling experiments with language models: plan, train, resume, fit, predict, report.

    import lm                                        # standard library only, below 50 ms

    runs = lm.load_runs("runs/quickstart")           # list of flat dicts, one per run of the sweep
    fit = lm.laws.power(runs, x="params.non_embedding", y="eval.loss")
    print(fit)                                       # formula, 95% intervals, back-test, warnings
    fit.predict(5e6)                                 # loss at 5 million parameters, interval
    lm.plots.loss_vs_parameters(runs, fit)

    model = lm.load_model("runs/quickstart/600K")    # JAX is imported here
    model.generate("def ", temperature=0.8)
    model.score("2+2=", "4")

    run = lm.Run(name="mine", model=lm.ladder_model("100K"))
    lm.train(run)
    lm.report("runs/quickstart")                     # writes report.html
    print(lm.compare(lm.load_runs("runs/a"), lm.load_runs("runs/b")))   # is recipe B better?

The public names are in `__all__` and are imported on first use. The packages, in import order:
config, runs, data, parallel, model, evaluation, training, laws, reports, sweeps.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm import laws
    from lm.config.model_sizes import ladder_model
    from lm.config.schema import Run
    from lm.reports import plots
    from lm.reports.recipes.recipe_report import compare_rows as compare
    from lm.reports.report import write_report as report
    from lm.runs.records import load_runs
    from lm.training.loaded_model import LoadedModel, load_model
    from lm.training.loop import train

__all__ = [
    "LoadedModel",
    "Run",
    "compare",
    "ladder_model",
    "laws",
    "load_model",
    "load_runs",
    "plots",
    "report",
    "train",
]

# Public name -> module and name in it; None for the module itself.
_LOCATIONS: dict[str, tuple[str, str | None]] = {
    "LoadedModel": ("lm.training.loaded_model", "LoadedModel"),
    "Run": ("lm.config.schema", "Run"),
    "compare": ("lm.reports.recipes.recipe_report", "compare_rows"),
    "ladder_model": ("lm.config.model_sizes", "ladder_model"),
    "laws": ("lm.laws", None),
    "load_model": ("lm.training.loaded_model", "load_model"),
    "load_runs": ("lm.runs.records", "load_runs"),
    "plots": ("lm.reports.plots", None),
    "report": ("lm.reports.report", "write_report"),
    "train": ("lm.training.loop", "train"),
}


def __getattr__(name: str):
    """Import a public name on its first use and return it."""
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'lm' has no attribute {name!r}: it has {', '.join(__all__)}")
    module, attribute = _LOCATIONS[name]
    if module.startswith("lm.training"):
        importlib.import_module("lm.runs.provenance").check_versions()
    value = importlib.import_module(module)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
