"""Checks a series of quotes: crossed books, time going back, duplicates, gaps, outliers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Annotated

from pydantic import Field

from tollgate_examples.schema import Millis, ShortText, Strict

Number = Annotated[float, Field(ge=-1e12, le=1e12)]


class Quote(Strict):
    """A quote as received: its prices may be nonsense, that is what is checked."""

    symbol: ShortText
    timestamp_ms: Millis
    bid: Number
    ask: Number
    last: Number | None = None
    volume: Annotated[float, Field(ge=-1e15, le=1e15)] = 0.0


class MarketDataRequest(Strict):
    """Quotes in the order received, with what counts as odd."""

    quotes: Annotated[list[Quote], Field(min_length=1, max_length=2000)]
    max_spread_bps: Annotated[float, Field(gt=0, le=10_000)] = 500.0
    max_gap_ms: Annotated[int, Field(gt=0, le=86_400_000)] = 60_000
    outlier_deviations: Annotated[float, Field(ge=2, le=100)] = 8.0


@dataclass(frozen=True, slots=True)
class Issue:
    """What is wrong with one quote, by its place in the request."""

    index: int
    symbol: str
    code: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True)
class SymbolSummary:
    """The quotes of one symbol; the mid price is of quotes without errors, null if there are none."""

    symbol: str
    quotes: int
    median_mid: float | None
    median_spread_bps: float | None


@dataclass(frozen=True, slots=True)
class MarketDataReport:
    """The verdict: valid where no issue is an error."""

    valid: bool
    checked: int
    issues: list[Issue]
    symbols: list[SymbolSummary]


def validate(request: MarketDataRequest) -> MarketDataReport:
    """Check every quote by itself, then each symbol's series."""
    issues: list[Issue] = []
    series: dict[str, list[tuple[int, Quote]]] = {}
    bad: set[int] = set()
    for i, quote in enumerate(request.quotes):
        series.setdefault(quote.symbol, []).append((i, quote))
        for code, message in _faults(quote):
            issues.append(Issue(i, quote.symbol, code, "error", message))
            bad.add(i)
    summaries = []
    for symbol, quotes in series.items():
        issues += _timing(symbol, quotes, request.max_gap_ms)
        sound = [(i, q) for i, q in quotes if i not in bad]
        mids = [(q.bid + q.ask) / 2 for _, q in sound]
        spreads = [(q.ask - q.bid) / mid * 10_000 for (_, q), mid in zip(sound, mids, strict=True)]
        issues += [
            Issue(i, symbol, "wide_spread", "warning", f"{spread:.1f} basis points")
            for (i, _), spread in zip(sound, spreads, strict=True)
            if spread > request.max_spread_bps
        ]
        issues += [
            Issue(sound[k][0], symbol, "outlier", "warning", f"mid {mids[k]:g} is {far:.1f} deviations off")
            for k, far in outliers(mids, request.outlier_deviations)
        ]
        summaries.append(
            SymbolSummary(symbol, len(quotes), median(mids) if mids else None, median(spreads) if spreads else None)
        )
    issues.sort(key=lambda issue: (issue.index, issue.code))
    valid = all(issue.severity != "error" for issue in issues)
    return MarketDataReport(valid, len(request.quotes), issues, summaries)


def outliers(values: list[float], limit: float) -> list[tuple[int, float]]:
    """Return the places and distances beyond ``limit`` robust deviations (1.4826 MAD) from the median.

    Five values at least; a series that does not vary has none.
    """
    if len(values) < 5:
        return []
    middle = median(values)
    deviation = 1.4826 * median(abs(v - middle) for v in values)
    if deviation <= 0:
        return []
    far = [(i, abs(v - middle) / deviation) for i, v in enumerate(values)]
    return [(i, d) for i, d in far if d > limit]


def _faults(quote: Quote) -> list[tuple[str, str]]:
    faults = []
    if quote.bid <= 0 or quote.ask <= 0 or (quote.last is not None and quote.last <= 0):
        faults.append(("not_positive", "prices are above zero"))
    if quote.bid > quote.ask:
        faults.append(("crossed", f"bid {quote.bid:g} is above ask {quote.ask:g}"))
    if quote.volume < 0:
        faults.append(("negative_volume", "volume is not below zero"))
    return faults


def _timing(symbol: str, quotes: list[tuple[int, Quote]], max_gap_ms: int) -> list[Issue]:
    issues = []
    for (_, before), (i, quote) in pairwise(quotes):
        step = quote.timestamp_ms - before.timestamp_ms
        if step < 0:
            issues.append(Issue(i, symbol, "time_reversed", "error", f"{-step} ms before the previous quote"))
        elif quote == before:
            issues.append(Issue(i, symbol, "duplicate", "warning", "equal to the previous quote"))
        elif step > max_gap_ms:
            issues.append(Issue(i, symbol, "gap", "warning", f"{step} ms after the previous quote"))
    return issues
