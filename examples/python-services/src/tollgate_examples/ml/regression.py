"""Ridge regression in closed form, with prediction intervals and a held-out score."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_CONDITION = 1e10
"""Above this condition number the normal equations say more about rounding than about the data."""


class SingularError(ValueError):
    """The columns cannot be told apart and no ridge was asked for."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """An estimate with its interval; ``distance`` is the largest |z| of a feature."""

    value: float
    low: float
    high: float
    distance: float


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fitted model. Immutable, so that threads may share it."""

    mean: Array
    scale: Array
    weights: Array  # intercept first
    inverse: Array  # of X'X + λI, intercept first
    residual_sd: float
    samples: int

    @property
    def version(self) -> str:
        """Names the parameters: the same data and settings give the same version."""
        rounded = np.round(np.concatenate([self.mean, self.scale, self.weights]), 9) + 0.0
        return "ridge-" + hashlib.sha256(rounded.tobytes()).hexdigest()[:12]

    def predict(self, row: Array, level: float) -> Prediction:
        """Estimate one row; the interval holds ``level`` of new observations if the model is right."""
        z = (row - self.mean) / self.scale
        x = np.concatenate([[1.0], z])
        value = float(x @ self.weights)
        spread = self.residual_sd * float(np.sqrt(1.0 + max(0.0, x @ self.inverse @ x)))
        half = NormalDist().inv_cdf(0.5 + level / 2) * spread
        return Prediction(value, value - half, value + half, float(np.max(np.abs(z))))

    def score(self, rows: Array, targets: Array) -> tuple[float, float]:
        """Return (RMSE, R²) on rows the model has not seen; R² is 0 where the targets do not vary."""
        design = np.column_stack([np.ones(len(rows)), (rows - self.mean) / self.scale])
        errors = targets - design @ self.weights
        total = float(np.sum((targets - targets.mean()) ** 2))
        squares = float(errors @ errors)
        return float(np.sqrt(squares / len(rows))), 1.0 - squares / total if total > 0 else 0.0


def fit(rows: Array, targets: Array, ridge: float) -> Ridge:
    """Fit on standardised columns; the intercept is not penalised.

    Raises SingularError where columns are collinear and ``ridge`` is too small to separate them.
    """
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    design = np.column_stack([np.ones(len(rows)), (rows - mean) / scale])
    penalty = np.diag([0.0] + [ridge] * rows.shape[1])
    normal = design.T @ design + penalty
    if np.linalg.cond(normal) > MAX_CONDITION:
        raise SingularError("the features are constant or collinear; use a larger ridge")
    inverse = np.linalg.inv(normal)
    weights = inverse @ design.T @ targets
    errors = targets - design @ weights
    freedom = max(1, len(rows) - design.shape[1])
    return Ridge(mean, scale, weights, inverse, float(np.sqrt(errors @ errors / freedom)), len(rows))
