"""Looks for risky patterns in a contract's bytecode. A scan, not a proof: see each finding's text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tollgate_examples.blockchain.evm import TERMINATORS, Instruction, disassemble, split_metadata
from tollgate_examples.keccak import checksum_address, selector
from tollgate_examples.schema import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CODE = 49_152
"""Twice EIP-170's limit for deployed code: the limit of EIP-3860 for code that creates a contract."""
MAX_LISTED = 500
STIPEND = 2300
_MINIMAL_PROXY = re.compile(
    rb"^\x36\x3d\x3d\x37\x3d\x3d\x3d\x36\x3d\x73(.{20})\x5a\xf4\x3d\x82\x80\x3e\x90\x3d\x91\x60\x2b\x57\xfd\x5b\xf3",
    re.DOTALL,
)
_IMPLEMENTATION_SLOT = 0x360894A13BA1A3210667C828492DB98DCA3E2076CC3735A920A3CA505D382BBC

Severity = Literal["info", "low", "medium", "high"]
POINTS: dict[Severity, int] = {"info": 0, "low": 5, "medium": 15, "high": 35}


class AnalyzeRequest(Strict):
    """Bytecode in hex, with or without 0x."""

    bytecode: Annotated[str, Field(min_length=2, max_length=2 * MAX_CODE + 2, pattern="^(0x)?([0-9a-fA-F]{2})+$")]
    disassembly: Annotated[bool, Field(description="List the first instructions too.")] = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A pattern that was found, and at which offsets (the first 20)."""

    code: str
    severity: Severity
    message: str
    offsets: list[int]


@dataclass(frozen=True, slots=True)
class Function:
    """A selector that the code compares with; the signature if it is one of the well-known."""

    selector: str
    signature: str | None


@dataclass(frozen=True, slots=True)
class Proxy:
    """The kind of proxy this is; a minimal proxy names its implementation."""

    kind: Literal["eip1167", "eip1967"]
    implementation: str | None


@dataclass(frozen=True, slots=True)
class AnalyzeResponse:
    """What the scan saw. ``risk`` is the findings' points, at most 100."""

    size: int
    instructions: int
    dead_bytes: int
    compiler: str | None
    metadata_bytes: int
    jump_destinations: int
    opcodes: dict[str, int]
    functions: list[Function]
    proxy: Proxy | None
    risk: int
    findings: list[Finding]
    disassembly: list[str] | None


def analyze(request: AnalyzeRequest) -> AnalyzeResponse:
    """Scan the code. Dead code and compiler metadata raise no findings."""
    raw = bytes.fromhex(request.bytecode.removeprefix("0x"))
    code, metadata = split_metadata(raw)
    everything = disassemble(code)
    live = [i for i in everything if i.live]
    findings = [f for f in _findings(live) if f.offsets]
    return AnalyzeResponse(
        size=len(raw),
        instructions=len(live),
        dead_bytes=sum(1 + len(i.data) for i in everything if not i.live),
        compiler=metadata.compiler if metadata else None,
        metadata_bytes=metadata.length if metadata else 0,
        jump_destinations=sum(i.name == "JUMPDEST" for i in live),
        opcodes=dict(sorted(Counter(i.name for i in live).items())),
        functions=_functions(live),
        proxy=_proxy(raw, live),
        risk=min(100, sum(POINTS[f.severity] for f in findings)),
        findings=findings,
        disassembly=[str(i) for i in everything[:MAX_LISTED]] if request.disassembly else None,
    )


def _findings(live: list[Instruction]) -> Iterator[Finding]:
    def at(*names: str) -> list[int]:
        return [i.offset for i in live if i.name in names][:20]

    yield Finding("selfdestruct", "high", "can destroy the contract and send away its balance", at("SELFDESTRUCT"))
    yield Finding("reentrancy", "high", "writes storage after an external call that forwards gas", _reentrancy(live))
    yield Finding("delegatecall", "medium", "runs foreign code with its own storage", at("DELEGATECALL", "CALLCODE"))
    yield Finding("origin_check", "medium", "compares tx.origin, which a called contract can abuse", _origin(live))
    yield Finding("origin", "low", "reads tx.origin", at("ORIGIN"))
    yield Finding("create2", "low", "deploys at an address chosen in advance", at("CREATE2"))
    yield Finding("block_values", "low", "depends on values that a block producer can influence",
                  at("TIMESTAMP", "PREVRANDAO", "COINBASE", "BLOCKHASH"))  # fmt: skip
    unknown = [i.offset for i in live if i.name.startswith("UNKNOWN")][:20]
    yield Finding("unknown_opcode", "info", "bytes that are no opcode; data, or a newer fork", unknown)
    yield Finding("truncated_push", "info", "the code ends within the data of a PUSH",
                  [i.offset for i in live if i.truncated])  # fmt: skip


