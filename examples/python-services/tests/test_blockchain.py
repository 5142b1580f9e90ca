"""Keccak, bytecode, sandwiches, wallets, flows."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from conftest import sample
from tollgate_examples.blockchain import contracts, evm, flows, mev, wallets
from tollgate_examples.keccak import checksum_address, keccak256, selector


@pytest.mark.parametrize("length", [0, 1, 7, 8, 135, 136, 137, 271, 272, 500])
def test_keccak_with_the_other_padding_is_sha3(length: int) -> None:
    data = bytes(i % 251 for i in range(length))
    assert keccak256(data, padding=0x06) == hashlib.sha3_256(data).digest()


def test_keccak_known_values() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    topic = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    assert keccak256(b"Transfer(address,address,uint256)").hex() == topic
    assert selector("transfer(address,uint256)") == "a9059cbb"


# The examples of EIP-55 itself.
@pytest.mark.parametrize(
    "address",
    [
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0xde709f2102306220921060314715629080e2fb77",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_checksum_addresses(address: str) -> None:
    assert checksum_address(address.lower()) == address


def test_disassembly_steps_over_push_data() -> None:
    # PUSH2 ff5b, STOP: the ff and 5b are data, neither SELFDESTRUCT nor JUMPDEST.
    listed = evm.disassemble(bytes.fromhex("61ff5b00"))
    assert [str(i) for i in listed] == ["0000 PUSH2 0xff5b", "0003 STOP"]


def test_cut_off_push_is_padded() -> None:
    (push,) = evm.disassemble(bytes.fromhex("63aabb"))
    assert (push.name, push.data.hex(), push.truncated) == ("PUSH4", "aabb0000", True)


def test_dead_code_ends_at_a_jumpdest() -> None:
    # STOP, SELFDESTRUCT (dead), JUMPDEST, ORIGIN.
    assert [(i.name, i.live) for i in evm.disassemble(bytes.fromhex("00ff5b32"))] == [
        ("STOP", True),
        ("SELFDESTRUCT", False),
        ("JUMPDEST", True),
        ("ORIGIN", True),
    ]


def test_opcode_table() -> None:
    assert len(evm.OPCODES) == 150
    for opcode, name in {0x0B: "SIGNEXTEND", 0x1E: "CLZ", 0x3F: "EXTCODEHASH", 0x4A: "BLOBBASEFEE", 0x5F: "PUSH0",
                         0x7F: "PUSH32", 0x8F: "DUP16", 0x9F: "SWAP16", 0xA4: "LOG4", 0xF5: "CREATE2",
                         0xFA: "STATICCALL", 0xFD: "REVERT", 0xFF: "SELFDESTRUCT"}.items():  # fmt: skip
        assert evm.OPCODES[opcode] == name


def scan(code: str) -> contracts.AnalyzeResponse:
    return contracts.analyze(contracts.AnalyzeRequest(bytecode=code))


def found(code: str) -> dict[str, list[int]]:
    return {f.code: f.offsets for f in scan(code).findings}


CALL = "6000" * 5 + "33" + "5a" + "f1"  # zeros, CALLER, GAS, CALL at 12


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("00", {}),
        ("33ff", {"selfdestruct": [1]}),
        ("00ff", {}),
        ("60ff", {}),
        ("f4", {"delegatecall": [0]}),
        ("f2", {"delegatecall": [0]}),
        ("32", {"origin": [0]}),
        ("32331460005700", {"origin": [0], "origin_check": [0]}),
        ("f5", {"create2": [0]}),
        ("4244", {"block_values": [0, 1]}),
        ("0c", {"unknown_opcode": [0]}),
        ("61aa", {"truncated_push": [0]}),
        (CALL + "55", {"reentrancy": [12]}),
        ("55" + CALL + "00", {}),
        # The store stands before the call, but a jump leads back to it: PUSH1 0 JUMP.
        ("5b55" + CALL + "600056", {"reentrancy": [14]}),
        # The same with a jump into the data of a PUSH, where no JUMPDEST is.
        ("605b55" + CALL + "600156", {}),
        # 2300 gas cannot re-enter: PUSH2 08fc instead of GAS.
        ("6000" * 5 + "33" + "6108fc" + "f1" + "55", {}),
        # The call is the last thing that this branch does.
        (CALL + "00" + "5b55", {}),
        ("55", {}),
    ],
)
def test_findings(code: str, wanted: dict[str, list[int]]) -> None:
    assert found(code) == wanted


def test_risk_is_the_sum_of_the_points() -> None:
    assert scan("32f433ff").risk == 5 + 15 + 35
    assert scan("00").risk == 0


def test_sample_contract() -> None:
    answer = contracts.analyze(contracts.AnalyzeRequest(**sample("/api/v1/blockchain/contracts/analyze")))
    assert answer.functions == [contracts.Function("0x3ccfd60b", "withdraw()")]
    assert (answer.size, answer.metadata_bytes, answer.dead_bytes) == (95, 53, 1)
    assert answer.compiler == "solc 0.8.25"
    assert [f.code for f in answer.findings] == ["reentrancy"]
    assert answer.disassembly is not None
    assert answer.disassembly[-1] == "0029 INVALID"


def test_metadata_is_not_code() -> None:
    # Without the cut the ab bytes would be unknown opcodes.
    code = sample("/api/v1/blockchain/contracts/analyze")["bytecode"]
    assert "unknown_opcode" not in found(code)
    assert evm.split_metadata(b"\x00\x01\x02\xff") == (b"\x00\x01\x02\xff", None)
    assert evm.split_metadata(b"\x00") == (b"\x00", None)


def test_minimal_proxy_names_its_implementation() -> None:
    target = "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    code = f"363d3d373d3d3d363d73{target.lower()}5af43d82803e903d91602b57fd5bf3"
    assert scan(code).proxy == contracts.Proxy("eip1167", "0x" + target)
    slot = "360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc"
    assert scan("7f" + slot + "54").proxy == contracts.Proxy("eip1967", None)


def test_hostile_bytecode_takes_linear_time() -> None:
    # As many calls as fit, none followed by a store, and jumps all over: every walk would be a long one.
    for code in ("f1" * 49_152, "5b600056" * 12_288, "5bf1600057" * 9830, "73" * 49_152):
        assert scan(code).size <= 49_152


def swap(transaction: str, sender: str, buy: bool, paid: int, got: int, pool: str = "P") -> dict[str, Any]:
    tokens = ("USD", "ETH") if buy else ("ETH", "USD")
    return {
        "transaction": transaction,
        "sender": sender,
        "pool": pool,
        "token_in": tokens[0],
        "token_out": tokens[1],
        "amount_in": str(paid),
        "amount_out": str(got),
    }


def sandwiches(*swaps: dict[str, Any], **settings: Any) -> list[mev.Sandwich]:
    return mev.detect(mev.DetectRequest.model_validate({"swaps": list(swaps)} | settings)).sandwiches


FRONT, VICTIM, BACK = swap("1", "bot", True, 100, 50), swap("2", "v", True, 10, 4), swap("3", "bot", False, 50, 110)


def test_sandwich_by_hand() -> None:
    (one,) = sandwiches(FRONT, VICTIM, BACK)
    # The victim got 0.4 for each unit where the attacker got 0.5: 20 percent less.
    assert one == mev.Sandwich("bot", "P", "1", "3", [mev.Victim("2", "v", 20.0)], "USD", "10")


@pytest.mark.parametrize(
    "swaps",
    [
        [FRONT, BACK],
        [VICTIM, FRONT, BACK],
        [FRONT, swap("2", "v", False, 10, 4), BACK],
        [FRONT, swap("2", "v", True, 10, 4, pool="Q"), BACK],
        [FRONT, swap("2", "bot", True, 10, 4), BACK],
        [FRONT, VICTIM, swap("3", "other", False, 50, 110)],
        [FRONT, VICTIM, swap("3", "bot", False, 40, 110)],
        [FRONT, VICTIM, swap("1", "bot", False, 50, 110)],
        [BACK, VICTIM, FRONT],
    ],
    ids=[
        "no victim", "victim before", "other direction", "other pool", "own swap", "other seller",
        "other amount", "one transaction", "reversed",
    ],
)  # fmt: skip
def test_no_sandwich(swaps: list[dict[str, Any]]) -> None:
    # Reversed is a sandwich of a seller only if the amounts match, and here they do not.
    assert sandwiches(*swaps) == []


def test_two_sandwiches_in_a_row_and_one_that_lost() -> None:
    more = [swap("4", "bot", True, 100, 50), swap("5", "w", True, 10, 5), swap("6", "bot", False, 50, 90)]
    first, second = sandwiches(FRONT, VICTIM, BACK, *more)
    assert (first.profit, second.profit) == ("10", "-10")
    assert second.victims[0].worse_by_percent == 0.0


def test_distance_and_tolerance() -> None:
    assert sandwiches(FRONT, VICTIM, VICTIM, BACK, max_distance=2) == []
    assert len(sandwiches(FRONT, VICTIM, swap("3", "bot", False, 49, 110))) == 1
    assert sandwiches(FRONT, VICTIM, swap("3", "bot", False, 49, 110), tolerance=0.0) == []


def test_amounts_may_be_zero_or_huge() -> None:
    huge = int("9" * 78)
    (one,) = sandwiches(
        swap("1", "bot", True, huge, huge), swap("2", "v", True, 0, 0), swap("3", "bot", False, huge, 0)
    )
    assert one.profit == str(-huge)
    assert one.victims[0].worse_by_percent == 0.0


def pay(name: str, inputs: list[str], *outputs: tuple[str, int]) -> dict[str, Any]:
    return {"id": name, "inputs": inputs, "outputs": [{"address": a, "amount": str(m)} for a, m in outputs]}


def group(*transactions: dict[str, Any], change: bool = False) -> wallets.ClusterResponse:
    body = {"transactions": list(transactions), "change_heuristic": change}
    return wallets.cluster(wallets.ClusterRequest.model_validate(body))


def test_common_inputs_join_through_a_third() -> None:
    done = group(
        pay("1", ["a", "b"], ("x", 1)),
        pay("2", ["c", "d"], ("y", 1)),
        pay("3", ["b", "c"], ("z", 1)),
        pay("4", ["e", "f"], ("a", 1)),
    )
    assert done.clusters == [
        wallets.Cluster(["a", "b", "c", "d"], ["1", "2", "3"]),
        wallets.Cluster(["e", "f"], ["4"]),
    ]
    assert (done.addresses, done.singletons) == (9, 3)


def test_coinjoin_joins_nothing() -> None:
    done = group(pay("cj", ["a", "b", "c"], ("x", 5), ("y", 5), ("z", 5)))
    assert (done.clusters, done.skipped_coinjoins) == ([], ["cj"])
    # Three equal outputs of one payer are a payroll.
    assert group(pay("pay", ["a", "b"], ("x", 5), ("y", 5), ("z", 5))).skipped_coinjoins == []


def test_change_joins_the_payer_only_if_asked_and_certain() -> None:
    history = pay("1", ["s"], ("shop", 9))
    spend = pay("2", ["a"], ("shop", 5), ("fresh", 2))
    assert group(history, spend).clusters == []
    assert group(history, spend, change=True).clusters == [wallets.Cluster(["a", "fresh"], ["2"])]
    two_new = pay("2", ["a"], ("new", 5), ("fresh", 2))
    assert group(history, two_new, change=True).clusters == []


def test_same_input_twice_is_no_cluster() -> None:
    assert group(pay("1", ["a", "a"], ("x", 1))).clusters == []


def test_union_find_long_chain() -> None:
    sets = wallets.UnionFind()
    for i in range(10_000):
        sets.add(str(i))
        if i:
            sets.union(str(i - 1), str(i))
    assert len(sets.groups()) == 1


def flow(*transfers: tuple[str, str, int], longest: int = 5) -> flows.GraphResponse:
    listed = [{"id": str(i), "source": s, "target": t, "amount": str(a)} for i, (s, t, a) in enumerate(transfers)]
    return flows.graph(flows.GraphRequest.model_validate({"transfers": listed, "max_cycle_length": longest}))


def test_graph_by_hand() -> None:
    done = flow(("a", "b", 100), ("a", "b", 50), ("b", "c", 80), ("c", "a", 60), ("d", "e", 10))
    assert done.nodes[0] == flows.Node("a", 1, 1, "60", "150", "-90")
    assert done.edges[0] == flows.Edge("a", "b", 2, "150")
    assert done.cycles == [flows.Cycle(["a", "b", "c"], "60")]
    assert (done.components, done.total, done.complete) == (2, "300", True)


def test_each_cycle_once() -> None:
    done = flow(("a", "a", 1), ("a", "b", 1), ("b", "a", 1), ("b", "c", 1), ("c", "b", 1), ("c", "a", 1))
    assert [c.addresses for c in done.cycles] == [["a"], ["a", "b"], ["a", "b", "c"], ["b", "c"]]
    assert [c.addresses for c in flow(("a", "b", 1), ("b", "c", 1), ("c", "a", 1), longest=2).cycles] == []


def test_dense_graph_stops_at_its_limit_and_says_so() -> None:
    names = [f"n{i:02d}" for i in range(60)]
    done = flow(*[(a, b, 1) for a in names for b in names if a != b], longest=8)
    assert (len(done.cycles), done.complete) == (flows.MAX_CYCLES, False)
    # A layered graph without a cycle, with more paths than steps.
    layers = [[f"{layer}-{i}" for i in range(15)] for layer in range(8)]
    edges = [(a, b, 1) for k in range(7) for a in layers[k] for b in layers[k + 1]]
    done = flow(*edges, longest=8)
    assert (done.cycles, done.complete) == ([], False)
