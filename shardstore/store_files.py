"""`StoreFiles`: the files of one store, each opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstore.access import DEFAULT_ACCESS, AccessOptions, Budget
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import CorruptionError, FormatError
from shardstore.locks import ForkSafeLock, cached_property
from shardstore.manifest import Manifest
from shardstore.mapping import CannotMapError
from shardstore.opened import ColumnDirectory, OpenedStore
from shardstore.ragged import Ragged, Values
from shardstore.ragged_rows import RaggedFiles, slice_ragged, take_ragged
from shardstore.readers.base import Reader
from shardstore.readers.chunked import ChunkReader
from shardstore.readers.opening import open_reader, warn_of_maps
from shardstore.readers.shared import Shared
from shardstore.schema import Chunking, Field
from shardstore.selection import Rows, Selection
from shardstore.shardfile import RESTORE

if TYPE_CHECKING:
    from shardstore.verify import VerifyReport

T = TypeVar("T")


class StoreFiles:
    """The files of one store: its manifest and, from the first touch of a column on, that column's reader.

    Pickles as the path, and opens again when it is first used; then it has the columns that it had, and no others.
    """

    def __init__(
        self,
        path: Path,
        options: AccessOptions = DEFAULT_ACCESS,
        store_id: str | None = None,
        columns: Mapping[str, int] | None = None,
        generation: int | None = None,
    ) -> None:
        self.path = path
        self.options = options
        # The working directory may be another one by the time this is pickled.
        self.absolute_path = path.absolute()
        # What is meant, where that is known: which store, by name the generations that its columns are of, and which
        # generation of the store.
        self._meant = store_id, columns, generation
        self._opened: OpenedStore | None = None
        self._readers: dict[str, Reader] = {}
        self._shared = Shared(options)
        # Arrays for which the process has run out of mappings.
        self._shardwise: set[str] = set()
        self._closed = False
        self._opening = ForkSafeLock()

    @property
    def manifest(self) -> Manifest:
        """The manifest, read on first use."""
        return self._open().manifest

    def _open(self) -> OpenedStore:
        if self._opened is None:
            with self._opening:  # threads must not see two states of the store
                if self._opened is None:
                    self._opened = OpenedStore(self.path, *self._meant)
        return self._opened

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(self.manifest.columns)

    @cached_property
    def all_rows(self) -> Selection:
        """All rows of the store."""
        return Selection.all(self.manifest.rows)

    @property
    def budget(self) -> Budget:
        """What all columns share of the memory budget."""
        return self._shared.budget

    def load(self) -> None:
        """Read the manifest now."""
        self.manifest  # noqa: B018

    def field(self, name: str) -> Field:
        """Return what a row of a column holds."""
        field = self._fields.get(name)
        return self._entry(name).field if field is None else field

    @cached_property
    def _fields(self) -> dict[str, Field]:
        return {name: entry.field for name, entry in self.manifest.columns.items()}

    def version(self, name: str) -> int:
        """Return what tells a column from others that had its name: the generation that made its files."""
        return self._entry(name).since

    def chunking(self, name: str) -> Chunking:
        """Return what it takes to read rows of a column."""
        return self._entry(name).chunking

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of a fixed column, which must be in range, into the C-contiguous `out`."""
        try:
            self._readers[name].take(
                rows, out
            )  # a fixed column's name is its array's path: the way of nearly all calls
            return
        except (KeyError, CannotMapError):
            pass
        self._attempt(self._data(name), lambda reader: reader.take(rows, out))

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of a fixed column, one after the other, into the C-contiguous `out`."""
        self._attempt(self._data(name), lambda reader: reader.take_runs(starts, stops, out))

    def read_slice(self, name: str, start: int, stop: int) -> Values:
        """Return consecutive rows of a column, as a read-only view where that needs no copy."""
        try:
            return self._readers[name].slice(start, stop)
        except (KeyError, CannotMapError):
            pass
        if self.field(name).is_ragged:
            return slice_ragged(self, name, start, stop)
        return self._attempt(self._data(name), lambda reader: reader.slice(start, stop))

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Gather rows of a ragged column, which must be in range."""
        return take_ragged(self, name, rows)

    def read_ranges(self, name: str, rows: Rows) -> NDArray[np.int64]:
        """Return int64 `(rows, 2)`: the first item of each row of a ragged column and one past its last.

        Raises:
            CorruptionError: if one is not within the items.
        """
        entry = self._entry(name).ranges
        assert entry is not None
        ranges = np.empty((len(rows), 2), np.int64)
        self._attempt(entry, lambda reader: reader.take(rows, ranges))
        items = self.num_items(name)
        wrong = (ranges[:, 0] < 0) | (ranges[:, 0] > ranges[:, 1]) | (ranges[:, 1] > items)
        if wrong.any():
            row = int(rows[wrong.argmax()])
            start, stop = ranges[wrong.argmax()].tolist()
            raise CorruptionError(
                f"{self.path / name}, row {row:,}: its range [{start:,}, {stop:,}) is not within the {items:,} items "
                f"of the column; run shardstore verify; {RESTORE}"
            )
        lengths = ranges[:, 1] - ranges[:, 0]
        if lengths.sum(dtype=np.float64) > items:  # rows that are asked for twice, or else a file that claims too much
            _, first = np.unique(rows, return_index=True)
            if lengths[first].sum(dtype=np.float64) > items:
                raise CorruptionError(
                    f"{self.path / name}: some rows have more items together than the {items:,} of the column, so they "
                    f"overlap; run shardstore verify; {RESTORE}"
                )
        return ranges

    def read_items(self, name: str, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Return a fresh array of runs of consecutive items of a ragged column, one after the other."""
        return self._attempt(self._data(name), lambda reader: reader.join_runs(starts, stops))

    def read_item_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive items of a ragged column, one after the other, into the C-contiguous `out`."""
        self._attempt(self._data(name), lambda reader: reader.take_runs(starts, stops, out))

    def read_item_blocks(self, name: str, first: int, length: int, blocks: Rows, out: NDArray[Any]) -> None:
        """Read blocks of `length` items, of which number 0 begins at item `first`, into the C-contiguous `out`."""
        self._attempt(self._data(name), lambda reader: reader.take_blocks(first, length, blocks, out))

    def read_item_slice(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive items of a ragged column, as a read-only view where that needs no copy."""
        return self._attempt(self._data(name), lambda reader: reader.slice(start, stop))

    def range_slice(self, name: str, start: int, stop: int) -> NDArray[np.int64] | None:
        """Return the ranges of consecutive rows, unchecked, as a view of the file; None where that needs a copy."""
        entry = self._entry(name).ranges
        assert entry is not None
        if not self._attempt(entry, lambda reader: reader.slices_are_views):
            return None
        return self._attempt(entry, lambda reader: reader.slice(start, stop))

    def item_chunking(self, name: str) -> Chunking:
        """Return what it takes to read items of a ragged column."""
        return self._entry(name).item_chunking

    def num_items(self, name: str) -> int:
        """Return how many items all rows of a ragged column have."""
        return self._entry(name).data.rows

    def ragged_source(self, name: str, selection: Selection) -> tuple[RaggedFiles, Selection]:
        """Return where the items of a ragged column lie, and which rows there are the selected ones: here, these."""
        return self, selection

    def slices_are_views(self, name: str) -> bool:
        """Whether no slice of the column needs a copy."""
        return self._attempt(self._data(name), lambda reader: reader.slices_are_views)

    @property
    def store_id(self) -> str:
        """What tells this store from all others, on every machine."""
        return self.manifest.store_id

    @property
    def chunks_decoded(self) -> int:
        """How many chunks of all columns were decoded since they were opened, in this process."""
        return sum(reader.chunks_decoded for reader in self._readers.values() if isinstance(reader, ChunkReader))

    def renewed(self) -> StoreFiles:
        """Return the files of the same store as it is now."""
        path = self.path if self.path.absolute() == self.absolute_path else self.absolute_path
        return StoreFiles(path, self.options, self.store_id)

    # Ahead of reading

    def begin_pass(self, name: str) -> None:
        """Be told that many rows of a column will be read."""
        for entry in self._entry(name).arrays:
            self._attempt(entry, lambda reader: reader.begin_pass())

    def wants(self, name: str, count: int) -> bool:
        """Whether so many rows of a column that will be read soon should be named to `expect`."""
        reader = self._readers.get(name)
        if reader is not None:  # a fixed column's name is its array's path
            return reader.wants(count)
        return any(self._attempt(entry, lambda reader: reader.wants(count)) for entry in self._entry(name).arrays)

    def expect(self, name: str, rows: Rows) -> None:
        """Ask the system for the pages of rows that will be read soon."""
        entry = self._entry(name)
        if entry.ranges is None:
            self._attempt(entry.data, lambda reader: reader.expect(rows))
            return
        self._attempt(entry.ranges, lambda reader: reader.expect(rows))
        ranges = self.read_ranges(name, rows)
        self.expect_items(name, ranges[:, 0], ranges[:, 1])

    def expect_items(self, name: str, starts: Rows, stops: Rows) -> None:
        """Ask the system for the pages of runs of items of a ragged column that will be read soon."""
        self._attempt(self._data(name), lambda reader: reader.expect_runs(starts, stops))

    def expect_run(self, name: str, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""
        entry = self._entry(name)
        if entry.ranges is not None and start < stop:
            self._attempt(entry.ranges, lambda reader: reader.expect_run(start, stop))
            start, stop = self._items_of(name, start, stop)
        self.expect_item_run(name, start, stop)

    def expect_item_run(self, name: str, start: int, stop: int) -> None:
        """The same for items of a ragged column."""
        self._attempt(self._data(name), lambda reader: reader.expect_run(start, stop))

    def populate(self, name: str, start: int, stop: int, stopped: Callable[[], bool]) -> None:
        """Bring consecutive rows into the page cache and the page tables, where the budget keeps them there."""
        entry = self._entry(name)
        if entry.ranges is not None and start < stop:
            self._attempt(entry.ranges, lambda reader: reader.populate(start, stop, stopped))
            start, stop = self._items_of(name, start, stop)
        self.populate_items(name, start, stop, stopped)

    def warm(self, name: str) -> None:
        """Bring all of a raw column into the page cache, and into the page tables where the budget keeps it there."""
        for entry in self._entry(name).arrays:
            self._attempt(entry, lambda reader: reader.warm())

    def populate_items(self, name: str, start: int, stop: int, stopped: Callable[[], bool]) -> None:
        """The same for items of a ragged column."""
        self._attempt(self._data(name), lambda reader: reader.populate(start, stop, stopped))

    def _items_of(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """Return the first item of consecutive rows and one past the last; rows lie end to end."""
        ranges = self.read_ranges(name, np.array([start, stop - 1]))
        return int(ranges[0, 0]), int(ranges[1, 1])

    def check_budget(self, nbytes: int, what: str, advice: str) -> None:
        """Raise `ValueError` if buffers of so many bytes do not fit the memory budget that the user has set."""
        self._shared.budget.check(nbytes, what, advice)

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""
        return self._shared.budget.buffer_nbytes

    def mapped_ranges(self) -> list[tuple[int, int]]:
        """Return address and bytes of the pages of each shard file that is mapped now."""
        return [place for reader in list(self._readers.values()) for place in reader.mapped_ranges]

    def held_nbytes(self) -> int:
        """Return how many bytes of decoded chunks are held now."""
        return self._shared.chunks.size

    def verify(self, progress: bool | None, deep: bool) -> VerifyReport:
        """Check every byte against its checksums, and if it is to be deep, what the bytes mean."""
        from shardstore.verify import verify_store  # with the threads that only this needs

        return verify_store(self._open().directory, self._open().whole, progress, deep)

    def close(self) -> None:
        """Let go of all files. Arrays that show a mapping keep it until they go themselves."""
        self._closed = True
        self._readers.clear()
        self._shared.close()

    def check_open(self) -> None:
        """Raise `ValueError` if the store was closed."""
        if self._closed:
            raise ValueError(f"the store {self.path} is closed")

    def _entry(self, name: str) -> ColumnEntry:
        try:
            return self.manifest.columns[name]
        except KeyError:  # tables check names, so the column was there when this was pickled
            raise FormatError(
                f"{self.path}: column {name!r} was dropped or replaced since this was pickled; open the store again"
            ) from None

    def _data(self, name: str) -> ArrayEntry:
        return self._entry(name).data

    def _attempt(self, entry: ArrayEntry, read: Callable[[Reader], T]) -> T:
        """Read an array; through a mapping per shard where the process has run out of mappings."""
        path = entry.layout.field.name
        try:
            return read(self._reader(path, entry))
        except CannotMapError as error:
            # Give up the one mapping of the array, from now on.
            warn_of_maps(self.path, entry, error)
            self._shardwise.add(path)
            given_up = self._readers.pop(path, None)
            if given_up is not None:
                given_up.close()
            del given_up
        # Behind the handler, so that nothing holds on to the reader whose mappings must go.
        return read(self._reader(path, entry))

    def _reader(self, path: str, entry: ArrayEntry) -> Reader:
        reader = self._readers.get(path)
        if reader is not None:
            return reader
        with self._opening:  # of two threads, the second finds what the first has opened
            if (reader := self._readers.get(path)) is not None:
                return reader
            self.check_open()
            directory = ColumnDirectory(self._open(), path.split("/")[0])
            contiguous = path not in self._shardwise
            reader = open_reader(directory, entry, self._shared, contiguous)
            self._readers[path] = reader
        return reader

    def __reduce__(self) -> tuple[Any, ...]:
        meant = self._meant
        if self._opened is not None and meant[1] is None:
            entries = self.manifest.columns
            since = {name: entry.since for name, entry in entries.items()}
            meant = self.store_id, since, self.manifest.generation
        return StoreFiles, (self.absolute_path, self.options, *meant)
