"""The fault switch: makes a service misbehave on purpose, for demos and tests.

It exists only where the process was started with ``--faults``; otherwise ``/fault``
is not there. Whoever reaches the port can then break the service, so it is never
for anything but a machine of one's own.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter
from pydantic import Field

from tollgate_examples import problem
from tollgate_examples.schema import Strict

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/fault"
GARBAGE = b'\x00\xff{"price": \xc3\x28 <html>' * 8
"""Neither JSON nor UTF-8, sent as ``application/json`` with status 200."""


class Fault(Strict):
    """What goes wrong. Applied in this order: delay, hang, error, garbage, close."""

    delay_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    error_rate: Annotated[float, Field(ge=0, le=1, description="Share of requests answered with `status`.")] = 0.0
    status: Annotated[int, Field(ge=400, le=599)] = 500
    hang: Annotated[bool, Field(description="Never answer; ends when the client goes away.")] = False
    garbage: Annotated[bool, Field(description="Answer 200 with a body that is no JSON.")] = False
    close_mid_body: Annotated[bool, Field(description="Send half of the answer's body, then close.")] = False
    paths: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256, pattern="^/")]] | None,
        Field(min_length=1, max_length=20, description="Path prefixes affected; all if absent."),
    ] = None
    health: Annotated[bool, Field(description="Affect `/health` too.")] = False
    requests: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="Affect only that many requests, then clear.")
    ] = None


class FaultState(Strict):
    """The fault in force (null: none) and how many requests met one since the start."""

    fault: Fault | None
    affected: int


class FaultSwitch:
    """Holds the fault in force. Used from the event loop only, so it needs no lock."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._fault: Fault | None = None
        self._left: int | None = None
        self._affected = 0

    def set(self, fault: Fault | None) -> FaultState:
        """Replace the fault in force; None ends it."""
        self._fault = fault
        self._left = fault.requests if fault else None
        return self.state()

    def state(self) -> FaultState:
        """Return what is in force now."""
        return FaultState(fault=self._fault, affected=self._affected)

    def take(self, path: str) -> Fault | None:
        """Return the fault that this request meets, counting it, or None."""
        fault = self._fault
        if fault is None or path == PATH or (path == "/health" and not fault.health):
            return None
        if fault.paths is not None and path != "/health" and not path.startswith(tuple(fault.paths)):
            return None
        self._affected += 1
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._fault = None
        return fault

    def fails(self, fault: Fault) -> bool:
        """Decide by the error rate whether this request is answered with an error."""
        return fault.error_rate > 0 and self._draw() < fault.error_rate


class FaultInjector:
    """ASGI middleware that lets each request meet the fault in force."""

    def __init__(self, app: ASGIApp, *, switch: FaultSwitch) -> None:
        self._app = app
        self._switch = switch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (or pass on a lifespan message)."""
        fault = self._switch.take(scope["path"]) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault.delay_ms:
            await asyncio.sleep(fault.delay_ms / 1000)
        if fault.hang:
            while (await receive())["type"] != "http.disconnect":
                pass
        elif self._switch.fails(fault):
            request_id = scope["state"]["request_id"]
            answer = problem.response(fault.status, "injected_fault", "this fault was asked for", request_id)
            await answer(scope, receive, send)
        elif fault.garbage:
            length = str(len(GARBAGE)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": GARBAGE})
        elif fault.close_mid_body:
            await self._app(scope, receive, _half(send))
        else:
            await self._app(scope, receive, send)


def _half(send: Send) -> Send:
    """Pass on the head and half of the first piece of body. The server closes what stays incomplete."""
    cut = False

    async def half_send(message: Message) -> None:
        nonlocal cut
        if message["type"] == "http.response.start":
            await send(message)
        elif not cut:
            cut = True
            body = message.get("body", b"")
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})

    return half_send


def build_router(switch: FaultSwitch) -> APIRouter:
    """Build ``GET``, ``POST`` and ``DELETE /fault``."""
    router = APIRouter(tags=["fault switch"])

    @router.get(PATH)
    async def show() -> FaultState:
        return switch.state()

    @router.post(PATH)
    async def inject(fault: Fault) -> FaultState:
        return switch.set(fault)

    @router.delete(PATH)
    async def clear() -> FaultState:
        return switch.set(None)

    return router
