"""Checks one EVM log event: form, checksums, and, for known events, what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated

from pydantic import Field

from tollgate_examples.keccak import checksum_address, keccak256
from tollgate_examples.schema import Millis, ShortText, Strict

MAX_DATA_DIGITS = 64 * 1024
_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_BYTES = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_SIGNATURES = ("Transfer(address,address,uint256)", "Approval(address,address,uint256)")
FUTURE_SLACK_MS = 60_000

Text = Annotated[str, Field(max_length=256)]


class BlockchainEvent(Strict):
    """An event log as an indexer delivers it. Hex fields are free text here: judging them is the point."""

    chain: ShortText
    block_number: int
    block_timestamp_ms: Millis
    received_at_ms: Annotated[Millis | None, Field(description="When the indexer got it, to judge the clock.")] = None
    transaction_hash: Text
    log_index: int
    address: Text
    topics: Annotated[list[Text], Field(max_length=16)]
    data: Annotated[str, Field(max_length=MAX_DATA_DIGITS)] = "0x"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or odd, with a field."""

    field: str
    code: str
    message: str


@dataclass(slots=True)
class EventReport:
    """The verdict: valid where ``errors`` is empty; ``decoded`` for a known event without errors."""

    valid: bool = True
    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    address: str | None = None
    event: str | None = None
    decoded: dict[str, str] | None = None

    def error(self, name: str, code: str, message: str) -> None:
        """Add an error."""
        self.valid = False
        self.errors.append(Finding(name, code, message))

    def warn(self, name: str, code: str, message: str) -> None:
        """Add a warning."""
        self.warnings.append(Finding(name, code, message))


def validate(event: BlockchainEvent) -> EventReport:
    """Check every field, then decode the event if its first topic is known."""
    report = EventReport()
    _numbers(event, report)
    if not _HASH.fullmatch(event.transaction_hash):
        report.error("transaction_hash", "bad_hash", "must be 0x and 64 hex digits")
    _address(event, report)
    if len(event.topics) > 4:
        report.error("topics", "too_many", f"an event has at most 4 topics, this one {len(event.topics)}")
    for i, topic in enumerate(event.topics):
        if not _HASH.fullmatch(topic):
            report.error(f"topics[{i}]", "bad_topic", "must be 0x and 64 hex digits")
    if not _BYTES.fullmatch(event.data):
        report.error("data", "bad_hex", "must be 0x and an even number of hex digits")
    elif (len(event.data) - 2) % 64:
        report.warn("data", "not_words", "ABI data is a multiple of 32 bytes")
    if report.valid:
        _decode(event, report)
    return report


def _numbers(event: BlockchainEvent, report: EventReport) -> None:
    for name in ("block_number", "log_index"):
        value = getattr(event, name)
        if not 0 <= value < 2**63:
            report.error(name, "out_of_range", "must be from 0 to 2**63 - 1")
    if event.received_at_ms is not None and event.block_timestamp_ms > event.received_at_ms + FUTURE_SLACK_MS:
        report.error("block_timestamp_ms", "in_future", "the block is over a minute newer than its receipt")


def _address(event: BlockchainEvent, report: EventReport) -> None:
    if not _ADDRESS.fullmatch(event.address):
        report.error("address", "bad_address", "must be 0x and 40 hex digits")
        return
    report.address = checksum_address(event.address)
    digits = event.address[2:]
    if digits not in (digits.lower(), digits.upper()) and event.address != report.address:
        report.error("address", "bad_checksum", f"EIP-55 wants {report.address}")
    elif not digits.strip("0"):
        report.warn("address", "zero_address", "no contract lives at the zero address")


def _decode(event: BlockchainEvent, report: EventReport) -> None:
    if not event.topics:
        return
    report.event = known_events().get(event.topics[0].lower())
    if report.event is None:
        return
    name = report.event.split("(")[0]
    first, second = ("from", "to") if name == "Transfer" else ("owner", "spender")
    if len(event.topics) == 4 and event.data == "0x":  # ERC-721: the token id is a topic
        last, word = "token_id", event.topics[3]
    elif len(event.topics) == 3 and len(event.data) == 66:  # ERC-20: the amount is data
        last, word = "value", event.data
    else:
        report.error("topics", "wrong_shape", f"{name} has 3 topics and one word, or 4 topics and no data")
        return
    people = {}
    for i, role in ((1, first), (2, second)):
        if event.topics[i][2:26].strip("0"):
            report.error(f"topics[{i}]", "dirty_address", "the first 12 bytes of an address topic are zero")
            return
        people[role] = checksum_address("0x" + event.topics[i][26:])
    report.decoded = people | {last: str(int(word, 16))}


@cache
def known_events() -> dict[str, str]:
    """Return the events that can be decoded: first topic to signature."""
    return {"0x" + keccak256(s.encode()).hex(): s for s in _SIGNATURES}
