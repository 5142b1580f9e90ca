"""Disassembles EVM bytecode: instructions, dead code, compiler metadata."""

from __future__ import annotations

from dataclasses import dataclass

_NAMES = {
    0x00: "STOP ADD MUL SUB DIV SDIV MOD SMOD ADDMOD MULMOD EXP SIGNEXTEND",
    0x10: "LT GT SLT SGT EQ ISZERO AND OR XOR NOT BYTE SHL SHR SAR CLZ",
    0x20: "KECCAK256",
    0x30: "ADDRESS BALANCE ORIGIN CALLER CALLVALUE CALLDATALOAD CALLDATASIZE CALLDATACOPY CODESIZE CODECOPY"
    " GASPRICE EXTCODESIZE EXTCODECOPY RETURNDATASIZE RETURNDATACOPY EXTCODEHASH",
    0x40: "BLOCKHASH COINBASE TIMESTAMP NUMBER PREVRANDAO GASLIMIT CHAINID SELFBALANCE BASEFEE BLOBHASH BLOBBASEFEE",
    0x50: "POP MLOAD MSTORE MSTORE8 SLOAD SSTORE JUMP JUMPI PC MSIZE GAS JUMPDEST TLOAD TSTORE MCOPY PUSH0",
    0x60: " ".join(f"PUSH{n}" for n in range(1, 33)),
    0x80: " ".join(f"DUP{n}" for n in range(1, 17)),
    0x90: " ".join(f"SWAP{n}" for n in range(1, 17)),
    0xA0: "LOG0 LOG1 LOG2 LOG3 LOG4",
    0xF0: "CREATE CALL CALLCODE RETURN DELEGATECALL CREATE2",
    0xFA: "STATICCALL",
    0xFD: "REVERT INVALID SELFDESTRUCT",
}
OPCODES = {start + i: name for start, names in _NAMES.items() for i, name in enumerate(names.split())}
"""Every opcode up to the Osaka fork."""

TERMINATORS = frozenset({"STOP", "RETURN", "REVERT", "INVALID", "SELFDESTRUCT", "JUMP"})
"""What never falls through to the next instruction."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; ``live`` is False where no jump and no fall-through can reach it."""

    offset: int
    name: str
    data: bytes
    live: bool
    truncated: bool = False

    @property
    def value(self) -> int:
        """The number that a PUSH pushes; 0 for all others."""
        return int.from_bytes(self.data, "big")

    def __str__(self) -> str:
        return f"{self.offset:04x} {self.name}" + (f" 0x{self.data.hex()}" if self.data else "")


def disassemble(code: bytes) -> list[Instruction]:
    """Read instructions from the start, stepping over the data of each PUSH.

    A byte that is no opcode is ``UNKNOWN_xx``, which ends execution as INVALID does. Code
    after an instruction that does not fall through is dead up to the next JUMPDEST, since
    a jump can only land on one. A PUSH that the end cuts off is padded with zeros, as the
    EVM does, and marked.
    """
    instructions = []
    at, live = 0, True
    while at < len(code):
        opcode = code[at]
        name = OPCODES.get(opcode, f"UNKNOWN_{opcode:02x}")
        size = opcode - 0x5F if 0x60 <= opcode <= 0x7F else 0
        data = code[at + 1 : at + 1 + size]
        live = live or name == "JUMPDEST"
        instructions.append(Instruction(at, name, data.ljust(size, b"\0"), live, len(data) < size))
        if name in TERMINATORS or opcode not in OPCODES:
            live = False
        at += 1 + size
    return instructions


@dataclass(frozen=True, slots=True)
class Metadata:
    """The CBOR trailer that the Solidity compiler writes after the code."""

    length: int
    compiler: str | None
    ipfs: bool


def split_metadata(code: bytes) -> tuple[bytes, Metadata | None]:
    """Cut off the compiler's trailer, which is data and not code, if there is one."""
    if len(code) < 4:
        return code, None
    length = int.from_bytes(code[-2:], "big")
    start = len(code) - 2 - length
    # A CBOR map of one to four entries whose first key is a text of four or five letters.
    if not 8 <= length <= 200 or start < 0 or not 0xA1 <= code[start] <= 0xA4 or code[start + 1] not in (0x64, 0x65):
        return code, None
    trailer = code[start:-2]
    found = trailer.find(b"\x64solc\x43")
    version = trailer[found + 6 : found + 9] if found >= 0 else b""
    compiler = "solc " + ".".join(map(str, version)) if len(version) == 3 else None
    return code[:start], Metadata(length + 2, compiler, b"\x64ipfs" in trailer)
