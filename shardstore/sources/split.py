"""Splits and casts: `"x=:-1,y=-1@int64"` cuts the last axis of an array into columns.

A slice keeps the axis, an integer drops it, `@dtype` casts. A cast must keep every value; `@~dtype` lets floats
be rounded to the nearest value that the dtype has.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.casting import Cast
from shardstore.errors import SchemaError

_ITEM = re.compile(r"\s*([^=@]*?)\s*=\s*([-\d:\s]+?)\s*(?:@\s*(~?)\s*(\w+)\s*)?")
_EXAMPLE = 'expected NAME=SLICE or NAME=INDEX, each with an optional @DTYPE, such as "x=:-1,y=-1@int64"'


@dataclass(frozen=True)
class Cut:
    """One column that is cut from the last axis of an array: a slice, an index, or all of it (None)."""

    name: str
    part: slice | int | None = None
    cast: Cast | None = None

    def result(
        self, dtype: np.dtype[Any], row_shape: tuple[int, ...], label: str
    ) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return dtype and row shape of the column; raise `SchemaError` if the array has nothing there."""
        if self.part is not None:
            if not row_shape:
                raise SchemaError(f"{label}: a split cuts the last axis, but a row is a single value here")
            width = row_shape[-1]
            if isinstance(self.part, int):
                if not -width <= self.part < width:
                    raise SchemaError(f"{label}: column {self.name!r} is index {self.part} of an axis of {width}")
                row_shape = row_shape[:-1]
            else:
                picked = len(range(*self.part.indices(width)))
                if picked == 0:
                    raise SchemaError(f"{label}: column {self.name!r} overlaps nothing of an axis of {width}")
                row_shape = (*row_shape[:-1], picked)
        if self.cast is not None:
            if dtype.kind not in "biufc" or self.cast.dtype.kind not in "biufc":
                raise SchemaError(f"{label}: cannot cast {dtype} to {self.cast.dtype}: only numbers are cast")
            if dtype.kind == "c" and self.cast.dtype.kind != "c":
                raise SchemaError(f"{label}: a cast of {dtype} to {self.cast.dtype} would lose the imaginary part")
            dtype = self.cast.dtype
        return dtype, row_shape

    def apply(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return this column's part of a block of rows, before any cast."""
        return block if self.part is None else block[..., self.part]


def parse_split(text: str) -> list[Cut]:
    """Read a split; raise `SchemaError` if it cannot be understood."""
    return [_parse_item(item) for item in text.split(",")]


def _parse_item(item: str) -> Cut:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise SchemaError(f"bad split {item.strip()!r}: {_EXAMPLE}")
    name, where, tilde, dtype = match.groups()
    pieces = where.split(":")
    try:
        numbers = [int(piece) if piece.strip() else None for piece in pieces]
        if len(pieces) > 3:
            raise ValueError
        part = numbers[0] if len(pieces) == 1 else slice(*numbers)
        if part is None or (isinstance(part, slice) and part.step == 0):
            raise ValueError
    except ValueError:
        raise SchemaError(f"bad split {item.strip()!r}: {where!r} is no slice or index; {_EXAMPLE}") from None
    if dtype is None:
        return Cut(name, part)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a deprecated name
            target = np.dtype(dtype).newbyteorder("<")
    except (TypeError, ValueError, Warning):
        raise SchemaError(f"bad split {item.strip()!r}: NumPy has no dtype {dtype!r}") from None
    if tilde and target.kind not in "fc":
        raise SchemaError(f"bad split {item.strip()!r}: @~ rounds to a float dtype; {target} takes whole values only")
    return Cut(name, part, Cast(target, bool(tilde)))
