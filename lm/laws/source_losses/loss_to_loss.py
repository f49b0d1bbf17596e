"""Law between two losses of the same runs, such as the loss of one source and the total loss.

    y = c + K (x0 / kappa) ((x / x0)^kappa - 1)

x0 is a typical x, c the value of y there and K the slope there. This is the shifted power law of
Brandfonbrener et al. 2024 (arXiv:2411.12925, equation 1), y = E + A (x - E_x)^kappa, with E_x = 0:
runs over a small range of losses determine a curvature and no shift. Weak priors determine what few
runs do not: kappa = 1 +- 0.1 and K = (1 +- 0.3) c / x0. One run is therefore enough.
"""

from dataclasses import dataclass

import numpy as np

from lm.laws import option_validation, prediction_intervals, run_table

KAPPA_PRIOR = (1.0, 0.1)  # mean and standard deviation
SLOPE_PRIOR = (1.0, 0.3)
NOISE_PRIOR = (0.003, 3.0)  # relative scatter of a loss, and its weight in runs
N_NOISE_UPDATES = 5


@dataclass
class LossToLoss:
    """Fitted law between two losses: see `loss_to_loss`."""

    x: str  # column of the known loss
    y: str  # column of the predicted loss
    params: dict[str, float]  # c, K, kappa, x0
    covariance: np.ndarray  # [3, 3] of c, K and kappa
    noise: float  # relative scatter of y around the law
    degrees: float  # of freedom, of the noise
    n: int
    x_range: tuple[float, float]
    excluded: list[tuple[str, str]]

    def predict(
        self, x: float, x_sd: float = 0.0, level: float = 0.95
    ) -> prediction_intervals.Prediction:
        """Return the loss y of one more run at the loss x, with its interval.

        x_sd: standard deviation of x if x itself is predicted. Raises ValueError unless x is a
        positive number and x_sd is a number of at least 0.
        """
        from scipy import special  # its import takes longer than that of all laws

        prediction_intervals.check_level(level)
        if not option_validation.is_number(x) or x <= 0:
            raise ValueError(f"x={x!r} must be a number above 0: pass a loss in nats per token")
        if not option_validation.is_number(x_sd) or x_sd < 0:
            raise ValueError(f"x_sd={x_sd!r} must be a number of at least 0")
        theta = np.array([self.params[name] for name in ("c", "K", "kappa")])
        value = float(_curve(theta, np.array([x]), self.params["x0"])[0])
        gradient = _gradient(theta, np.array([x]), self.params["x0"])[0]
        slope = theta[1] * (x / self.params["x0"]) ** (theta[2] - 1)
        variance = gradient @ self.covariance @ gradient
        variance += (self.noise * value) ** 2 + (slope * x_sd) ** 2
        half_width = special.stdtrit(self.degrees, (1 + level) / 2) * variance**0.5
        low, high = self.x_range
        return prediction_intervals.Prediction(
            value,
            max(value - half_width, 0.0),
            value + half_width,
            level,
            max(low / x, x / high, 1.0),
        )

    def __str__(self) -> str:
        c, slope, kappa, x0 = (self.params[name] for name in ("c", "K", "kappa", "x0"))
        return (
            f"{self.y} = {c:.4g} + {slope:.3g} ({x0:.4g} / {kappa:.3g}) ((L / {x0:.4g})^{kappa:.3g}"
            f" - 1), L: {self.x}, {self.n} runs, scatter {self.noise:.2%}"
        )


def loss_to_loss(
    rows: run_table.Rows,
    y: str,
    x: str = "eval.loss",
    where: run_table.Where = None,
    mixed: bool | tuple[str, ...] = False,
) -> LossToLoss:
    """Fit the loss y of runs as a function of their loss x. One run is enough.

    Example: fit.predict(total) is the loss of a source at a predicted total loss. y, x: columns of
    losses, bits per byte or perplexities. where, mixed: see `fit.FitOptions`. The noise of y is
    that of the residuals, combined with NOISE_PRIOR. Raises ValueError for unknown columns and if
    y and x are the same column.
    """
    option_validation.check_columns(y=y, x=x)
    if x == y:
        raise ValueError(f"y={y!r} is also x: name two different losses")
    from scipy import optimize  # its import takes longer than that of all laws

    table = run_table.select_columns(rows, [x, y], where=where, mixed=mixed)
    inputs, outputs = table.columns[x], table.columns[y]
    x0 = float(np.exp(np.log(inputs).mean()))
    noise, prior_runs = NOISE_PRIOR
    theta = np.array([float(outputs.mean()), SLOPE_PRIOR[0] * outputs.mean() / x0, KAPPA_PRIOR[0]])
    slope_unit = theta[1]  # slope of proportional losses
    for _ in range(N_NOISE_UPDATES):
        arguments = (inputs, outputs, x0, noise, slope_unit)
        solution = optimize.least_squares(_residuals, theta, args=arguments)
        theta = solution.x
        errors = _curve(theta, inputs, x0) / outputs - 1
        n_determined = max(len(inputs) - 3, 0)
        squares = float(errors @ errors) if n_determined else 0.0
        degrees = prior_runs + n_determined
        noise = float(np.sqrt((prior_runs * NOISE_PRIOR[0] ** 2 + squares) / degrees))
    return LossToLoss(
        x=x,
        y=y,
        params={"c": theta[0], "K": theta[1], "kappa": theta[2], "x0": x0},
        covariance=np.linalg.inv(solution.jac.T @ solution.jac),
        noise=noise,
        degrees=degrees,
        n=len(inputs),
        x_range=(float(inputs.min()), float(inputs.max())),
        excluded=table.excluded,
    )


def _curve(theta: np.ndarray, x: np.ndarray, x0: float) -> np.ndarray:
    """Return y [n] at x [n]."""
    c, slope, kappa = theta
    return c + slope * x0 / kappa * ((x / x0) ** kappa - 1)


def _gradient(theta: np.ndarray, x: np.ndarray, x0: float) -> np.ndarray:
    """Return the derivatives [n, 3] of y in c, K and kappa."""
    _, slope, kappa = theta
    power, log = (x / x0) ** kappa, np.log(x / x0)
    in_kappa = slope * x0 * (power * log / kappa - (power - 1) / kappa**2)
    return np.stack([np.ones(len(x)), x0 / kappa * (power - 1), in_kappa], 1)


def _residuals(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, x0: float, noise: float, slope_unit: float
) -> np.ndarray:
    """Return the residuals of the runs and of the priors, in standard deviations."""
    of_runs = (_curve(theta, x, x0) - y) / (noise * y)
    of_slope = (theta[1] / slope_unit - SLOPE_PRIOR[0]) / SLOPE_PRIOR[1]
    of_kappa = (theta[2] - KAPPA_PRIOR[0]) / KAPPA_PRIOR[1]
    return np.concatenate([of_runs, [of_slope, of_kappa]])
