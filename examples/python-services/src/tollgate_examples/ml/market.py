"""The features of the price model, and the made-up market that it is trained on at start."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from tollgate_examples.ml.regression import Array
from tollgate_examples.schema import Strict


class Features(Strict):
    """What is known about an asset now; returns are fractions (0.01 is one percent)."""

    return_1h: Annotated[float, Field(ge=-0.99, le=10)]
    return_24h: Annotated[float, Field(ge=-0.99, le=10)]
    volatility_24h: Annotated[float, Field(ge=0, le=10, description="Standard deviation of hourly returns.")]
    volume_ratio: Annotated[float, Field(gt=0, le=1000, description="Last hour's volume over its usual one.")]
    order_imbalance: Annotated[float, Field(ge=-1, le=1, description="(bids - asks) / (bids + asks).")]
    spread_bps: Annotated[float, Field(ge=0, le=10_000, description="Bid-ask spread in basis points.")]


NAMES = tuple(Features.model_fields)
TRUE_WEIGHTS = {
    "return_1h": 0.15,
    "return_24h": -0.05,
    "volatility_24h": 0.02,
    "volume_ratio": 0.0015,
    "order_imbalance": 0.004,
    "spread_bps": -0.00005,
}
"""The law of the made-up market: next return per unit of a feature (of log volume ratio)."""


def vector(features: Features) -> Array:
    """Return the model's row for these features; the volume ratio enters as its logarithm."""
    values = [getattr(features, name) for name in NAMES]
    values[NAMES.index("volume_ratio")] = np.log(features.volume_ratio)
    return np.array(values, dtype=np.float64)


def simulate(samples: int, seed: int, noise: float) -> tuple[Array, Array]:
    """Draw rows and next-hour returns from the made-up market; deterministic in the seed."""
    rng = np.random.default_rng(seed)
    columns = {
        "return_1h": rng.normal(0, 0.01, samples),
        "return_24h": rng.normal(0, 0.04, samples),
        "volatility_24h": rng.lognormal(-3.5, 0.4, samples),
        "volume_ratio": rng.normal(0, 0.5, samples),
        "order_imbalance": rng.uniform(-1, 1, samples),
        "spread_bps": rng.uniform(1, 20, samples),
    }
    rows = np.column_stack([columns[name] for name in NAMES])
    weights = np.array([TRUE_WEIGHTS[name] for name in NAMES])
    return rows, rows @ weights + rng.normal(0, noise, samples)
