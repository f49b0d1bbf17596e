"""Scaling experiments with language models: plan, train, resume, fit, predict, report.

    import lm                                        # standard library only, below 50 ms

    runs = lm.load_runs("runs/quickstart")           # list of flat dicts, one per run
    fit = lm.laws.power(runs, x="params.non_embedding", y="eval.loss")
    print(fit)                                       # formula, 95% intervals, back-test, warnings
    fit.predict(5e6)                                 # loss at 5 million parameters, with its interval
    lm.plots.loss_vs_parameters(runs, fit)

    model = lm.load_model("runs/quickstart/600K")    # JAX is imported here
    model.generate("def ", temperature=0.8)
    model.score("2+2=", "4")

    run = lm.Run(name="mine", model=lm.ladder_model("100K"))
    lm.train(run)
    lm.report("runs/quickstart")                     # writes report.html

The names below are imported on first use. The packages, in import order: config, runs, data,
parallel, model, evaluation, training, laws, reports, sweeps.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm import laws
    from lm.config.model_sizes import ladder_model
    from lm.config.schema import Run
    from lm.training.loaded_model import LoadedModel, load_model
    from lm.reports import plots
    from lm.reports.report import report
    from lm.runs.records import load_runs
    from lm.training.loop import train

__all__ = [
    "LoadedModel",
    "Run",
    "ladder_model",
    "laws",
    "load_model",
    "load_runs",
    "plots",
    "report",
    "train",
]

_MODULES = {
    "LoadedModel": "lm.training.loaded_model",
    "Run": "lm.config.schema",
    "ladder_model": "lm.config.model_sizes",
    "load_model": "lm.training.loaded_model",
    "load_runs": "lm.runs.records",
    "report": "lm.reports.report",
    "train": "lm.training.loop",
}
_PACKAGES = {"laws": "lm.laws", "plots": "lm.reports.plots"}


def __getattr__(name: str):
    """Import a public name on its first use and return it."""
    if name in _PACKAGES:
        value = importlib.import_module(_PACKAGES[name])
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'lm' has no attribute {name!r}: it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
