"""Clusters addresses that one person seems to control, by who signs together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from tollgate_examples.schema import ShortText, Strict, Uint256


class Output(Strict):
    """Where a transaction pays to."""

    address: ShortText
    amount: Uint256


class Transaction(Strict):
    """A transaction of a coin with several inputs, such as Bitcoin's."""

    id: ShortText
    inputs: Annotated[list[ShortText], Field(min_length=1, max_length=200)]
    outputs: Annotated[list[Output], Field(min_length=1, max_length=200)]


class ClusterRequest(Strict):
    """Transactions in order of time."""

    transactions: Annotated[list[Transaction], Field(min_length=1, max_length=1000)]
    change_heuristic: Annotated[bool, Field(description="Count a lone new output address as the payer's change.")] = (
        False
    )

    @model_validator(mode="after")
    def _bounded(self) -> ClusterRequest:
        if sum(len(t.inputs) + len(t.outputs) for t in self.transactions) > 20_000:
            raise ValueError("more than 20000 inputs and outputs in all")
        return self


@dataclass(frozen=True, slots=True)
class Cluster:
    """Addresses of one supposed owner and the transactions that say so."""

    addresses: list[str]
    evidence: list[str]


@dataclass(frozen=True, slots=True)
class ClusterResponse:
    """Clusters of two and more, largest first; how many addresses stand alone; what was left out."""

    addresses: int
    clusters: list[Cluster]
    singletons: int
    skipped_coinjoins: list[str]


class UnionFind:
    """Disjoint sets of strings, with union by size and path halving."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._size: dict[str, int] = {}

    def add(self, item: str) -> None:
        """Make a set of its own for an item that is new."""
        if item not in self._parent:
            self._parent[item] = item
            self._size[item] = 1

    def __contains__(self, item: str) -> bool:
        return item in self._parent

    def find(self, item: str) -> str:
        """Return the item that stands for the set."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def union(self, a: str, b: str) -> None:
        """Join two sets."""
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if self._size[a] < self._size[b]:
            a, b = b, a
        self._parent[b] = a
        self._size[a] += self._size[b]

    def groups(self) -> list[list[str]]:
        """Return the sets, each sorted, the largest first."""
        sets: dict[str, list[str]] = {}
        for item in self._parent:
            sets.setdefault(self.find(item), []).append(item)
        return sorted((sorted(s) for s in sets.values()), key=lambda s: (-len(s), s[0]))


def cluster(request: ClusterRequest) -> ClusterResponse:
    """Join all inputs of a transaction, since one person signed for them.

    Transactions that look like a CoinJoin join nothing: there the inputs are of many.
    """
    sets = UnionFind()
    evidence: list[tuple[str, str]] = []
    skipped = []
    for transaction in request.transactions:
        change = _change(transaction, sets) if request.change_heuristic else None
        for address in (*transaction.inputs, *(o.address for o in transaction.outputs)):
            sets.add(address)
        if looks_like_coinjoin(transaction):
            skipped.append(transaction.id)
            continue
        together = sorted(set(transaction.inputs) | ({change} if change else set()))
        for other in together[1:]:
            sets.union(together[0], other)
        if len(together) > 1:
            evidence.append((together[0], transaction.id))
    proofs: dict[str, dict[str, None]] = {}
    for address, transaction_id in evidence:
        proofs.setdefault(sets.find(address), {})[transaction_id] = None
    groups = sets.groups()
    clusters = [Cluster(g, list(proofs.get(sets.find(g[0]), {}))) for g in groups if len(g) > 1]
    alone = sum(len(g) == 1 for g in groups)
    return ClusterResponse(sum(map(len, groups)), clusters, alone, skipped)


def looks_like_coinjoin(transaction: Transaction) -> bool:
    """Tell whether three or more outputs are equal and as many different addresses pay in."""
    equal = Counter(o.amount for o in transaction.outputs).most_common(1)[0][1]
    return equal >= 3 and len(set(transaction.inputs)) >= equal


def _change(transaction: Transaction, seen: UnionFind) -> str | None:
    """Return the only output address never seen before, where there are other outputs that were."""
    addresses = {o.address for o in transaction.outputs}
    new = [a for a in addresses if a not in seen and a not in transaction.inputs]
    return new[0] if len(new) == 1 and len(addresses) > 1 else None
