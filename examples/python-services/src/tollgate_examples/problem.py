"""Errors as RFC 9457 ``application/problem+json``, in the form that Tollgate itself answers."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

MEDIA_TYPE = "application/problem+json"
MAX_REPORTED = 20
"""How many validation errors one answer lists; a body of a thousand faults gets no answer of a megabyte."""


class Refused(Exception):
    """A request that is well-formed but cannot be computed; becomes a 422 with this code and detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def response(
    status: int,
    code: str,
    detail: str,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> Response:
    """Build a problem answer; further members are added to the document as given."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if request_id:
        body["request_id"] = request_id
    # ASCII only: a lone surrogate from the request's own keys must not break the answer.
    content = json.dumps(body | members, ensure_ascii=True, allow_nan=False)
    return Response(content, status, headers, MEDIA_TYPE)


def request_id(request: Request) -> str | None:
    """Return the id that the edge gave to this request."""
    return getattr(request.state, "request_id", None)


def install(app: FastAPI) -> None:
    """Answer every error of the framework and of ours as a problem."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, exc: RequestValidationError) -> Response:
        # The input itself stays out of the answer: it may be large, private, or not even JSON (NaN).
        faults = [
            {"field": _field(e["loc"]), "message": e["msg"][:200], "type": e["type"]}
            for e in exc.errors()[:MAX_REPORTED]
        ]
        count = len(exc.errors())
        detail = f"{count} field{'s' if count != 1 else ''} of the request {'are' if count != 1 else 'is'} not valid"
        return response(422, "validation_failed", detail, request_id(request), errors=faults)

    @app.exception_handler(Refused)
    async def _refused(request: Request, exc: Refused) -> Response:
        return response(422, exc.code, exc.detail, request_id(request))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, exc: HTTPException) -> Response:
        code = HTTPStatus(exc.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
        headers = dict(exc.headers or {})
        return response(exc.status_code, code, str(exc.detail), request_id(request), headers)


def _field(loc: tuple[int | str, ...]) -> str:
    """Write a location as ``body.trades[3].price``, keys of the client's cut to a sensible length."""
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += ("." if out else "") + str(part)[:64]
    return out
