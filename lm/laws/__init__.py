"""Scaling laws: fits with intervals, back-tests and warnings. No JAX is imported.

Example:

    import lm

    runs = lm.load_runs("runs/quickstart")        # or list(csv.DictReader(open("data.csv")))
    fit = lm.laws.power(runs, x="params.non_embedding", y="eval.loss")
    print(fit)                                    # L(N) = 1.69 + 406 N^-0.34, with intervals
    prediction = fit.predict(1e9)
    print(prediction.value, prediction.lo, prediction.hi)
    print(fit.params["alpha"], fit.interval("alpha"), fit.excluded, fit.warnings)

Rows are flat dicts, one per run or one per evaluation, or a DataFrame. Numbers may be text. The
arguments of a law name its columns. A law refuses rows of several corpora, tokenizers, evaluations
or kinds of start, unless mixed=True.

Laws: functions from rows to a `fit.Fit`

    power               L = E + A x^-alpha of one input or several; E is free, given or absent
    chinchilla          L(N, D) = E + A N^-alpha + B D^-beta (approach 3)
    overtrained         L(C, M) = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024)
    data_constrained    L(N, D, U) with repeated epochs (Muennighoff et al. 2023)
    log_linear          y = k x^exponent, a line in logs
    isoflop             minimum of each budget, then a line in logs (approach 2)
    envelope            lower hull of learning curves, then a line in logs (approach 1)
    accuracy_from_loss  loss or bits per byte -> accuracy, a sigmoid or an exponential
    two_step            N, D -> loss of a task -> accuracy (Bhagia et al. 2024)
    one_step            C -> accuracy (Krajewski et al. 2025)
    transfer            data that pre-training replaces (Hernandez et al. 2021)
    shifted_power       L = E + A (x + x0)^-alpha
    broken_power        power law with smooth changes of its slope (Caballero et al. 2022)
    kaplan              L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D
    custom              a user-defined formula with starts, bounds and priors
    loss_to_loss        loss of a source or a task from the total loss
    new_corpus          loss on a new corpus from one or two runs and the law of another corpus
    hyperparameters     best learning rate, batch size and weight decay of N and D
    forecast            final loss of an unfinished run from finished runs
    given               a law with published coefficients, such as given("hoffmann2022")
    try_fit             (fit, "") of any law, or (None, reason)

Functions of fits

    allocation            best N and D of a budget, with intervals
    inference_allocation  best N and D by training and inference cost (Sardana et al. 2024)
    backtest              errors and interval coverage on larger rows outside the fit
    holdout               errors and interval coverage on other rows
    compare_laws          table of laws, ranked by held-out error
    compare_conventions   table of exponents by the definition of N, D, C or the loss
    profile               profile likelihood of a parameter
    advise                next runs within a budget that narrow a prediction the most per FLOP
    fit.save, load_fit    a fit with its draws and data in a JSON file
    fit.checklist         answers to the reporting checklist of Li et al. 2025 (arXiv:2502.18969)

Preparation of rows

    final_evaluations   last evaluation of each run, or the mean of the last few
    read_curves         learning curves of rows, with the learning rates of all steps
    load_curves         learning curves of a file
    smooth_evaluations  evaluations without the start of each run, as trailing means

A law raises ValueError with the reason if the rows do not determine it. `fit.warnings` lists the
reasons not to trust a fit, and `print(fit)` shows them. `fit.FitOptions` lists the options,
`solver.LOSSES` the losses, and `estimation.fit_problem` describes the intervals.
"""

from lm.laws.backtesting import backtest, compare_conventions, compare_laws, holdout
from lm.laws.design.experiment_design import advise, profile
from lm.laws.estimation import try_fit
from lm.laws.forms.compute_optimal import allocation
from lm.laws.forms.data_constrained import data_constrained, transfer
from lm.laws.forms.downstream import accuracy_from_loss, one_step, two_step
from lm.laws.forms.evaluation_curves import final_evaluations, smooth_evaluations
from lm.laws.forms.inference_cost import inference_allocation
from lm.laws.forms.isoflop import isoflop
from lm.laws.forms.learning_curve_envelope import envelope
from lm.laws.forms.log_linear import log_linear
from lm.laws.forms.power_laws import chinchilla, overtrained, power
from lm.laws.formulas.custom import custom
from lm.laws.formulas.published_laws import broken_power, given, kaplan, shifted_power
from lm.laws.learning_curves.loss_forecast import forecast
from lm.laws.learning_curves.recorded_curves import load_curves, read_curves
from lm.laws.reporting.saved_fit import load_fit
from lm.laws.source_losses.loss_to_loss import loss_to_loss
from lm.laws.source_losses.new_corpus import new_corpus
from lm.laws.tuning.hyperparameter_law import hyperparameters

__all__ = [
    "accuracy_from_loss",
    "advise",
    "allocation",
    "backtest",
    "broken_power",
    "chinchilla",
    "compare_conventions",
    "compare_laws",
    "custom",
    "data_constrained",
    "envelope",
    "final_evaluations",
    "forecast",
    "given",
    "holdout",
    "hyperparameters",
    "inference_allocation",
    "isoflop",
    "kaplan",
    "load_curves",
    "load_fit",
    "log_linear",
    "loss_to_loss",
    "new_corpus",
    "one_step",
    "overtrained",
    "power",
    "profile",
    "read_curves",
    "shifted_power",
    "smooth_evaluations",
    "transfer",
    "try_fit",
    "two_step",
]
