"""Where windows of fixed length lie in documents: packed end to end, or each within one document.

A document is a row of a ragged column. The items of a table's documents, one document after the other, are its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import CorruptionError
from shardstore.locks import cached_property
from shardstore.ragged import offsets_of
from shardstore.ragged_rows import end_to_end
from shardstore.selection import Rows, Selection, rows_of_runs
from shardstore.shardfile import RESTORE

# How many documents are looked at together when all of their lengths are wanted.
_BLOCK_DOCUMENTS = 1 << 18


class RangeFiles(Protocol):
    """The ranges of ragged columns. Row numbers are known to be in range."""

    @property
    def path(self) -> Path:
        """The store's directory."""

    def read_ranges(self, name: str, rows: Rows) -> NDArray[np.int64]:
        """Return int64 `(rows, 2)`: the first item of each row of a ragged column and one past its last."""

    def range_slice(self, name: str, start: int, stop: int) -> NDArray[np.int64] | None:
        """Return the ranges of consecutive rows, unchecked, as a view of the file; None where that needs a copy."""


@dataclass(frozen=True)
class Documents:
    """The documents of a table.

    Attributes:
        files: where they lie.
        name: the ragged column.
        selection: which rows of the store they are, and in which order.
    """

    files: RangeFiles
    name: str
    selection: Selection

    def __len__(self) -> int:
        return len(self.selection)

    def ranges(self, documents: Rows) -> NDArray[np.int64]:
        """Return int64 `(documents, 2)`: the first item in the file of each and one past its last."""
        return self.files.read_ranges(self.name, self.selection.resolve(documents))

    def lengths(self) -> NDArray[np.int64]:
        """Return int64 `(documents,)`, the number of items of each."""
        lengths = np.empty(len(self), np.int64)
        for start in range(0, len(self), _BLOCK_DOCUMENTS):
            ranges = self.ranges(np.arange(start, min(start + _BLOCK_DOCUMENTS, len(self))))
            np.subtract(ranges[:, 1], ranges[:, 0], out=lengths[start : start + len(ranges)])
        return lengths

    def damaged(self) -> CorruptionError:
        """Return the error for documents that do not lie as they were written."""
        return CorruptionError(
            f"{self.files.path / self.name}: its rows do not follow one another in its items, as they were written; "
            f"run shardstore verify; {RESTORE}"
        )


@dataclass(frozen=True)
class Pieces:
    """The parts of documents that windows are made of: one after the other, those of each window in order.

    Attributes:
        documents: int64 `(pieces,)`, the number of each piece's document in its table.
        skipped: int64 `(pieces,)`, how many items of the document lie before the piece.
        taken: int64 `(pieces,)`, how many items the piece has.
    """

    documents: Rows
    skipped: Rows
    taken: Rows


class Packing(Protocol):
    """Where the windows of a table lie. Window numbers are known to be in range."""

    @property
    def count(self) -> int:
        """How many windows there are."""

    @property
    def items(self) -> int:
        """How many items the documents have."""

    def pieces(self, windows: Rows) -> Pieces:
        """Return the parts of documents that some windows are made of."""

    def runs(self, windows: Rows) -> tuple[Rows, Rows]:
        """Return the first item in the file, and one past the last, of the runs that make up some windows."""


def packing_of(documents: Documents, length: int, stride: int, across_rows: bool) -> Packing:
    """Return where windows of `length` items lie that begin every `stride` items.

    Args:
        documents: what the windows are cut from.
        length: at least 1.
        stride: at least 1.
        across_rows: whether the documents are packed end to end; else every window lies within one.
    """
    if not across_rows:
        return WithinDocuments(documents, length, stride)
    if documents.selection.is_contiguous:
        return PackedNeighbours(documents, length, stride)
    return PackedDocuments(documents, length, stride)


class _Text(Protocol):
    """A text, of which every position has a document."""

    def find(self, positions: Rows) -> Rows:
        """Return the documents that have the items at positions of the text."""

    def bounds(self, documents: Rows) -> tuple[Rows, Rows]:
        """Return where in the text documents begin and end."""


class _Offsets:
    """A text by the positions where its documents begin: 8 bytes a document."""

    def __init__(self, documents: Documents) -> None:
        self._offsets = offsets_of(documents.lengths())

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def find(self, positions: Rows) -> Rows:
        return self._offsets.searchsorted(positions, "right") - 1

    def bounds(self, documents: Rows) -> tuple[Rows, Rows]:
        return self._offsets[documents], self._offsets[documents + 1]


