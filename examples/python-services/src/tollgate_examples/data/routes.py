"""HTTP routes of the data service: two validators, the stream processor, the aggregator."""

from __future__ import annotations

from fastapi import APIRouter

from tollgate_examples.data import candles, events, quotes, stream


def build_router() -> APIRouter:
    """Bind the routes; the service keeps no state."""
    router = APIRouter()

    @router.post("/validate/blockchain-event", name="validate_blockchain_event")
    def validate_event(event: events.BlockchainEvent) -> events.EventReport:
        """Check an event log and decode it where it is known. A faulty event is a 200 with its errors."""
        return events.validate(event)

    @router.post("/validate/market-data", name="validate_market_data")
    def validate_quotes(request: quotes.MarketDataRequest) -> quotes.MarketDataReport:
        """Check a series of quotes. Faulty quotes are a 200 with their issues."""
        return quotes.validate(request)

    @router.post("/process", name="process")
    def process(request: stream.ProcessRequest) -> stream.ProcessResponse:
        """Run events through duplicates, watermark and windows, in order of arrival."""
        return stream.process(request)

    @router.post("/aggregate", name="aggregate")
    def aggregate(request: candles.AggregateRequest) -> candles.AggregateResponse:
        """Turn trades into candles with VWAP."""
        return candles.aggregate(request)

    return router
