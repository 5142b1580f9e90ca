"""Events, quotes, streams and candles against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import sample
from tollgate_examples.data import candles, events, quotes, stream
from tollgate_examples.problem import Refused

EVENT = sample("/api/v1/data/validate/blockchain-event")
ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
ZERO = "0x" + "0" * 40


def check(**fields: Any) -> events.EventReport:
    return events.validate(events.BlockchainEvent.model_validate(EVENT | fields))


def test_known_event_is_decoded() -> None:
    report = check()
    assert report.valid
    assert report.event == "Transfer(address,address,uint256)"
    assert report.decoded == {
        "from": "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "to": "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "value": "1000000000000000000",
    }


def test_nft_transfer_has_its_id_in_a_topic() -> None:
    report = check(topics=[*EVENT["topics"], "0x" + "0" * 62 + "2a"], data="0x")
    assert report.decoded is not None
    assert report.decoded["token_id"] == "42"


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"transaction_hash": "0x12"}, "transaction_hash", "bad_hash"),
        ({"transaction_hash": "0x" + "٣" * 64}, "transaction_hash", "bad_hash"),
        ({"block_number": -1}, "block_number", "out_of_range"),
        ({"log_index": 2**63}, "log_index", "out_of_range"),
        ({"address": "0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}, "address", "bad_checksum"),
        ({"address": "vitalik.eth"}, "address", "bad_address"),
        ({"topics": ["0x" + "0" * 64] * 5}, "topics", "too_many"),
        ({"topics": ["0x1"]}, "topics[0]", "bad_topic"),
        ({"data": "0x123"}, "data", "bad_hex"),
        ({"data": "0x"}, "topics", "wrong_shape"),
        ({"topics": [EVENT["topics"][0], "0x" + "1" * 64, "0x" + "0" * 64]}, "topics[1]", "dirty_address"),
        ({"received_at_ms": EVENT["block_timestamp_ms"] - 60_001}, "block_timestamp_ms", "in_future"),
    ],
)
def test_faulty_event(fields: dict[str, Any], field: str, code: str) -> None:
    report = check(**fields)
    assert not report.valid
    assert [(e.field, e.code) for e in report.errors] == [(field, code)]
    assert report.decoded is None


def test_odd_but_valid_event() -> None:
    report = check(address=ZERO, topics=[], data="0x00")
    assert report.valid
    assert [w.code for w in report.warnings] == ["zero_address", "not_words"]


def test_address_in_one_case_has_no_checksum() -> None:
    for address in (ADDRESS.lower(), "0x" + ADDRESS[2:].upper()):
        assert check(address=address).address == ADDRESS


def quote(ms: int, bid: float, ask: float, **more: Any) -> dict[str, Any]:
    return {"symbol": "S", "timestamp_ms": ms, "bid": bid, "ask": ask} | more


def codes(given: list[dict[str, Any]], **settings: Any) -> list[tuple[int, str]]:
    report = quotes.validate(quotes.MarketDataRequest.model_validate({"quotes": given} | settings))
    return [(i.index, i.code) for i in report.issues]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([quote(0, 10.0, 10.1)], []),
        ([quote(0, 10.2, 10.1)], [(0, "crossed")]),
        ([quote(0, 0.0, 10.1)], [(0, "not_positive")]),
        ([quote(0, 10.0, 10.1, last=-1.0)], [(0, "not_positive")]),
        ([quote(0, 10.0, 10.1, volume=-1.0)], [(0, "negative_volume")]),
        ([quote(0, 10.0, 11.0)], [(0, "wide_spread")]),
        ([quote(5, 10.0, 10.1), quote(4, 10.0, 10.1)], [(1, "time_reversed")]),
        ([quote(5, 10.0, 10.1), quote(5, 10.0, 10.1)], [(1, "duplicate")]),
        ([quote(0, 10.0, 10.1), quote(60_000, 10.0, 10.1)], []),
        ([quote(0, 10.0, 10.1), quote(60_001, 10.0, 10.1)], [(1, "gap")]),
        # Symbols are series of their own: no order between them.
        ([quote(5, 10.0, 10.1), quote(4, 10.0, 10.1, symbol="T")], []),
    ],
)
def test_quote_issues(given: list[dict[str, Any]], found: list[tuple[int, str]]) -> None:
    assert codes(given) == found


def test_outliers_by_hand() -> None:
    # Median 3, deviations 2 1 0 1 97: MAD 1, so 100 is 97 / 1.4826 deviations off.
    ((index, distance),) = quotes.outliers([1.0, 2.0, 3.0, 4.0, 100.0], 8.0)
    assert (index, distance) == (4, pytest.approx(65.4256, abs=1e-3))
    assert quotes.outliers([1.0, 1.0, 1.0, 1.0, 100.0], 8.0) == []
    assert quotes.outliers([1.0, 2.0, 100.0, 3.0], 8.0) == []


def test_market_summary() -> None:
    request = {"quotes": [quote(0, 99.0, 101.0), quote(1, 199.0, 201.0), quote(2, 5.0, 1.0)]}
    report = quotes.validate(quotes.MarketDataRequest.model_validate(request))
    assert not report.valid
    (summary,) = report.symbols
    assert (summary.quotes, summary.median_mid) == (3, 150.0)
    assert summary.median_spread_bps == pytest.approx((200.0 + 100.0) / 2)


def test_warnings_alone_leave_it_valid() -> None:
    request = quotes.MarketDataRequest.model_validate({"quotes": [quote(0, 10.0, 11.0)]})
    assert quotes.validate(request).valid


def run(given: list[tuple[str, int, float]], window: int, lateness: int) -> stream.ProcessResponse:
    listed = [{"id": i, "key": "k", "timestamp_ms": t, "value": v} for i, t, v in given]
    body = {"events": listed, "window_ms": window, "allowed_lateness_ms": lateness}
    return stream.process(stream.ProcessRequest.model_validate(body))


def test_windows_by_hand() -> None:
    done = run([("a", 0, 1.0), ("b", 9, 2.0), ("c", 10, 4.0), ("d", 25, 8.0)], 10, 0)
    assert [(w.start_ms, w.end_ms, w.count, w.sum, w.mean, w.min, w.max, w.closed) for w in done.windows] == [
        (0, 10, 2, 3.0, 1.5, 1.0, 2.0, True),
        (10, 20, 1, 4.0, 4.0, 4.0, 4.0, True),
        (20, 30, 1, 8.0, 8.0, 8.0, 8.0, False),
    ]
    assert (done.accepted, done.out_of_order, done.watermark_ms) == (4, 0, 25)


def test_lateness_is_by_window() -> None:
    # At watermark 15 the window 0..10 is out, the window 10..20 is not.
    done = run([("a", 20, 1.0), ("b", 9, 1.0), ("c", 11, 1.0)], 10, 5)
    assert [(d.id, d.reason) for d in done.dropped] == [("b", "late")]
    assert (done.accepted, done.out_of_order, done.watermark_ms) == (2, 1, 15)


def test_duplicates_count_once_even_if_late() -> None:
    done = run([("a", 0, 1.0), ("a", 0, 1.0), ("b", 100, 1.0), ("c", 0, 1.0), ("c", 0, 1.0)], 10, 0)
    assert [(d.id, d.reason) for d in done.dropped] == [("a", "duplicate"), ("c", "late"), ("c", "duplicate")]


def test_sums_do_not_lose_small_values() -> None:
    assert run([("a", 0, 1e15), ("b", 0, 0.5), ("c", 0, -1e15)], 10, 0).windows[0].sum == 0.5


def fold(trades: list[tuple[str, int, float, float]], interval: int, fill: bool = False) -> list[candles.Series]:
    listed = [{"symbol": s, "timestamp_ms": t, "price": p, "quantity": q} for s, t, p, q in trades]
    body = {"trades": listed, "interval_ms": interval, "fill_gaps": fill}
    return candles.aggregate(candles.AggregateRequest.model_validate(body)).series


def test_candle_by_hand() -> None:
    (series,) = fold([("S", 5, 12.0, 1.0), ("S", 0, 10.0, 2.0), ("S", 9, 9.0, 1.0), ("S", 7, 13.0, 0.0)], 10)
    assert series.candles == [candles.Candle(0, 10.0, 13.0, 9.0, 9.0, 4.0, (20 + 12 + 9) / 4, 4)]
    assert (series.volume, series.vwap) == (4.0, 10.25)


def test_candles_start_on_the_interval_and_gaps_stay_open_or_are_filled() -> None:
    trades = [("S", 12, 10.0, 1.0), ("S", 45, 20.0, 3.0)]
    (series,) = fold(trades, 10)
    assert [c.start_ms for c in series.candles] == [10, 40]
    (series,) = fold(trades, 10, fill=True)
    assert [(c.start_ms, c.close, c.volume, c.vwap) for c in series.candles] == [
        (10, 10.0, 1.0, 10.0),
        (20, 10.0, 0.0, None),
        (30, 10.0, 0.0, None),
        (40, 20.0, 3.0, 20.0),
    ]
    assert series.vwap == 17.5


def test_series_by_symbol_and_nothing_traded() -> None:
    first, second = fold([("Z", 0, 1.0, 1.0), ("A", 0, 5.0, 0.0)], 10)
    assert (first.symbol, first.volume, first.vwap) == ("A", 0.0, None)
    assert second.symbol == "Z"


def test_filling_is_bounded() -> None:
    with pytest.raises(Refused, match="5000 candles"):
        fold([("S", 0, 1.0, 1.0), ("S", 10**9, 1.0, 1.0)], 1, fill=True)