class _FileRanges:
    """A text by the ranges of neighbouring rows, as they lie in the mapped file: without memory of its own."""

    def __init__(self, documents: Documents, ranges: NDArray[np.int64], first_item: int) -> None:
        self._documents = documents
        # Begin and end of one document, of the next, …: these never decrease.
        self._bounds = ranges.reshape(-1)
        self._first_item = first_item

    def find(self, positions: Rows) -> Rows:
        places = self._bounds.searchsorted(positions + self._first_item, "right")
        if not (places & 1).all():
            raise self._documents.damaged()
        return places >> 1

    def bounds(self, documents: Rows) -> tuple[Rows, Rows]:
        begins = self._bounds[2 * documents]
        return begins - self._first_item, self._bounds[2 * documents + 1] - self._first_item


class _Packed:
    """Windows over a text."""

    def __init__(self, documents: Documents, length: int, stride: int) -> None:
        self._documents = documents
        self._length = length
        self._stride = stride

    def _count(self, items: int) -> int:
        return max(0, (items - self._length) // self._stride + 1)

    def _pieces(self, text: _Text, windows: Rows) -> Pieces:
        starts = windows * self._stride
        firsts, lasts = text.find(starts), text.find(starts + self._length - 1)
        counts = lasts - firsts + 1
        if counts.min(initial=1) < 1:
            raise self._documents.damaged()
        documents = rows_of_runs(firsts, lasts + 1)
        begins, ends = text.bounds(documents)
        starts = np.repeat(starts, counts)
        from_, to = np.maximum(begins, starts), np.minimum(ends, starts + self._length)
        taken = to - from_
        if taken.min(initial=0) < 0 or taken.sum() != len(windows) * self._length:
            raise self._documents.damaged()
        return Pieces(documents, from_ - begins, taken)


class PackedNeighbours(_Packed):
    """Windows over the text of rows that follow one another: this is one run of items in the file.

    Nothing is read beforehand but the ranges of the first and the last row.
    """

    def __init__(self, documents: Documents, length: int, stride: int) -> None:
        super().__init__(documents, length, stride)
        ends = np.array([0, len(documents) - 1] if len(documents) else [], np.int64)
        ranges = documents.ranges(ends)
        self.first_item = int(ranges[0, 0]) if len(ranges) else 0
        self.items = int(ranges[-1, 1]) - self.first_item if len(ranges) else 0
        if self.items < 0:
            raise documents.damaged()
        self.count = self._count(self.items)

    @cached_property
    def _text(self) -> _Text:
        documents = self._documents
        first = documents.selection.start
        ranges = documents.files.range_slice(documents.name, first, first + len(documents))
        return _Offsets(documents) if ranges is None else _FileRanges(documents, ranges, self.first_item)

    def pieces(self, windows: Rows) -> Pieces:
        """Return the parts of documents that some windows are made of."""
        return self._pieces(self._text, windows)

    def runs(self, windows: Rows) -> tuple[Rows, Rows]:
        """Return one run a window."""
        starts = windows * self._stride + self.first_item
        return starts, starts + self._length


class PackedDocuments(_Packed):
    """Windows over the text of any rows. Holds 8 bytes a document."""

    def __init__(self, documents: Documents, length: int, stride: int) -> None:
        super().__init__(documents, length, stride)
        self._text = _Offsets(documents)
        self.items = len(self._text)
        self.count = self._count(self.items)

    def pieces(self, windows: Rows) -> Pieces:
        """Return the parts of documents that some windows are made of."""
        return self._pieces(self._text, windows)

    def runs(self, windows: Rows) -> tuple[Rows, Rows]:
        """Return the runs of all pieces, joined where documents are neighbours in the file, too."""
        pieces = self.pieces(windows)
        starts = self._documents.ranges(pieces.documents)[:, 0] + pieces.skipped
        return end_to_end(starts, starts + pieces.taken)


class WithinDocuments:
    """Windows that never leave a document. Holds 8 bytes a document."""

    def __init__(self, documents: Documents, length: int, stride: int) -> None:
        lengths = documents.lengths()
        self.items = int(lengths.sum())
        self._documents = documents
        self._length = length
        self._stride = stride
        self._firsts = offsets_of(np.maximum((lengths - length) // stride + 1, 0))
        self.count = int(self._firsts[-1])

    def pieces(self, windows: Rows) -> Pieces:
        """Return one piece a window."""
        documents = self._firsts.searchsorted(windows, "right") - 1
        skipped = (windows - self._firsts[documents]) * self._stride
        return Pieces(documents, skipped, np.full(len(windows), self._length))

    def runs(self, windows: Rows) -> tuple[Rows, Rows]:
        """Return one run a window."""
        pieces = self.pieces(windows)
        starts = self._documents.ranges(pieces.documents)[:, 0] + pieces.skipped
        return starts, starts + self._length
