"""The fraud rules: each adds points and says why. The score is their sum, at most 100."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tollgate_examples.schema import Millis, ShortText, Strict

if TYPE_CHECKING:
    from collections.abc import Callable

Country = Annotated[str, Field(pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2.")]
Decision = Literal["allow", "review", "block"]

REVIEW_FROM = 30
BLOCK_FROM = 70
EARTH_RADIUS_KM = 6371.0
PLAUSIBLE_KMH = 900.0
"""An airliner's speed; whoever is faster was not one person."""
NEARBY_KM = 100.0
"""Below this a jump is the error of an address database, not a journey."""
RISKY_CATEGORIES = frozenset({"gift_cards", "crypto", "gambling", "wire_transfer"})


class Location(Strict):
    """A point on the Earth in degrees, and when the person was there."""

    latitude: Annotated[float, Field(ge=-90, le=90)]
    longitude: Annotated[float, Field(ge=-180, le=180)]
    at_ms: Millis


class Account(Strict):
    """What is known about who pays."""

    id: ShortText
    age_days: Annotated[int, Field(ge=0, le=36_500)]
    country: Country
    typical_amount_minor: Annotated[
        int, Field(ge=0, le=10**15, description="Usual payment in minor units; 0 if not known.")
    ] = 0
    last_seen: Location | None = None


class Payment(Strict):
    """The payment to judge. Amounts are integers in minor units (cents)."""

    id: ShortText
    amount_minor: Annotated[int, Field(gt=0, le=10**15)]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$", description="ISO 4217.")]
    merchant_category: ShortText
    ip_country: Country
    location: Location | None = None
    local_hour: Annotated[int, Field(ge=0, le=23)]
    new_device: bool = False
    failed_attempts_1h: Annotated[int, Field(ge=0, le=10_000)] = 0
    payments_1h: Annotated[int, Field(ge=0, le=100_000)] = 0


class AssessRequest(Strict):
    """A payment and the account it is made from."""

    payment: Payment
    account: Account


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that applied."""

    code: str
    points: int
    detail: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """The score from 0 to 100, what to do, and the reasons, heaviest first."""

    payment_id: str
    score: int
    decision: Decision
    reasons: list[Reason]


def assess(request: AssessRequest) -> Assessment:
    """Apply every rule and add up the points."""
    found = (rule(request.payment, request.account) for rule in RULES)
    reasons = sorted((r for r in found if r is not None), key=lambda r: (-r.points, r.code))
    score = min(100, sum(r.points for r in reasons))
    decision: Decision = "block" if score >= BLOCK_FROM else "review" if score >= REVIEW_FROM else "allow"
    return Assessment(request.payment.id, score, decision, reasons)


def _unusual_amount(payment: Payment, account: Account) -> Reason | None:
    if account.typical_amount_minor == 0:
        return None
    ratio = payment.amount_minor / account.typical_amount_minor
    for limit, points in ((10, 30), (5, 20), (3, 10)):
        if ratio >= limit:
            return Reason("unusual_amount", points, f"{ratio:.1f} times the usual amount")
    return None


def _new_account(_: Payment, account: Account) -> Reason | None:
    for limit, points in ((7, 15), (30, 8)):
        if account.age_days < limit:
            return Reason("new_account", points, f"the account is {account.age_days} days old")
    return None


def _country_mismatch(payment: Payment, account: Account) -> Reason | None:
    if payment.ip_country == account.country:
        return None
    return Reason("country_mismatch", 20, f"paid from {payment.ip_country}, account of {account.country}")


def _impossible_travel(payment: Payment, account: Account) -> Reason | None:
    here, before = payment.location, account.last_seen
    if here is None or before is None:
        return None
    distance = kilometres(before, here)
    hours = abs(here.at_ms - before.at_ms) / 3_600_000
    if distance < NEARBY_KM or distance <= PLAUSIBLE_KMH * hours:
        return None
    return Reason("impossible_travel", 35, f"{distance:.0f} km in {hours * 60:.0f} minutes")


def _velocity(payment: Payment, _: Account) -> Reason | None:
    for limit, points in ((10, 25), (5, 12)):
        if payment.payments_1h >= limit:
            return Reason("velocity", points, f"{payment.payments_1h} payments within the hour")
    return None


def _failed_attempts(payment: Payment, _: Account) -> Reason | None:
    if payment.failed_attempts_1h < 3:
        return None
    return Reason("failed_attempts", 15, f"{payment.failed_attempts_1h} failed attempts within the hour")


def _new_device(payment: Payment, _: Account) -> Reason | None:
    return Reason("new_device", 10, "the device was not seen before") if payment.new_device else None


def _risky_category(payment: Payment, _: Account) -> Reason | None:
    if payment.merchant_category not in RISKY_CATEGORIES:
        return None
    return Reason("risky_category", 10, f"{payment.merchant_category} is easily turned into cash")


def _just_below_threshold(payment: Payment, _: Account) -> Reason | None:
    if not 900_000 <= payment.amount_minor < 1_000_000:
        return None
    return Reason("below_threshold", 10, "just below the reporting threshold of 10,000.00")


def _night(payment: Payment, _: Account) -> Reason | None:
    if payment.local_hour > 4:
        return None
    return Reason("night", 5, f"made at {payment.local_hour:02d}h local time")


RULES: tuple[Callable[[Payment, Account], Reason | None], ...] = (
    _unusual_amount,
    _new_account,
    _country_mismatch,
    _impossible_travel,
    _velocity,
    _failed_attempts,
    _new_device,
    _risky_category,
    _just_below_threshold,
    _night,
)


def kilometres(a: Location, b: Location) -> float:
    """Return the great-circle distance (haversine)."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    d_lat, d_lon = lat_b - lat_a, math.radians(b.longitude - a.longitude)
    h = math.sin(d_lat / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(d_lon / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))
