"""Parameters of the laws of the best hyperparameters, and the optima that they give.

    log lr  = a_0 + a_N (log N - mean) + a_D (log D - mean) + a_B (log B - mean)
    log tau = t_0 + t_DN (log D/N - mean)
    log B*  = b_0 + b_D (log D - mean)

lr is the best learning rate at the batch size B, and B* is the best batch size. The parameters form
one vector: those of the surface of lr and tau (the exponents, then the curvature), then those of
the surface of B. Runs of one batch size have no a_B, b_0 and b_D.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.laws.tuning import quadratic_surface

STEP = 1e-5  # of a numerical derivative, in units of the parameters
NAMES = ("lr", "batch", "tau")


class Layout(NamedTuple):
    """Order of the parameters. Names are those of the fitted hyperparameters, of NAMES."""

    names: list[str]
    centers: dict[str, float]  # means of log N, log D, log (D / N) and log B
    batch_tokens: float  # tokens per step of runs that do not vary them

    @property
    def rate_inputs(self) -> dict[str, tuple[str, ...]]:
        """Inputs of the optima of the first surface: the learning rate and tau."""
        inputs: dict[str, tuple[str, ...]]
        inputs = {"lr": ("N", "D", "B") if "batch" in self.names else ("N", "D")}
        if "tau" in self.names:
            inputs["tau"] = ("DN",)
        return inputs

    @property
    def rate_features(self) -> list[int]:
        """Number of exponents of each optimum of the first surface."""
        return [len(inputs) + 1 for inputs in self.rate_inputs.values()]

    @property
    def n_rate_parameters(self) -> int:
        """Number of parameters of the first surface."""
        h = len(self.rate_features)
        return sum(self.rate_features) + h * (h + 1) // 2

    def split(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Return the exponents of each optimum."""
        values = quadratic_surface.exponents(theta, self.rate_features)
        by_name = dict(zip(self.rate_inputs, values, strict=True))
        if "batch" in self.names:
            first = self.n_rate_parameters
            by_name["batch"] = theta[first : first + 2]
        return by_name

    def curvature(self, theta: np.ndarray) -> np.ndarray:
        """Return the curvature [h, h] of log L, in the order of `names`.

        The batch size has no interaction, because lr is the best one at each batch size.
        """
        matrix = np.zeros((len(self.names), len(self.names)))
        rate_indices = [self.names.index(name) for name in self.rate_inputs]
        rate = quadratic_surface.curvature(theta[: self.n_rate_parameters], self.rate_features)
        matrix[np.ix_(rate_indices, rate_indices)] = rate
        if "batch" in self.names:
            j = self.names.index("batch")
            of_batch = theta[self.n_rate_parameters :]
            matrix[j, j] = quadratic_surface.curvature(of_batch, [2])[0, 0]
        return matrix

    def log_optima(
        self, theta: np.ndarray, n: float, d: float, batch_tokens: float | None = None
    ) -> dict[str, float]:
        """Return the log of the best value of each hyperparameter of `names`.

        batch_tokens: tokens per step of the learning rate; None is the best number of them.
        """
        inputs = log_inputs(n, d)
        exponents = self.split(theta)
        logs = {}
        if "batch" in self.names:
            logs["batch"] = self._evaluate(exponents["batch"], ("D",), inputs)
        log_batch = logs.get("batch", np.log(self.batch_tokens))
        inputs["B"] = log_batch if batch_tokens is None else np.log(batch_tokens)
        for name, columns in self.rate_inputs.items():
            logs[name] = self._evaluate(exponents[name], columns, inputs)
        return {name: float(logs[name]) for name in self.names}

    def parameters(self, theta: np.ndarray) -> dict[str, float]:
        """Return the parameters of the law by name.

        lr_D is the exponent of D at the best batch size. lr_B is the exponent of B / B*.
        """
        exponents = self.split(theta)
        rate = dict(zip(self.rate_inputs["lr"], exponents["lr"][1:], strict=True))
        log_rate = exponents["lr"][0]
        values = {}
        if "batch" in self.names:
            log_batch, slope = exponents["batch"]
            log_rate += rate["B"] * (log_batch - self.centers["B"])
            rate["D"] += rate["B"] * slope
        optima = {"lr": (log_rate, rate)}
        if "batch" in self.names:
            optima["batch"] = (exponents["batch"][0], {"D": exponents["batch"][1]})
        if "tau" in self.names:
            optima["tau"] = (exponents["tau"][0], {"DN": exponents["tau"][1]})
        for name, (log_center, slopes) in optima.items():
            shift = sum(slope * self.centers[x] for x, slope in slopes.items() if x != "B")
            values[f"{name}_k"] = float(np.exp(log_center - shift))
            values |= {f"{name}_{x}": float(slope) for x, slope in slopes.items()}
        return values

    def _evaluate(
        self, exponents: np.ndarray, columns: Sequence[str], inputs: Mapping[str, Any]
    ) -> float:
        """Return the log of an optimum."""
        terms = (
            s * (inputs[x] - self.centers[x]) for x, s in zip(columns, exponents[1:], strict=True)
        )
        return exponents[0] + sum(terms)


def log_inputs(n: Any, d: Any) -> dict[str, Any]:
    """Return the logs of size and tokens by name. n, d: numbers or arrays."""
    return {"N": np.log(n), "D": np.log(d), "DN": np.log(d) - np.log(n)}


def differentiate(function: Callable[[np.ndarray], np.ndarray], theta: np.ndarray) -> np.ndarray:
    """Return the derivatives [p, k] of a function with k values."""
    steps = STEP * np.eye(len(theta))
    return np.stack([(function(theta + s) - function(theta - s)) / (2 * STEP) for s in steps])
