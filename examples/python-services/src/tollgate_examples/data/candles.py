"""Aggregates trades into candles: open, high, low, close, volume, VWAP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tollgate_examples.problem import Refused
from tollgate_examples.schema import Millis, Price, Quantity, ShortText, Strict

MAX_CANDLES = 5000


class Trade(Strict):
    """One trade."""

    symbol: ShortText
    timestamp_ms: Millis
    price: Price
    quantity: Quantity


class AggregateRequest(Strict):
    """Trades in any order and the length of a candle."""

    trades: Annotated[list[Trade], Field(min_length=1, max_length=5000)]
    interval_ms: Annotated[int, Field(ge=1, le=31 * 86_400_000)] = 60_000
    fill_gaps: Annotated[bool, Field(description="Add empty candles at the last close.")] = False


@dataclass(frozen=True, slots=True)
class Candle:
    """One interval of one symbol; ``vwap`` is null where nothing was traded."""

    start_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None
    trades: int


@dataclass(frozen=True, slots=True)
class Series:
    """All candles of a symbol, and its volume-weighted price over all of them."""

    symbol: str
    volume: float
    vwap: float | None
    candles: list[Candle]


@dataclass(frozen=True, slots=True)
class AggregateResponse:
    """One series a symbol, by name."""

    interval_ms: int
    series: list[Series]


def aggregate(request: AggregateRequest) -> AggregateResponse:
    """Build the candles. Trades of one millisecond keep the order of the request.

    Raises Refused where filling the gaps would take more than MAX_CANDLES candles.
    """
    by_symbol: dict[str, list[Trade]] = {}
    for trade in sorted(request.trades, key=lambda t: t.timestamp_ms):
        by_symbol.setdefault(trade.symbol, []).append(trade)
    if request.fill_gaps:
        spans = ((t[-1].timestamp_ms - t[0].timestamp_ms) // request.interval_ms + 2 for t in by_symbol.values())
        if sum(spans) > MAX_CANDLES:
            raise Refused(
                "too_many_candles",
                f"filling the gaps takes more than {MAX_CANDLES} candles: use a longer interval",
            )
    series = []
    for symbol in sorted(by_symbol):
        trades = by_symbol[symbol]
        candles = _candles(trades, request.interval_ms, request.fill_gaps)
        volume, vwap = _weighted(trades)
        series.append(Series(symbol, volume, vwap, candles))
    return AggregateResponse(request.interval_ms, series)


def _candles(trades: list[Trade], interval: int, fill: bool) -> list[Candle]:
    groups: dict[int, list[Trade]] = {}
    for trade in trades:
        groups.setdefault(trade.timestamp_ms - trade.timestamp_ms % interval, []).append(trade)
    starts = range(min(groups), max(groups) + 1, interval) if fill else groups
    candles: list[Candle] = []
    for start in starts:
        if start not in groups:
            close = candles[-1].close
            candles.append(Candle(start, close, close, close, close, 0.0, None, 0))
            continue
        group = groups[start]
        prices = [t.price for t in group]
        volume, vwap = _weighted(group)
        candles.append(Candle(start, prices[0], max(prices), min(prices), prices[-1], volume, vwap, len(group)))
    return candles


def _weighted(trades: list[Trade]) -> tuple[float, float | None]:
    volume = math.fsum(t.quantity for t in trades)
    if volume <= 0:
        return 0.0, None
    return volume, math.fsum(t.price * t.quantity for t in trades) / volume
