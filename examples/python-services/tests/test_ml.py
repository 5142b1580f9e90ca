"""The price model: the algebra by hand, the law it should find, the routes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastapi.testclient import TestClient

from conftest import sample
from tollgate_examples.app import build
from tollgate_examples.ml import market
from tollgate_examples.ml.regression import SingularError, fit
from tollgate_examples.services import SERVICES

X = np.array([[1.0], [2.0], [3.0], [4.0]])
Y = np.array([2.0, 4.0, 5.0, 7.0])


@pytest.fixture
def client() -> TestClient:
    return TestClient(build(SERVICES["ml"]))


def test_least_squares_by_hand() -> None:
    # Mean 2.5 and 4.5; slope = Sxy/Sxx = 8/5; residuals -0.1 0.3 -0.3 0.1, so s² = 0.2/2.
    model = fit(X, Y, ridge=0.0)
    assert model.predict(np.array([2.5]), 0.9).value == pytest.approx(4.5)
    assert model.predict(np.array([3.5]), 0.9).value == pytest.approx(4.5 + 1.6)
    assert model.residual_sd == pytest.approx(math.sqrt(0.1))


def test_interval_by_hand() -> None:
    # At the mean: half width = z(0.975) s sqrt(1 + 1/n).
    estimate = fit(X, Y, ridge=0.0).predict(np.array([2.5]), 0.95)
    half = 1.959964 * math.sqrt(0.1) * math.sqrt(1.25)
    assert (estimate.low, estimate.high) == pytest.approx((4.5 - half, 4.5 + half))
    assert estimate.distance == pytest.approx(0.0)


def test_ridge_shrinks_the_slope_but_not_the_intercept() -> None:
    # Standardised: z'z = n = 4, so a ridge of 4 halves the slope.
    model = fit(X, Y, ridge=4.0)
    assert model.predict(np.array([2.5]), 0.9).value == pytest.approx(4.5)
    assert model.predict(np.array([3.5]), 0.9).value == pytest.approx(4.5 + 0.8)


def test_score_by_hand() -> None:
    rmse, r2 = fit(X, Y, ridge=0.0).score(X, Y)
    assert rmse == pytest.approx(math.sqrt(0.2 / 4))
    assert r2 == pytest.approx(1 - 0.2 / 13)
    assert fit(X, Y, ridge=0.0).score(X, np.full(4, 5.0))[1] == 0.0


def test_collinear_columns_need_a_ridge() -> None:
    twice = np.column_stack([X, 2 * X])
    with pytest.raises(SingularError):
        fit(twice, Y, ridge=0.0)
    assert fit(twice, Y, ridge=1.0).samples == 4


def test_model_finds_the_law_of_the_market() -> None:
    rows, targets = market.simulate(20_000, seed=3, noise=0.004)
    model = fit(rows, targets, ridge=1.0)
    found = model.weights[1:] / model.scale
    errors = model.residual_sd * np.sqrt(np.diag(model.inverse)[1:]) / model.scale
    for name, weight, error in zip(market.NAMES, found, errors, strict=True):
        assert abs(weight - market.TRUE_WEIGHTS[name]) < 4 * error, name


def test_intervals_hold_what_they_promise() -> None:
    rows, targets = market.simulate(6000, seed=5, noise=0.004)
    model = fit(rows[:3000], targets[:3000], ridge=1.0)
    inside = 0
    for row, target in zip(rows[3000:], targets[3000:], strict=True):
        estimate = model.predict(row, 0.9)
        inside += estimate.low <= target <= estimate.high
    assert 0.88 < inside / 3000 < 0.92


def test_predict_is_ordered_and_repeatable(client: TestClient) -> None:
    body = sample("/api/v1/ml/predict")
    first, second = (client.post("/api/v1/ml/predict", json=body).json() for _ in range(2))
    assert first == second
    assert first["interval"]["low"] < first["price"] < first["interval"]["high"]
    assert first["price"] == pytest.approx(body["last_price"] * math.exp(first["expected_return"]), rel=1e-6)
    assert not first["extrapolating"]


def test_far_features_are_called_extrapolation_and_stay_finite(client: TestClient) -> None:
    body = sample("/api/v1/ml/predict")
    body["features"] |= {"return_24h": -0.99, "volatility_24h": 10.0, "spread_bps": 10_000.0}
    answer = client.post("/api/v1/ml/predict", json=body).json()
    assert answer["extrapolating"]
    assert answer["price"] >= body["last_price"] * math.exp(-1.0) * 0.999999


def test_training_replaces_the_model_only_if_asked(client: TestClient) -> None:
    body = sample("/api/v1/ml/predict")
    before = client.post("/api/v1/ml/predict", json=body).json()["model"]
    tried = client.post("/api/v1/ml/train", json={"seed": 9, "activate": False}).json()
    assert client.post("/api/v1/ml/predict", json=body).json()["model"] == before
    used = client.post("/api/v1/ml/train", json={"seed": 9}).json()
    assert used["model"] == tried["model"] != before
    assert client.post("/api/v1/ml/predict", json=body).json()["model"] == used["model"]


def test_training_on_rows(client: TestClient) -> None:
    # The return is exactly a hundredth of the imbalance; everything else is noise that has no effect.
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(50):
        features = {
            "return_1h": float(rng.normal(0, 0.01)),
            "return_24h": float(rng.normal(0, 0.04)),
            "volatility_24h": float(rng.uniform(0.01, 0.05)),
            "volume_ratio": float(rng.uniform(0.5, 2)),
            "order_imbalance": float(rng.uniform(-1, 1)),
            "spread_bps": float(rng.uniform(1, 20)),
        }
        rows.append({"features": features, "next_return": 0.01 * features["order_imbalance"]})
    answer = client.post("/api/v1/ml/train", json={"rows": rows, "ridge": 0.0}).json()
    assert answer["source"] == "rows"
    assert answer["model"]["samples"] == 40
    assert answer["r2"] == pytest.approx(1.0)
    prediction = client.post(
        "/api/v1/ml/predict",
        json={"symbol": "X", "last_price": 100.0, "features": rows[0]["features"]},
    ).json()
    assert prediction["expected_return"] == pytest.approx(rows[0]["next_return"], abs=1e-8)


def test_training_on_constant_rows_is_refused(client: TestClient) -> None:
    row = {"features": sample("/api/v1/ml/predict")["features"], "next_return": 0.0}
    answer = client.post("/api/v1/ml/train", json={"rows": [row] * 20, "ridge": 0.0})
    assert answer.status_code == 422
    assert answer.json()["code"] == "singular_features"


def test_rows_and_made_up_settings_exclude_each_other(client: TestClient) -> None:
    row = {"features": sample("/api/v1/ml/predict")["features"], "next_return": 0.0}
    answer = client.post("/api/v1/ml/train", json={"rows": [row] * 20, "seed": 1})
    assert answer.status_code == 422
    assert "seed would have no effect" in answer.json()["errors"][0]["message"]
