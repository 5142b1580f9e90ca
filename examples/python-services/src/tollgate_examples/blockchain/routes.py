"""HTTP routes of the blockchain service."""

from __future__ import annotations

from fastapi import APIRouter

from tollgate_examples.blockchain import contracts, flows, mev, wallets


def build_router() -> APIRouter:
    """Bind the routes; the service keeps no state."""
    router = APIRouter()

    @router.post("/contracts/analyze", name="analyze_contract")
    def analyze(request: contracts.AnalyzeRequest) -> contracts.AnalyzeResponse:
        """Disassemble bytecode and look for risky patterns."""
        return contracts.analyze(request)

    @router.post("/mev/detect", name="detect_mev")
    def detect(request: mev.DetectRequest) -> mev.DetectResponse:
        """Find sandwich attacks among the swaps of a block."""
        return mev.detect(request)

    @router.post("/wallets/cluster", name="cluster_wallets")
    def cluster(request: wallets.ClusterRequest) -> wallets.ClusterResponse:
        """Cluster addresses by common inputs."""
        return wallets.cluster(request)

    @router.post("/transactions/graph", name="transaction_graph")
    def transaction_graph(request: flows.GraphRequest) -> flows.GraphResponse:
        """Build the graph of transfers with its cycles."""
        return flows.graph(request)

    return router
