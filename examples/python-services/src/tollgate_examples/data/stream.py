"""Processes a stream of events in order of arrival: duplicates, watermark, tumbling windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tollgate_examples.schema import Millis, ShortText, Strict


class Event(Strict):
    """One event; the id makes it unique, the key says which series it belongs to."""

    id: ShortText
    key: ShortText
    timestamp_ms: Millis
    value: Annotated[float, Field(ge=-1e15, le=1e15)]


class ProcessRequest(Strict):
    """Events in order of arrival, the window length, and how late an event may be."""

    events: Annotated[list[Event], Field(min_length=1, max_length=5000)]
    window_ms: Annotated[int, Field(ge=1, le=86_400_000)] = 60_000
    allowed_lateness_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 5_000


@dataclass(frozen=True, slots=True)
class Window:
    """One key's events from ``start_ms`` to before ``end_ms``; closed once the watermark passed its end."""

    key: str
    start_ms: int
    end_ms: int
    count: int
    sum: float
    mean: float
    min: float
    max: float
    closed: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """An event that was not counted."""

    id: str
    reason: Literal["duplicate", "late"]


@dataclass(frozen=True, slots=True)
class ProcessResponse:
    """The windows by start and key, the events dropped, and the final watermark."""

    accepted: int
    out_of_order: int
    watermark_ms: int
    dropped: list[Dropped]
    windows: list[Window]


def process(request: ProcessRequest) -> ProcessResponse:
    """Run the stream. The watermark is the highest time seen less the allowed lateness.

    An event whose window ended at or before the watermark is late: a real system has
    published that window already, so the event is dropped and said so.
    """
    seen: set[str] = set()
    values: dict[tuple[int, str], list[float]] = {}
    dropped: list[Dropped] = []
    highest = out_of_order = accepted = 0
    for event in request.events:
        if event.id in seen:
            dropped.append(Dropped(event.id, "duplicate"))
            continue
        seen.add(event.id)
        start = event.timestamp_ms - event.timestamp_ms % request.window_ms
        if start + request.window_ms <= highest - request.allowed_lateness_ms:
            dropped.append(Dropped(event.id, "late"))
            continue
        out_of_order += event.timestamp_ms < highest
        highest = max(highest, event.timestamp_ms)
        accepted += 1
        values.setdefault((start, event.key), []).append(event.value)
    watermark = max(0, highest - request.allowed_lateness_ms)
    windows = [_window(key, start, request.window_ms, values[start, key], watermark) for start, key in sorted(values)]
    return ProcessResponse(accepted, out_of_order, watermark, dropped, windows)


def _window(key: str, start: int, length: int, values: list[float], watermark: int) -> Window:
    total = math.fsum(values)
    return Window(
        key=key,
        start_ms=start,
        end_ms=start + length,
        count=len(values),
        sum=total,
        mean=total / len(values),
        min=min(values),
        max=max(values),
        closed=start + length <= watermark,
    )