def _origin(live: list[Instruction]) -> list[int]:
    """Find ORIGIN with an EQ among the next six instructions."""
    return [
        i.offset for k, i in enumerate(live) if i.name == "ORIGIN" and any(j.name == "EQ" for j in live[k + 1 : k + 7])
    ][:20]


def _reentrancy(live: list[Instruction]) -> list[int]:
    """Find calls from which an SSTORE can be reached along known jumps.

    A jump is known if the instruction before it pushes its target; others (returns from
    internal functions) end the path, so a call may be missed. A call preceded by the
    constant 2300 among twelve instructions (``transfer``, ``send``) forwards too little
    gas to re-enter and is left out.
    """
    stores = _leads_to_store(live)
    return [
        call.offset
        for k, call in enumerate(live)
        if call.name in ("CALL", "CALLCODE", "DELEGATECALL")
        and k + 1 in stores
        and not any(i.name == "PUSH2" and i.value == STIPEND for i in live[max(0, k - 12) : k])
    ][:20]


def _leads_to_store(live: list[Instruction]) -> set[int]:
    """Return the places from which an SSTORE can be reached, walking backwards from each: linear in the code."""
    place = {i.offset: k for k, i in enumerate(live)}
    before: dict[int, list[int]] = {}
    for k, i in enumerate(live):
        if i.name not in TERMINATORS and not i.name.startswith("UNKNOWN"):
            before.setdefault(k + 1, []).append(k)
        if i.name in ("JUMP", "JUMPI") and k and live[k - 1].name.startswith("PUSH"):
            target = place.get(live[k - 1].value)
            if target is not None and live[target].name == "JUMPDEST":
                before.setdefault(target, []).append(k)
    pending = [k for k, i in enumerate(live) if i.name == "SSTORE"]
    reached: set[int] = set()
    while pending:
        k = pending.pop()
        if k not in reached:
            reached.add(k)
            pending += before.get(k, [])
    return reached


def _functions(live: list[Instruction]) -> list[Function]:
    """Find the dispatcher's comparisons: PUSH4 selector, then EQ within two instructions."""
    found: dict[str, None] = {}
    for k, i in enumerate(live):
        if i.name == "PUSH4" and any(j.name == "EQ" for j in live[k + 1 : k + 3]):
            found[i.data.hex()] = None
    return [Function("0x" + s, known_functions().get(s)) for s in sorted(found)]


def _proxy(raw: bytes, live: list[Instruction]) -> Proxy | None:
    minimal = _MINIMAL_PROXY.match(raw)
    if minimal:
        return Proxy("eip1167", checksum_address("0x" + minimal[1].hex()))
    if any(i.name == "PUSH32" and i.value == _IMPLEMENTATION_SLOT for i in live):
        return Proxy("eip1967", None)
    return None


@cache
def known_functions() -> dict[str, str]:
    """Return well-known functions by selector: ERC-20, ownership and what drainers like."""
    signatures = (
        "totalSupply()", "balanceOf(address)", "transfer(address,uint256)", "allowance(address,address)",
        "approve(address,uint256)", "transferFrom(address,address,uint256)", "name()", "symbol()",
        "decimals()", "owner()", "transferOwnership(address)", "renounceOwnership()", "mint(address,uint256)",
        "burn(uint256)", "pause()", "unpause()", "withdraw()", "withdraw(uint256)", "deposit()",
        "upgradeTo(address)", "upgradeToAndCall(address,bytes)", "setApprovalForAll(address,bool)",
        "supportsInterface(bytes4)",
    )  # fmt: skip
    return {selector(s): s for s in signatures}
