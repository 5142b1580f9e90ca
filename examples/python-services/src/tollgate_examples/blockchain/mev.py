"""Finds sandwich attacks in the ordered swaps of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from tollgate_examples.schema import ShortText, Strict, Uint256

Amount = Annotated[Uint256, Field(description="In the token's smallest unit.")]


class Swap(Strict):
    """One swap as it happened; its place in the list is its place in the block."""

    transaction: ShortText
    sender: ShortText
    pool: ShortText
    token_in: ShortText
    token_out: ShortText
    amount_in: Amount
    amount_out: Amount

    @model_validator(mode="after")
    def _two_tokens(self) -> Swap:
        if self.token_in == self.token_out:
            raise ValueError("token_in and token_out must differ")
        return self


class DetectRequest(Strict):
    """The swaps of a block in order."""

    swaps: Annotated[list[Swap], Field(min_length=1, max_length=2000)]
    max_distance: Annotated[int, Field(ge=2, le=200, description="How many swaps apart front and back may be.")] = 50
    tolerance: Annotated[
        float, Field(ge=0, le=0.5, description="How far the sold amount may be from the bought one.")
    ] = 0.02


@dataclass(frozen=True, slots=True)
class Victim:
    """A swap in between, and how much worse its price was than the attacker's first one."""

    transaction: str
    sender: str
    worse_by_percent: float


@dataclass(frozen=True, slots=True)
class Sandwich:
    """A buy, victims of the same direction, and the sale of what was bought."""

    attacker: str
    pool: str
    front: str
    back: str
    victims: list[Victim]
    token: str
    profit: str


@dataclass(frozen=True, slots=True)
class DetectResponse:
    """What was found; ``profit`` is in ``token`` and may be negative, before fees."""

    checked: int
    sandwiches: list[Sandwich]


def detect(request: DetectRequest) -> DetectResponse:
    """Match each front with the nearest back.

    A front is a swap A to B; its back is a later swap B to A by the same sender in the
    same pool, of an amount within the tolerance of what the front bought; the victims are
    the swaps A to B of others in that pool in between. Without a victim there is no
    sandwich. A swap is part of one sandwich only, and the three are different transactions.
    """
    found = []
    used: set[int] = set()
    swaps = request.swaps
    for i, front in enumerate(swaps):
        if i in used:
            continue
        for k in range(i + 1, min(len(swaps), i + 1 + request.max_distance)):
            back = swaps[k]
            if k in used or not _closes(front, back, request.tolerance):
                continue
            between = [(j, swaps[j]) for j in range(i + 1, k) if _is_victim(front, swaps[j])]
            if between:
                used |= {i, k}
                found.append(_describe(front, back, [s for _, s in between]))
            break
    return DetectResponse(len(swaps), found)


def _closes(front: Swap, back: Swap, tolerance: float) -> bool:
    if (
        back.sender != front.sender
        or back.pool != front.pool
        or back.transaction == front.transaction
        or (back.token_in, back.token_out) != (front.token_out, front.token_in)
    ):
        return False
    bought, sold = int(front.amount_out), int(back.amount_in)
    return abs(sold - bought) <= tolerance * bought


def _is_victim(front: Swap, swap: Swap) -> bool:
    return (
        swap.sender != front.sender
        and swap.pool == front.pool
        and (swap.token_in, swap.token_out) == (front.token_in, front.token_out)
    )


def _describe(front: Swap, back: Swap, victims: list[Swap]) -> Sandwich:
    return Sandwich(
        attacker=front.sender,
        pool=front.pool,
        front=front.transaction,
        back=back.transaction,
        victims=[Victim(v.transaction, v.sender, _worse(front, v)) for v in victims],
        token=front.token_in,
        profit=str(int(back.amount_out) - int(front.amount_in)),
    )


def _worse(front: Swap, victim: Swap) -> float:
    """Return by how many percent less the victim got for each unit than the attacker did, at least 0."""
    paid, got = int(victim.amount_in), int(victim.amount_out)
    reference = int(front.amount_out) * paid
    if reference == 0:
        return 0.0
    # Exact integers: millionths of the ratio, rounded down.
    ratio = got * int(front.amount_in) * 1_000_000 // reference
    return max(0.0, (1_000_000 - ratio) / 10_000)
