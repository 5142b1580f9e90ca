"""What the request models of all services share: strictness and bounded types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of every request model.

    Nothing is coerced (``"5"`` is no number), unknown fields are refused, NaN and
    the infinities are refused. Models are immutable once read.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


ShortText = Annotated[str, Field(min_length=1, max_length=128)]
"""An identifier or a name: 1 to 128 characters."""

Price = Annotated[float, Field(gt=0, le=1e12)]
"""A price in the quote currency; the upper bound keeps sums of products finite."""

Quantity = Annotated[float, Field(ge=0, le=1e15)]
"""A traded amount in units of the base asset."""

Millis = Annotated[int, Field(ge=0, le=253_402_300_799_999)]
"""Milliseconds since 1970-01-01 UTC, up to the end of the year 9999."""

Uint256 = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,77})$", examples=["1000000000000000000"])]
"""An unsigned integer in decimal digits: a string, since JSON readers lose digits above 2**53."""
