"""Scaling laws: fits with intervals, back-tests, and reasons if rows do not determine a law.

Example (no JAX is imported):

    from lm import laws; from lm.runs import records

    rows = records.load_runs("runs/quickstart")  # or list(csv.DictReader(open("data.csv")))
    fit = laws.power(rows, x="params.non_embedding", y="eval.loss")
    print(fit)  # L(N) = 1.69 + 406 N^-0.34   alpha 0.34 [0.31, 0.37], ...
    prediction = fit.predict(1e9)
    print(prediction.value, prediction.lo, prediction.hi)
    print(fit.params["alpha"], fit.interval("alpha"), fit.excluded, fit.warnings)

Rows are flat dicts, one per run or one per evaluation. Numbers may be text. The arguments of a law
name its columns.

Laws, from rows to a `Fit` (see `lm/laws/fit.py`):

    power             L = E + A x^-alpha in N, D, C or several inputs; E is free, given or absent
    chinchilla        L(N, D) = E + A N^-alpha + B D^-beta (approach 3)
    overtrained       L(C, M) = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024)
    data_constrained  L(N, D, U) with repeated epochs (Muennighoff et al. 2023)
    log_linear        y = k x^exponent, a line in logs
    isoflop           minimum per budget (parabola or Akima), then a line in logs (approach 2)
    envelope          lower hull of learning curves, then a line in logs (approach 1)
    accuracy_from_loss  loss or bits per byte -> accuracy, a bounded sigmoid or an exponential
    two_step          N, D -> loss of a task -> accuracy (Bhagia et al. 2024)
    one_step          C -> accuracy (Krajewski et al. 2026)
    transfer          data that pre-training replaces (Hernandez et al. 2021)
    try_fit           (fit, "") of any law, or (None, reason)

Functions of fits:

    allocation(fit, flops)           best N and D of a budget, with intervals
    backtest(fit)                    errors and interval coverage on larger rows outside the fit
    holdout(fit, rows)               errors and interval coverage on other rows
    compare_laws({name: fit, ...})   laws ranked by held-out error
    compare_conventions(law, rows, n=[...])  exponents by the definition of N, D, C or the loss
    profile(fit, "E", at=(N, D))     profile likelihood of a parameter, with the prediction along it
    advise(fit, budget, target)      run that narrows the prediction at the target the most

Rows before a fit:

    final_evaluations(rows, columns)  last evaluation per run, or the mean of the last few
    smooth_evaluations(rows, columns)  evaluations without the start of each run, as trailing means

Rows that do not determine a law raise ValueError with the reason. `fit.warnings` has the reasons
not to trust a fit, and `print(fit)` shows them. `solver.LOSSES` lists the losses, `fit.FitOptions`
the options, and `estimation.fit_problem` describes the intervals.
"""

from lm.laws.backtesting import backtest, compare_conventions, compare_laws, holdout
from lm.laws.estimation import try_fit
from lm.laws.experiment_design import advise, profile
from lm.laws.forms.compute_optimal import allocation, envelope
from lm.laws.forms.data_constrained import data_constrained, transfer
from lm.laws.forms.downstream import accuracy_from_loss, one_step, two_step
from lm.laws.forms.isoflop import isoflop
from lm.laws.forms.log_linear import log_linear
from lm.laws.forms.power_laws import chinchilla, overtrained, power
from lm.laws.run_table import final_evaluations, smooth_evaluations

__all__ = [
    "accuracy_from_loss",
    "advise",
    "allocation",
    "backtest",
    "chinchilla",
    "compare_conventions",
    "compare_laws",
    "data_constrained",
    "envelope",
    "final_evaluations",
    "holdout",
    "isoflop",
    "log_linear",
    "one_step",
    "overtrained",
    "power",
    "profile",
    "smooth_evaluations",
    "transfer",
    "try_fit",
    "two_step",
]
