"""The fraud rules, one by one and together."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import sample
from tollgate_examples.fraud.rules import RULES, Assessment, AssessRequest, Location, assess, kilometres

BERLIN = {"latitude": 52.52, "longitude": 13.405}
POTSDAM = {"latitude": 52.39, "longitude": 13.06}
LISBON = {"latitude": 38.72, "longitude": -9.14}
HOUR = 3_600_000


def judge(payment: dict[str, Any] | None = None, account: dict[str, Any] | None = None) -> Assessment:
    """Assess a payment that no rule minds, but for these fields."""
    calm = {
        "id": "p",
        "amount_minor": 5000,
        "currency": "EUR",
        "merchant_category": "groceries",
        "ip_country": "DE",
        "local_hour": 14,
    }
    known = {"id": "a", "age_days": 400, "country": "DE", "typical_amount_minor": 5000}
    body = {"payment": calm | (payment or {}), "account": known | (account or {})}
    return assess(AssessRequest.model_validate(body))


def test_calm_payment() -> None:
    found = judge()
    assert (found.score, found.decision, found.reasons) == (0, "allow", [])


@pytest.mark.parametrize(
    ("payment", "account", "code", "points"),
    [
        ({"amount_minor": 14_999}, {}, None, 0),
        ({"amount_minor": 15_000}, {}, "unusual_amount", 10),
        ({"amount_minor": 25_000}, {}, "unusual_amount", 20),
        ({"amount_minor": 50_000}, {}, "unusual_amount", 30),
        ({"amount_minor": 50_000}, {"typical_amount_minor": 0}, None, 0),
        ({}, {"age_days": 6}, "new_account", 15),
        ({}, {"age_days": 7}, "new_account", 8),
        ({}, {"age_days": 30}, None, 0),
        ({"ip_country": "FR"}, {}, "country_mismatch", 20),
        ({"payments_1h": 4}, {}, None, 0),
        ({"payments_1h": 5}, {}, "velocity", 12),
        ({"payments_1h": 10}, {}, "velocity", 25),
        ({"failed_attempts_1h": 2}, {}, None, 0),
        ({"failed_attempts_1h": 3}, {}, "failed_attempts", 15),
        ({"new_device": True}, {}, "new_device", 10),
        ({"merchant_category": "crypto"}, {}, "risky_category", 10),
        ({"amount_minor": 899_999}, {"typical_amount_minor": 900_000}, None, 0),
        ({"amount_minor": 900_000}, {"typical_amount_minor": 900_000}, "below_threshold", 10),
        ({"amount_minor": 1_000_000}, {"typical_amount_minor": 900_000}, None, 0),
        ({"local_hour": 4}, {}, "night", 5),
        ({"local_hour": 5}, {}, None, 0),
        # 2,310 km: three hours are enough for an airliner, two are not, and time may not run backwards either.
        ({"location": LISBON | {"at_ms": 3 * HOUR}}, {"last_seen": BERLIN | {"at_ms": 0}}, None, 0),
        ({"location": LISBON | {"at_ms": 2 * HOUR}}, {"last_seen": BERLIN | {"at_ms": 0}}, "impossible_travel", 35),
        ({"location": LISBON | {"at_ms": 0}}, {"last_seen": BERLIN | {"at_ms": 2 * HOUR}}, "impossible_travel", 35),
        ({"location": LISBON | {"at_ms": 0}}, {"last_seen": BERLIN | {"at_ms": 0}}, "impossible_travel", 35),
        # 28 km in no time is two masts, not a journey.
        ({"location": POTSDAM | {"at_ms": 0}}, {"last_seen": BERLIN | {"at_ms": 0}}, None, 0),
        ({"location": LISBON | {"at_ms": 0}}, {}, None, 0),
    ],
)
def test_rule(payment: dict[str, Any], account: dict[str, Any], code: str | None, points: int) -> None:
    found = judge(payment, account)
    assert [(r.code, r.points) for r in found.reasons] == ([(code, points)] if code else [])
    assert found.score == points


@pytest.mark.parametrize(
    ("payment", "score", "decision"),
    [
        ({"ip_country": "FR", "local_hour": 1}, 25, "allow"),
        ({"ip_country": "FR", "new_device": True}, 30, "review"),
        ({"ip_country": "FR", "amount_minor": 50_000, "failed_attempts_1h": 3, "local_hour": 1}, 70, "block"),
    ],
)
def test_decision(payment: dict[str, Any], score: int, decision: str) -> None:
    found = judge(payment)
    assert (found.score, found.decision) == (score, decision)


def test_score_ends_at_100_and_heaviest_reason_comes_first() -> None:
    found = assess(AssessRequest.model_validate(sample("/api/v1/fraud/assess")))
    assert (found.score, found.decision) == (100, "block")
    points = [r.points for r in found.reasons]
    assert points == sorted(points, reverse=True)
    assert sum(points) > 100
    assert len(points) < len(RULES)


def test_distance() -> None:
    here = Location(**BERLIN, at_ms=0)
    assert kilometres(here, here) == 0
    assert kilometres(here, Location(**LISBON, at_ms=0)) == pytest.approx(2312, abs=10)
    antipodes = Location(latitude=-52.52, longitude=13.405 - 180, at_ms=0)
    assert kilometres(here, antipodes) == pytest.approx(6371 * 3.14159265, rel=1e-6)
