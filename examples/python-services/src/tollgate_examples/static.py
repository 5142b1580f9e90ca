"""Answers that are the same for everybody as long as the process lives, so that caches may keep them (RFC 9111)."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import Response

CACHE_CONTROL = "public, max-age=300, stale-while-revalidate=60, stale-if-error=86400"
"""Five minutes, since a deployment may change the answer; old is better than none for a day."""

HEADERS: dict[str, Any] = {
    "Cache-Control": {"schema": {"type": "string"}, "description": "How long the answer may be kept."},
    "ETag": {"schema": {"type": "string"}, "description": "Changes with the answer; send it as If-None-Match."},
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS},
    304: {"headers": HEADERS, "description": "The client has this answer already"},
}
"""What a route that answers so documents."""


class Static:
    """One JSON answer with its validator."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    def answer(self, if_none_match: str | None) -> Response:
        """Answer a GET with its If-None-Match: 304 without a body where the client has this answer (RFC 9110)."""
        headers = {"Cache-Control": CACHE_CONTROL, "ETag": self.etag}
        known = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
        if "*" in known or self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self._body, media_type="application/json", headers=headers)
