"""`RowEnds`: offsets or lengths, which say where rows end among the values of another file; checked, then read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import SourceError
from shardstore.ragged import first_decrease
from shardstore.sources.npy import ArraySource

# Entries that are looked at together.
_BLOCK_ROWS = 1 << 18


@dataclass(frozen=True)
class RowEnds:
    """Where the rows of one file end among its values.

    Attributes:
        array: the offsets, one more than there are rows, from 0 to the number of items; or each row's length.
        are_offsets: which of the two.
    """

    array: ArraySource
    are_offsets: bool

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.array.header.shape[0] - self.are_offsets

    def check(self, items: int, where: str) -> None:
        """Check that the rows lie end to end and take up all items.

        Args:
            items: how many there are.
            where: what holds them, for messages.

        Raises:
            SourceError: if they do not; it names the file, the row and both numbers.
        """
        self._check_form()
        if self.are_offsets:
            self._check_offsets(items, where)
            return
        total = 0
        for first, lengths in self._lengths():
            _check_lengths(self.array.label, first, lengths, items, f"but {where} has {items:,} items")
            ends = total + np.cumsum(lengths, dtype=np.int64)
            if len(ends) and ends[-1] > items:
                row = int((ends > items).argmax())
                raise SourceError(
                    f"{self.array.label}, row {first + row:,}: the lengths up to here sum up to {ends[row]:,}, "
                    f"but {where} has {items:,} items"
                )
            total = int(ends[-1]) if len(ends) else total
        if total != items:
            raise SourceError(f"{self.array.label}: lengths sum up to {total:,}, but {where} has {items:,} items")

    def check_padded(self, width: int, where: str) -> int:
        """Check that no length is above that of the padded rows, and return the sum of all.

        Raises:
            SourceError: if one is, or is negative; it names the file, the row and both numbers.
        """
        self._check_form()
        total = 0
        for first, lengths in self._lengths():
            _check_lengths(self.array.label, first, lengths, width, f"but the rows of {where} have {width:,} items")
            total += int(lengths.sum(dtype=np.int64))
        return total

    def read(self, block_rows: int) -> Iterator[NDArray[np.int64]]:
        """Yield where rows end, `block_rows` of them at a time. They were checked."""
        rows, end = self.rows, 0
        with self.array.open() as reader:
            if self.are_offsets:
                reader.read(0, 1)
            for first in range(0, rows, block_rows):
                start, stop = first + self.are_offsets, min(first + block_rows, rows) + self.are_offsets
                block: NDArray[Any] = reader.read(start, stop)
                ends = block.astype(np.int64) if self.are_offsets else end + np.cumsum(block, dtype=np.int64)
                yield ends
                end = int(ends[-1])

    def _check_form(self) -> None:
        name = "offsets" if self.are_offsets else "lengths"
        dtype, shape = self.array.header.dtype, self.array.header.shape
        if dtype.kind not in "iu":
            raise SourceError(f"{self.array.label}: {name} must be integers, found {dtype}")
        if len(shape) != 1:
            raise SourceError(f"{self.array.label}: {name} must have one axis, found the shape {shape}")
        if self.are_offsets and not shape[0]:
            raise SourceError(f"{self.array.label}: no offsets; expected one more than there are rows, the first 0")

    def _check_offsets(self, items: int, where: str) -> None:
        label = self.array.label
        count, before = self.array.header.shape[0], 0
        with self.array.open() as reader:
            for first in range(0, count, _BLOCK_ROWS):
                offsets: NDArray[Any] = reader.read(first, min(first + _BLOCK_ROWS, count))
                if first == 0 and offsets[0] != 0:
                    raise SourceError(
                        f"{label}, row 0: offsets begin at {offsets[0]:,}; expected 0, where the rows of {where} begin "
                        "(offsets count from the beginning of their own file)"
                    )
                # Compared in their own dtype: the difference of unsigned numbers would wrap.
                at = 0 if offsets[0] < before else first_decrease(offsets)
                if at is not None:
                    at, previous = (0, before) if offsets[0] < before else (at + 1, offsets[at])
                    raise SourceError(
                        f"{label}, row {first + at - 1:,}: offsets must not decrease: offset {first + at:,} is "
                        f"{offsets[at]:,}, behind {previous:,}"
                    )
                if offsets[-1] > items:
                    at = int((offsets > items).argmax())
                    raise SourceError(
                        f"{label}, row {first + at - 1:,}: it ends at {offsets[at]:,}, but {where} has {items:,} items"
                    )
                before = int(offsets[-1])
        if before != items:
            raise SourceError(f"{label}: offsets end at {before:,}, but {where} has {items:,} items")

    def _lengths(self) -> Iterator[tuple[int, NDArray[Any]]]:
        with self.array.open() as reader:
            for first in range(0, self.rows, _BLOCK_ROWS):
                yield first, reader.read(first, min(first + _BLOCK_ROWS, self.rows))


def _check_lengths(label: str, first: int, lengths: NDArray[Any], most: int, but: str) -> None:
    """Raise `SourceError` if a length is negative or above `most`; `first` is the number of the first row."""
    for bad, hint in ((lengths < 0, "lengths must not be negative"), (lengths > most, but)):
        if bad.any():
            row = int(bad.argmax())
            mark = "; " if lengths[row] < 0 else ", "
            raise SourceError(f"{label}, row {first + row:,}: a length of {lengths[row]:,}{mark}{hint}")
