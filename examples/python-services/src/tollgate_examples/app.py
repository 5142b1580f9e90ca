"""Puts one service together: routes, health, errors, edge, tracing, fault switch."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.middleware import Middleware

from tollgate_examples import __version__, problem
from tollgate_examples.edge import Edge
from tollgate_examples.faults import FaultInjector, FaultSwitch
from tollgate_examples.faults import build_router as fault_router

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from tollgate_examples.services import Service

MAX_BODY = 1 << 20
"""The largest request body in bytes; above it 413."""


class Health(BaseModel):
    """Liveness of one process."""

    status: str
    service: str
    version: str
    uptime_seconds: Annotated[float, Field(ge=0)]


class FieldFault(BaseModel):
    """One field that is not valid, such as ``body.trades[3].price``."""

    field: str
    message: str
    type: str


class Problem(BaseModel):
    """RFC 9457; ``code`` is stable, ``detail`` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    errors: list[FieldFault] | None = None


def build(service: Service, *, faults: bool = False, clock: Callable[[], float] = time.monotonic) -> FastAPI:
    """Build the ASGI application of a service, with state of its own.

    Tracing is FastAPI's own: where ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set at start it
    exports one server span a request, a child of the caller's ``traceparent``; where
    it is not, no exporter is even imported.
    """
    started = clock()
    log = logging.getLogger(f"tollgate_examples.{service.name}")
    middleware = [Middleware(Edge, service=service.name, log=log)]
    switch = FaultSwitch() if faults else None
    if switch is not None:
        middleware.append(Middleware(FaultInjector, switch=switch))

    app = _Application(
        title=f"Tollgate example: {service.name}",
        summary=service.summary,
        description="An example service. Its results are toys and no base for decisions.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        middleware=middleware,
        max_body_size=MAX_BODY,
        telemetry={
            "auto_configure": True,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": _untraced,
        },
        responses={422: {"model": Problem, "description": "The request is not valid"}},
    )
    problem.install(app)

    @app.get("/health", tags=["health"])
    async def health() -> Health:
        """Say that the process serves; it depends on nothing else."""
        return Health(
            status="ok",
            service=service.name,
            version=__version__,
            uptime_seconds=round(clock() - started, 3),
        )

    app.include_router(service.router(), prefix=service.prefix, tags=[service.name])
    if switch is not None:
        app.include_router(fault_router(switch))
    return app


class _Application(FastAPI):
    """FastAPI, with errors documented in the form they really have."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, which is also served at ``/openapi.json``."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                for status, answer in operation["responses"].items():
                    if status == "422":
                        answer["content"] = {problem.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        return document


def openapi(service: Service) -> dict[str, Any]:
    """Return the OpenAPI document of a service."""
    return build(service).openapi()


def _untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope.get("path") in ("/health", "/fault")
