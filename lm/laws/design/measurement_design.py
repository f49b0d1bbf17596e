"""Covariances of a law at candidate runs and at a target, and their change by further runs.

A measurement of a candidate u with noise s leaves the expected variance
var(t) - cov(t, u)^2 / (var(u) + s^2) of the target t. Values of a law are centered logs.

Legend: B draws of the ensemble, m candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit


@dataclass(frozen=True)
class MeasurementDesign:
    """Covariances of the law at m candidates and at the target, given chosen measurements."""

    covariance: np.ndarray  # of the candidates, [m, m]
    with_target: np.ndarray  # covariance of each candidate with the target, [m]
    variance: float  # at the target
    noise: np.ndarray  # variance of a measurement of each candidate, [m]

    @classmethod
    def of_fit(
        cls,
        law_fit: fit.Fit,
        target: list[np.ndarray],
        points: np.ndarray,
        has_form_error: bool = False,
    ) -> "MeasurementDesign":
        """Return the covariances of the logs of a law over its ensemble.

        target: the inputs of the target. points: inputs of the candidates, [inputs, m].
        has_form_error: include the error of the form of the law, see `form_uncertainty`.
        """
        if has_form_error:
            inputs = np.concatenate([np.stack(target).reshape(-1, 1), points], axis=1)
            values = law_fit.draws(*inputs, noise=False, form=True)
            t, u = (
                np.log(np.maximum(values[:, :1], 1e-300)),
                np.log(np.maximum(values[:, 1:], 1e-300)),
            )
        else:
            params: dict[str, Any] = dict(law_fit.params)
            params |= {name: draws[:, None] for name, draws in law_fit.ensemble.items()}
            parts = [
                np.asarray(law_fit.values(params, *(np.atleast_1d(v)[None] for v in inputs)), float)
                for inputs in (target, points)
            ]
            t, u = (np.log(np.maximum(v, 1e-300)) for v in parts)
        # The spread of the draws includes the uncertainty of sigma, so the noise does too.
        sigma = law_fit.sigma if law_fit.sigmas is None else np.sqrt((law_fit.sigmas**2).mean())
        sigma = sigma / (np.exp(u.mean(0)) if law_fit.additive_noise else 1.0)
        noise = np.broadcast_to(np.nan_to_num(sigma) ** 2 + 1e-300, u.shape[1])
        t, u = t.ravel() - t.mean(), u - u.mean(0)
        return cls(u.T @ u / len(t), u.T @ t / len(t), float((t**2).mean()), noise)

    def reductions(self) -> np.ndarray:
        """Return the variance at the target that a measurement of each candidate removes, [m]."""
        return self.with_target**2 / (np.diag(self.covariance) + self.noise)

    def after(self, chosen: Sequence[int]) -> "MeasurementDesign":
        """Return the covariances given measurements of the chosen candidates."""
        design = self
        for i in chosen:
            column, slope = design.covariance[:, i], design.with_target[i]
            total = column[i] + design.noise[i]
            design = MeasurementDesign(
                design.covariance - np.outer(column, column) / total,
                design.with_target - column * slope / total,
                float(design.variance - slope**2 / total),
                design.noise,
            )
        return design
