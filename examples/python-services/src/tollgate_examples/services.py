"""Which services there are, and where each one lives."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import APIRouter


@dataclass(frozen=True, slots=True)
class Service:
    """One example service: its name, the port it has by default, and what it does."""

    name: str
    port: int
    summary: str

    @property
    def prefix(self) -> str:
        """The path that all routes of the service but ``/health`` start with."""
        return f"/api/v1/{self.name}"

    def router(self) -> APIRouter:
        """Import this service only, and build its routes with fresh state."""
        module = importlib.import_module(f"tollgate_examples.{self.name}.routes")
        router: APIRouter = module.build_router()
        return router


SERVICES = {
    s.name: s
    for s in (
        Service("ml", 9201, "Next-hour price estimates from a ridge regression on made-up data"),
        Service("nlp", 9202, "Language detection and phrase-table translation"),
        Service("fraud", 9203, "Rule-weighted risk score of a payment"),
        Service("data", 9204, "Validation and aggregation of blockchain events and market data"),
        Service("blockchain", 9205, "Bytecode, sandwich, wallet and flow analysis"),
    )
}
