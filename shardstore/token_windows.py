"""`WindowFiles`: windows of fixed length over a ragged column, as the rows of a table of their own."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from shardstore.locks import cached_property
from shardstore.order import check_int
from shardstore.packing import Documents, PackedNeighbours, Packing, packing_of
from shardstore.ragged import Ragged, Values, join_runs, offsets_of
from shardstore.ragged_rows import RaggedFiles, end_to_end
from shardstore.schema import Chunking, Field
from shardstore.selection import Rows, Selection, rows_of_runs
from shardstore.table_rows import Stopped

DOCUMENT, POSITION = "document", "position"
# A section of a shuffled epoch decodes the chunks at its ends for its neighbours, too. So it has several chunks where
# windows do not end with chunks, and many where the documents are scattered; but not so many that few are mixed.
_SECTION_CHUNKS = 8
_SCATTERED_SECTION_CHUNKS = 64
_SECTION_NBYTES = 4 << 20


@dataclass(frozen=True)
class Cut:
    """How windows are cut.

    Attributes:
        length: items of a window, at least 1.
        stride: how many items one begins behind the other, at least 1.
        across_rows: whether documents are packed end to end; else each window lies within one.
        documents: whether to tell which document each item is of.
        positions: whether to tell each item's position in its document.
    """

    length: int
    stride: int
    across_rows: bool = True
    documents: bool = False
    positions: bool = False

    @classmethod
    def checked(cls, length: int, stride: int | None, across_rows: bool, documents: bool, positions: bool) -> Cut:
        """Check what a user asked for.

        Raises:
            TypeError: if a number is no integer.
            ValueError: if it is below 1.
        """
        for name, value in (("length", length), ("stride", length if stride is None else stride)):
            if check_int(name, value) < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        stride = length if stride is None else stride
        return cls(int(length), int(stride), bool(across_rows), bool(documents), bool(positions))


class WindowFiles:
    """Windows over a ragged column of some rows: what a table of windows reads. A `shardstore.table_rows.ColumnFiles`.

    Args:
        files: the files of the store.
        name: the ragged column.
        selection: the rows, whose order is that of the documents.
        cut: how the windows are cut.

    Raises:
        ValueError: if the column is named as what is told of its items.
    """

    def __init__(self, files: RaggedFiles, name: str, selection: Selection, cut: Cut) -> None:
        field = files.field(name)
        told = ((DOCUMENT, cut.documents), (POSITION, cut.positions))
        self.columns = (name, *(other for other, wanted in told if wanted))
        if name in self.columns[1:]:
            raise ValueError(f"{name}s=True adds {name!r}, but the column itself has this name: leave it out")
        self._files = files
        self._name = name
        self._selection = selection
        self._cut = cut
        self._items = files.item_chunking(name)
        self._field = Field(name, field.dtype, (cut.length, *field.row_shape))

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._files.path

    @property
    def store_id(self) -> str:
        """What tells these windows from all others, on every machine."""
        cut = self._cut
        how = f"{self._name}: {cut.length} every {cut.stride}{'' if cut.across_rows else ' within rows'}"
        return f"{self._files.store_id}/{self._selection.fingerprint()}/windows of {how}"

    @cached_property
    def _packing(self) -> Packing:
        documents = Documents(self._files, self._name, self._selection)
        return packing_of(documents, self._cut.length, self._cut.stride, self._cut.across_rows)

    @property
    def all_windows(self) -> Selection:
        """All windows."""
        return Selection.all(self._packing.count)

    def field(self, name: str) -> Field:
        """Return what a window has of a column."""
        if name == self._name:
            return self._field
        return Field(name, np.dtype("<i8"), (self._cut.length,))

    def version(self, name: str) -> Hashable:
        """Return what tells a column from others that had its name in the same store."""
        return self._files.version(self._name)

    def chunking(self, name: str) -> Chunking:
        """Return what it takes to read windows. A chunk is as many as decode each of the file's chunks about once."""
        decoded = self._items.decoded and name == self._name
        return Chunking(self.field(name).row_nbytes, self._section_windows, decoded)

    @cached_property
    def _section_windows(self) -> int:
        cut, packing, chunk = self._cut, self._packing, self._items.chunk_rows
        chunks = _SCATTERED_SECTION_CHUNKS
        if isinstance(packing, PackedNeighbours):
            divides = chunk % cut.stride == 0 or cut.stride % chunk == 0
            fits = divides and cut.length <= cut.stride and packing.first_item % chunk == 0
            chunks = 1 if fits else _SECTION_CHUNKS
        chunks = max(1, min(chunks, _SECTION_NBYTES // max(1, chunk * self._items.row_nbytes)))
        if cut.across_rows:
            return max(1, chunks * chunk // cut.stride)
        return max(1, chunks * chunk * packing.count // max(1, packing.items))

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather windows into the C-contiguous `out`."""
        if name == self._name:
            self._read_items(rows, out.reshape(len(rows) * self._cut.length, *self._field.row_shape[1:]))
            return
        pieces = self._packing.pieces(rows)
        if len(pieces.documents) == len(rows):  # each lies in one document
            position = name == POSITION
            out[:] = (pieces.skipped if position else pieces.documents)[:, None]
            if position:
                out += np.arange(self._cut.length)
            return
        values = pieces.documents
        flat = out.reshape(-1)
        if name == POSITION:
            values = pieces.skipped - offsets_of(pieces.taken)[:-1]
        flat[:] = np.repeat(values, pieces.taken)
        if name == POSITION:
            flat += np.arange(len(flat))

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive windows, one after the other, into the C-contiguous `out`."""
        self.read(name, rows_of_runs(starts, stops), out)

    def read_slice(self, name: str, start: int, stop: int) -> Values:
        """Return consecutive windows, as a read-only view where that needs no copy."""
        cut = self._cut
        if start < stop and self.slices_are_views(name):
            items = self._files.read_item_slice(name, *self._items_of(start, stop))
            shape = (stop - start, cut.length, *items.shape[1:])
            strides = (cut.stride * items.strides[0], *items.strides)
            return np.lib.stride_tricks.as_strided(items, shape, strides, writeable=False)
        field = self.field(name)
        out = np.empty((stop - start, *field.row_shape), field.dtype)
        self.read(name, np.arange(start, stop), out)
        return out

    def slices_are_views(self, name: str) -> bool:
        """Whether no slice of the column needs a copy."""
        neighbours = name == self._name and isinstance(self._packing, PackedNeighbours)
        return neighbours and self._files.slices_are_views(name)

    def begin_pass(self, name: str) -> None:
        """Be told that many windows will be read."""
        if name == self._name:
            self._files.begin_pass(name)

    def wants(self, name: str, count: int) -> bool:
        """Whether so many windows that will be read soon should be named to `expect`."""
        return name == self._name and self._files.wants(name, count)

    def expect(self, name: str, rows: Rows) -> None:
        """Ask the system for the pages of windows that will be read soon."""
        if name == self._name:
            self._files.expect_items(name, *self._packing.runs(rows))

    def expect_run(self, name: str, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive windows that will be read soon, and of some behind them."""
        if start < stop and name == self._name and isinstance(self._packing, PackedNeighbours):
            self._files.expect_item_run(name, *self._items_of(start, stop))

    def populate(self, name: str, start: int, stop: int, stopped: Stopped) -> None:
        """Bring consecutive windows into the page cache and page tables, where they follow one another in the store."""
        if start < stop and name == self._name and isinstance(self._packing, PackedNeighbours):
            self._files.populate_items(name, *self._items_of(start, stop), stopped)

    def _items_of(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first item of consecutive windows of documents that lie end to end, and one past the last."""
        cut, packing = self._cut, self._packing
        assert isinstance(packing, PackedNeighbours)
        first = packing.first_item
        return first + start * cut.stride, first + (stop - 1) * cut.stride + cut.length

    def check_budget(self, nbytes: int, what: str, advice: str) -> None:
        """Raise `ValueError` if buffers of so many bytes do not fit the memory budget that the user has set."""
        self._files.check_budget(nbytes, what, advice)

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""
        return self._files.buffer_nbytes()

    def _read_items(self, windows: Rows, out: NDArray[Any]) -> None:
        cut, packing = self._cut, self._packing
        blocks, rest = divmod(cut.stride, cut.length)
        if not rest and not self._items.decoded and isinstance(packing, PackedNeighbours):
            numbers = windows if blocks == 1 else windows * blocks
            self._files.read_item_blocks(self._name, packing.first_item, cut.length, numbers, out)
            return
        starts, stops = packing.runs(windows)
        if not self._items.decoded:
            self._files.read_item_runs(self._name, starts, stops, out)
            return
        order = starts.argsort(kind="stable")
        firsts, lasts = starts[order], np.maximum.accumulate(stops[order])
        if not (firsts[1:] < lasts[:-1]).any():
            self._files.read_item_runs(self._name, *end_to_end(starts, stops), out)
            return
        # What several windows share is decoded once, and then copied to each.
        apart = np.concatenate([[True], firsts[1:] > lasts[:-1]])
        union_starts, union_stops = firsts[apart], lasts[np.append(apart[1:], True)]
        items = self._files.read_items(self._name, union_starts, union_stops)
        places = np.empty_like(starts)
        moved = offsets_of(union_stops - union_starts)[:-1] - union_starts
        places[order] = firsts + moved[np.cumsum(apart) - 1]
        join_runs(items, places, places + (stops - starts), out)

    def __reduce__(self) -> tuple[Any, ...]:
        # What is known of all documents is made again where it is needed.
        return WindowFiles, (self._files, self._name, self._selection, self._cut)

    # Windows have no ragged columns.

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Raise `TypeError`."""
        self._not_ragged(name)

    def read_ranges(self, name: str, rows: Rows) -> NDArray[np.int64]:
        """Raise `TypeError`."""
        self._not_ragged(name)

    def ragged_source(self, name: str, selection: Selection) -> tuple[RaggedFiles, Selection]:
        """Raise `TypeError`."""
        self._not_ragged(name)

    def _not_ragged(self, name: str) -> NoReturn:
        raise TypeError(f"column {name!r} of windows of {self.path} is not ragged")
