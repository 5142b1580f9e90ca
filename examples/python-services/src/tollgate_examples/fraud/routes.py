"""HTTP route of the fraud service: ``/assess``."""

from __future__ import annotations

from fastapi import APIRouter

from tollgate_examples.fraud.rules import Assessment, AssessRequest, assess


def build_router() -> APIRouter:
    """Bind the route; the service keeps no state."""
    router = APIRouter()

    @router.post("/assess", name="assess")
    async def assess_route(request: AssessRequest) -> Assessment:
        """Score a payment from 0 to 100 and say why."""
        return assess(request)

    return router
