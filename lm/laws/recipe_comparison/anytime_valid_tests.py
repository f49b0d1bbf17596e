"""Critical values of t statistics: for a fixed number of runs, or valid after every run.

A test that is repeated after every new run rejects a true hypothesis more often than its level. An
anytime-valid test bounds the probability of any rejection, over all numbers of runs. Its
confidence sequence contains the true value at all times with the same probability (Howard et al.
2021, arXiv:1810.08240). For normal errors of unknown variance, the ratio of the likelihood under a
normal mixture to that under the hypothesis is a martingale (Lai 1976; Lindon et al. 2022,
arXiv:2210.08589, theorem 3.2). The hypothesis is rejected once the ratio reaches 1 / error.
"""

import math

# Variance of the mixture, in units of the noise variance. Effects of two standard deviations of the
# noise are typical. A variance of 1 makes the critical value of ten pairs of runs 2% larger. With
# three degrees of freedom, because sizes scatter around the law, it is then infinite.
MIXTURE_VARIANCE = 4.0


def critical_value(error: float, n_spare: int, information: float, is_anytime: bool) -> float:
    """Return the absolute t statistic above which an effect differs from zero.

    error: probability of a false rejection, two-sided. n_spare: degrees of freedom of the noise.
    information: noise variance divided by the squared standard error of the effect, such as the
    number of pairs for a mean. is_anytime: bound the error over all numbers of runs. Infinite if no
    t statistic of so few runs rejects.
    """
    from scipy import special  # its import takes longer than that of all laws

    if n_spare < 1:
        return math.inf
    if not is_anytime:
        return float(special.stdtrit(n_spare, 1 - error / 2))
    shrinkage = 1 / (1 + MIXTURE_VARIANCE * information)
    growth = (error**-2 / shrinkage) ** (1 / (n_spare + 1))
    denominator = 1 - growth * shrinkage
    return math.sqrt(n_spare * (growth - 1) / denominator) if denominator > 0 else math.inf
