"""What every request passes first: its id, its trace, its headers back, its line in the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders

from tollgate_examples import problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_PROPAGATOR = TraceContextTextMapPropagator()
CLIENT_CLOSED = 499
"""Logged (never sent) where the client went away before there was a status."""


class Edge:
    """ASGI middleware around a whole service.

    Takes ``x-request-id`` from the request (1 to 128 visible ASCII characters, else a
    new one is made) and returns it with ``x-served-by``; turns an exception into a 500
    problem; writes one access-log line a request, without query or body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        log: logging.Logger,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._service = service
        self._log = log
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (or pass on a lifespan message)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = self._clock()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        status, size = 0, 0

        async def tagged_send(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                out["x-served-by"] = self._service
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, tagged_send)
        except Exception:
            self._log.exception("request failed", extra={"fields": {"request_id": request_id}})
            if not status:
                answer = problem.response(500, "internal_error", "the service failed", request_id)
                await answer(scope, receive, tagged_send)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"][:256],
                "status": status or CLIENT_CLOSED,
                "bytes": size,
                "duration_ms": round((self._clock() - started) * 1000, 3),
                "request_id": request_id,
            }
            self._record(fields, headers, quiet=scope["path"] == "/health" and status < 400)

    def _record(self, fields: dict[str, Any], headers: Headers, *, quiet: bool) -> None:
        level = logging.DEBUG if quiet else logging.INFO
        if not self._log.isEnabledFor(level):
            return
        context = _span_context(headers)
        if context.is_valid:
            fields["trace_id"] = trace.format_trace_id(context.trace_id)
            fields["span_id"] = trace.format_span_id(context.span_id)
        self._log.log(level, "request", extra={"fields": fields})


def _span_context(headers: Headers) -> trace.SpanContext:
    """Return our own span where tracing is on, else the caller's from ``traceparent``."""
    own = trace.get_current_span().get_span_context()
    if own.is_valid:
        return own
    return trace.get_current_span(_PROPAGATOR.extract(dict(headers))).get_span_context()
