"""Scaling laws: fits with intervals, back-tests, and reasons if rows do not determine a law.

Example (no JAX is imported):

    from lm import laws, records

    rows = records.rows("runs/quickstart")  # or list(csv.DictReader(open("data.csv")))
    fit = laws.power(rows, x="params.non_embedding", y="eval.loss")
    print(fit)  # L(N) = 1.69 + 406 N^-0.34   alpha 0.34 [0.31, 0.37], ...
    prediction = fit.predict(1e9)
    print(prediction.value, prediction.lo, prediction.hi)
    print(fit.params["alpha"], fit.interval("alpha"), fit.excluded, fit.warnings)

Rows are flat dicts, one per run or one per evaluation. Numbers may be text. The arguments of a law
name its columns.

Laws, from rows to a `Fit` (see `lm/fit.py`):

    power             L = E + A x^-alpha in N, D, C or several inputs; E is free, given or absent
    chinchilla        L(N, D) = E + A N^-alpha + B D^-beta (approach 3)
    overtrained       L(C, M) = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024)
    data_constrained  L(N, D, U) with repeated epochs (Muennighoff et al. 2023)
    loglog            y = k x^exponent, a line in logs
    isoflop           minimum per budget (parabola or Akima), then a line in logs (approach 2)
    envelope          lower hull of learning curves, then a line in logs (approach 1)
    ability           loss or bits per byte -> accuracy, a bounded sigmoid or an exponential
    chain             N, D -> loss of a task -> accuracy (Bhagia et al. 2024)
    one_step          C -> accuracy (Krajewski et al. 2026)
    transfer          data that pre-training replaces (Hernandez et al. 2021)
    try_fit           (fit, "") of any law, or (None, reason)

Functions of fits:

    allocation(fit, flops)           best N and D of a budget, with intervals
    backtest(fit)                    errors and interval coverage on larger rows outside the fit
    holdout(fit, rows)               errors and interval coverage on other rows
    compare({name: fit, ...})        laws ranked by held-out error
    conventions(law, rows, n=[...])  exponents by the definition of N, D, C or the loss
    profile(fit, "E", at=(N, D))     profile likelihood of a parameter, with the prediction along it
    advise(fit, budget, target)      run that narrows the prediction at the target the most

Rows before a fit:

    finals(rows, columns)            last evaluation per run, or the mean of the last few
    smooth(rows, columns)            evaluations without the start of each run, as trailing means

Rows that do not determine a law raise ValueError with the reason. `fit.warnings` has the reasons
not to trust a fit, and `print(fit)` shows them. `solver.LOSSES` lists the losses, `fit.FitOptions`
the options, and `estimate.estimate` describes the intervals.
"""

from lm.ability import ability
from lm.advice import advise, profile
from lm.chain import chain, one_step
from lm.estimate import try_fit
from lm.frontier import allocation, envelope
from lm.isoflop import isoflop
from lm.judge import backtest, compare, conventions, holdout
from lm.lines import loglog
from lm.powers import chinchilla, overtrained, power
from lm.repetition import data_constrained, transfer
from lm.table import finals, smooth

__all__ = [
    "ability",
    "advise",
    "allocation",
    "backtest",
    "chain",
    "chinchilla",
    "compare",
    "conventions",
    "data_constrained",
    "envelope",
    "finals",
    "holdout",
    "isoflop",
    "loglog",
    "one_step",
    "overtrained",
    "power",
    "profile",
    "smooth",
    "transfer",
    "try_fit",
]
