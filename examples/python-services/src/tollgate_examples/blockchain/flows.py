"""The graph of transfers: who pays whom how much, and where money goes in circles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tollgate_examples.schema import ShortText, Strict, Uint256

MAX_CYCLES = 100
MAX_STEPS = 50_000
"""Steps of the cycle search; a dense graph has more cycles than anyone can list."""


class Transfer(Strict):
    """A payment; source and target may be the same address."""

    id: ShortText
    source: ShortText
    target: ShortText
    amount: Uint256


class GraphRequest(Strict):
    """Transfers of one token."""

    transfers: Annotated[list[Transfer], Field(min_length=1, max_length=5000)]
    max_cycle_length: Annotated[int, Field(ge=2, le=8)] = 5


@dataclass(frozen=True, slots=True)
class Node:
    """An address: with how many others it deals, and what flowed. ``net`` is in less out."""

    address: str
    in_degree: int
    out_degree: int
    received: str
    sent: str
    net: str


@dataclass(frozen=True, slots=True)
class Edge:
    """All transfers from one address to another."""

    source: str
    target: str
    transfers: int
    amount: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """Addresses that pay each other round; ``amount`` is what went along every edge at least."""

    addresses: list[str]
    amount: str


@dataclass(frozen=True, slots=True)
class GraphResponse:
    """The graph; ``complete`` is False where the search for cycles stopped at its limit."""

    nodes: list[Node]
    edges: list[Edge]
    cycles: list[Cycle]
    complete: bool
    components: int
    total: str


def graph(request: GraphRequest) -> GraphResponse:
    """Build the graph, its weakly connected components and its short cycles."""
    flows: dict[tuple[str, str], tuple[int, int]] = {}
    for t in request.transfers:
        count, amount = flows.get((t.source, t.target), (0, 0))
        flows[t.source, t.target] = (count + 1, amount + int(t.amount))
    successors: dict[str, list[str]] = {}
    predecessors: dict[str, list[str]] = {}
    for source, target in sorted(flows):
        for address in (source, target):
            successors.setdefault(address, [])
            predecessors.setdefault(address, [])
        successors[source].append(target)
        predecessors[target].append(source)
    cycles, complete = find_cycles(successors, request.max_cycle_length)
    return GraphResponse(
        nodes=[_node(a, successors[a], predecessors[a], flows) for a in sorted(successors)],
        edges=[Edge(s, t, *_texts(flows[s, t])) for s, t in sorted(flows)],
        cycles=[Cycle(c, _least(c, flows)) for c in cycles],
        complete=complete,
        components=_components(successors, predecessors),
        total=str(sum(amount for _, amount in flows.values())),
    )


def find_cycles(successors: dict[str, list[str]], longest: int) -> tuple[list[list[str]], bool]:
    """List simple cycles of up to ``longest`` addresses, each once, beginning at its smallest address.

    Returns False as well if MAX_CYCLES or MAX_STEPS ended the search early.
    """
    found: list[list[str]] = []
    steps = 0
    for start in sorted(successors):
        path, on_path = [start], {start}
        branches = [iter(successors[start])]
        while branches:
            step = next(branches[-1], None)
            if step is None:
                branches.pop()
                on_path.discard(path.pop())
                continue
            steps += 1
            if steps > MAX_STEPS or len(found) > MAX_CYCLES:
                return found[:MAX_CYCLES], False
            if step == start:
                found.append(path.copy())
            elif step > start and step not in on_path and len(path) < longest:
                path.append(step)
                on_path.add(step)
                branches.append(iter(successors[step]))
    return found[:MAX_CYCLES], len(found) <= MAX_CYCLES


def _node(address: str, out: list[str], into: list[str], flows: dict[tuple[str, str], tuple[int, int]]) -> Node:
    received = sum(flows[s, address][1] for s in into)
    sent = sum(flows[address, t][1] for t in out)
    return Node(address, len(into), len(out), str(received), str(sent), str(received - sent))


def _texts(flow: tuple[int, int]) -> tuple[int, str]:
    return flow[0], str(flow[1])


def _least(cycle: list[str], flows: dict[tuple[str, str], tuple[int, int]]) -> str:
    edges = zip(cycle, [*cycle[1:], cycle[0]], strict=True)
    return str(min(flows[edge][1] for edge in edges))


def _components(successors: dict[str, list[str]], predecessors: dict[str, list[str]]) -> int:
    seen: set[str] = set()
    count = 0
    for start in successors:
        if start in seen:
            continue
        count += 1
        pending = [start]
        while pending:
            address = pending.pop()
            if address not in seen:
                seen.add(address)
                pending += successors[address] + predecessors[address]
    return count
