"""Scaling laws that others can trust: every law, every question, from one place.

    from lm import laws, records                                # no JAX, opens at once rows =
    records.rows("runs/quickstart")                      # or list(csv.DictReader(open("data.csv")))
    fit = laws.power(rows, x="params.non_embedding", y="eval.loss") print(fit)
    # L(N) = 1.69 + 406 N^-0.34   alpha 0.34 [0.31, 0.37], ... fit.predict(1e9).lo,
    fit.params["alpha"], fit.interval("alpha"), fit.excluded, fit.warnings, fit.to_dict()

Rows are flat dicts, one a run or one an evaluation; every law is told which columns to use, numbers
may be text.

Laws, each from rows to a `Fit` (`lm/fit.py` says what it holds)
    power             L = E + A x^-alpha in N, D or C, or in several inputs; with, without or with a
    given floor chinchilla        L(N, D) = E + A N^-alpha + B D^-beta, approach 3 overtrained
    L(C, M) = E + (a M^eta + b M^-eta) C^-eta, Gadre et al. 2024 data_constrained  L(N, D, U) with
    repeated epochs, Muennighoff et al. 2023 loglog            y = k x^exponent, a line in logs
    isoflop           the minimum of each budget (parabola or Akima), then a line in logs, approach
    2 envelope          the lower hull of learning curves, then a line in logs, approach 1 ability
    loss or bits per byte -> accuracy, a bounded sigmoid or an exponential chain             N, D ->
    task loss -> accuracy, Bhagia et al. 2024 one_step          accuracy straight from compute,
    Krajewski et al. 2026 transfer          data that pre-training was worth, Hernandez et al. 2021

Questions to fits
    allocation(fit, flops)          best N and D for a budget, with intervals backtest(fit),
    holdout(fit, rows)   errors and interval coverage on rungs, or rows, that it has not seen
    compare({name: fit, ...})       forms, best first by held-out error conventions(law, rows,
    n=[...]) how exponents move with what N, D, C or the loss count profile(fit, "E", at=(N, D))
    likelihood profile of a parameter and how the prediction moves along it advise(fit, budget,
    target)     the next run that would most narrow the prediction at the target

Rows before a fit
    finals(rows, columns)           one row a run: its last evaluation, or the mean of its last few
    smooth(rows, columns)           evaluations without the first share of a run, as trailing means

Rows that cannot carry a law raise ValueError with the reason; doubts about a fit that exists are in
`fit.warnings` and are printed with it. `solver.LOSSES` names the losses, `estimate.estimate` says
how intervals are made.
"""

from lm.ability import ability
from lm.advice import advise, profile
from lm.chain import chain, one_step
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
]
