"""HTTP routes of the ml service: ``/predict`` and ``/train``."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import Field, model_validator

from tollgate_examples.ml import market
from tollgate_examples.ml.market import Features
from tollgate_examples.ml.regression import Array, Ridge, SingularError, fit
from tollgate_examples.problem import Refused
from tollgate_examples.schema import Price, ShortText, Strict

MAX_RETURN = 1.0
"""Returns estimated beyond this are cut: far outside the data a line goes anywhere."""
FAR = 5.0
"""A feature this many standard deviations from the training mean makes an estimate an extrapolation."""


class PredictRequest(Strict):
    """An asset, its last price and its features."""

    symbol: ShortText
    last_price: Price
    features: Features
    level: Annotated[float, Field(ge=0.5, le=0.99, description="Coverage of the interval.")] = 0.9


class LabelledRow(Strict):
    """One observation to train on."""

    features: Features
    next_return: Annotated[float, Field(ge=-1, le=1)]


class TrainRequest(Strict):
    """Train on the caller's rows, or, without them, on rows of the made-up market."""

    rows: Annotated[list[LabelledRow] | None, Field(min_length=20, max_length=2000)] = None
    samples: Annotated[int, Field(ge=100, le=20_000)] = 2000
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 7
    noise: Annotated[float, Field(ge=0.0001, le=0.1, description="Of the made-up market.")] = 0.004
    ridge: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    activate: Annotated[bool, Field(description="Use the new model for predictions of this process.")] = True

    @model_validator(mode="after")
    def _one_source(self) -> TrainRequest:
        made_up = {"samples", "seed", "noise"} & self.model_fields_set
        if self.rows is not None and made_up:
            raise ValueError(f"rows are given, so {', '.join(sorted(made_up))} would have no effect")
        return self


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model answered; the version names the parameters."""

    version: str
    samples: int


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the price is expected with probability ``level``, if the model is right."""

    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class PredictResponse:
    """The estimated price an hour ahead."""

    symbol: str
    price: float
    interval: Interval
    expected_return: float
    extrapolating: bool
    model: ModelInfo


@dataclass(frozen=True, slots=True)
class TrainResponse:
    """The new model and how it does on the fifth of the rows that it was not trained on."""

    model: ModelInfo
    active: bool
    source: Literal["rows", "made_up"]
    rmse: float
    r2: float
    weights: dict[str, float]


class Models:
    """Holds the active model of this process. Safe for use by several threads."""

    def __init__(self, model: Ridge) -> None:
        self._lock = threading.Lock()
        self._set(model)

    def _set(self, model: Ridge) -> None:
        self._active = (model, ModelInfo(model.version, model.samples))

    def active(self) -> tuple[Ridge, ModelInfo]:
        """Return the model in use with its description."""
        with self._lock:
            return self._active

    def activate(self, model: Ridge) -> None:
        """Use this model from now on."""
        with self._lock:
            self._set(model)


def predict(request: PredictRequest, model: Ridge, info: ModelInfo) -> PredictResponse:
    """Turn the estimated log return and its interval into prices."""
    estimate = model.predict(market.vector(request.features), request.level)
    expected, low, high = (max(-MAX_RETURN, min(MAX_RETURN, r)) for r in (estimate.value, estimate.low, estimate.high))
    return PredictResponse(
        symbol=request.symbol,
        price=_significant(request.last_price * math.exp(expected)),
        interval=Interval(
            _significant(request.last_price * math.exp(low)),
            _significant(request.last_price * math.exp(high)),
            request.level,
        ),
        expected_return=_significant(expected),
        extrapolating=estimate.distance > FAR,
        model=info,
    )


def train(request: TrainRequest) -> tuple[Ridge, TrainResponse]:
    """Fit on four fifths of the rows and score on the rest. Raises Refused for collinear features."""
    rows, targets = _training_data(request)
    held_out = np.arange(len(rows)) % 5 == 4
    try:
        model = fit(rows[~held_out], targets[~held_out], request.ridge)
    except SingularError as exc:
        raise Refused("singular_features", str(exc)) from exc
    rmse, r2 = model.score(rows[held_out], targets[held_out])
    weights = dict(zip(("intercept", *market.NAMES), map(_significant, model.weights.tolist()), strict=True))
    source: Literal["rows", "made_up"] = "made_up" if request.rows is None else "rows"
    info = ModelInfo(model.version, model.samples)
    return model, TrainResponse(info, request.activate, source, _significant(rmse), _significant(r2), weights)


def build_router() -> APIRouter:
    """Train the first model and bind the routes to it."""
    router = APIRouter()
    models = Models(train(TrainRequest())[0])

    @router.post("/predict", name="predict")
    async def predict_route(request: PredictRequest) -> PredictResponse:
        """Estimate the price in an hour. The same body gets the same answer until the model changes."""
        model, info = models.active()
        return predict(request, model, info)

    @router.post("/train", name="train")
    def train_route(request: TrainRequest) -> TrainResponse:
        """Train a model, in this process only: other replicas keep theirs."""
        model, response = train(request)
        if request.activate:
            models.activate(model)
        return response

    return router


def _training_data(request: TrainRequest) -> tuple[Array, Array]:
    if request.rows is None:
        return market.simulate(request.samples, request.seed, request.noise)
    rows = np.array([market.vector(row.features) for row in request.rows])
    return rows, np.array([row.next_return for row in request.rows])


def _significant(value: float) -> float:
    """Eight significant digits: enough for a price, and free of the last bits' noise."""
    return float(f"{value:.8g}")
