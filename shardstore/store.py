"""`Store`: an opened store, a table of all its rows and columns."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstore.cache import BoundedCache
from shardstore.errors import CorruptionError, DestinationError, FormatError, LockedError
from shardstore.manifest import ArrayEntry, ColumnEntry, Manifest
from shardstore.mapping import CannotMapError
from shardstore.opened import ColumnDirectory, OpenedStore
from shardstore.ragged import Ragged, Values
from shardstore.ragged_rows import RaggedFiles, slice_ragged, take_ragged
from shardstore.readers import CHUNK_CACHE_NBYTES, ChunkCache, ChunkReader, Reader, open_reader
from shardstore.schema import DEFAULT_SHARD_BYTES, Chunking, Field
from shardstore.selection import Rows, Selection
from shardstore.statistics.summary import DEFAULT_BINS, ColumnStatistics
from shardstore.stream import Streamable
from shardstore.table import Table

if TYPE_CHECKING:
    import zarr

    from shardstore.changing import Change
    from shardstore.column_types import ColumnType, TypeLike
    from shardstore.verify import VerifyReport

T = TypeVar("T")
_log = logging.getLogger("shardstore")


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open the store at a directory for reading.

    Raises:
        FormatError: if there is no store, or one of a later format version.
        CorruptionError: if its manifest is damaged.
    """
    store = Store(path)
    store.files.load()  # an error belongs here, not to the first read
    return store


def open_rows(rows: str | os.PathLike[str] | Streamable) -> Streamable:
    """Return what can be streamed: the store at a path, or what was given."""
    return rows if isinstance(rows, Streamable) else open_store(rows)


class StoreFiles:
    """The files of one store: its manifest and, from the first touch of a column on, that column's reader.

    Pickles as the path, and opens again when it is first used; then it has the columns that it had, and no others.
    """

    def __init__(self, path: Path, store_id: str | None = None, columns: Mapping[str, int] | None = None) -> None:
        self.path = path
        # The working directory may be another one by the time this is pickled.
        self.absolute_path = path.absolute()
        # What is meant, where that is known: which store, and by name the generations that its columns are of.
        self._meant = store_id, columns
        self._opened: OpenedStore | None = None
        self._readers: dict[str, Reader] = {}
        # One budget for the decoded chunks of all columns.
        self._chunks: ChunkCache = BoundedCache(CHUNK_CACHE_NBYTES, lambda chunk: chunk.nbytes)
        # Arrays for which the process has run out of mappings.
        self._shardwise: set[str] = set()
        self._closed = False

    @property
    def manifest(self) -> Manifest:
        """The manifest, read on first use."""
        return self._open().manifest

    def _open(self) -> OpenedStore:
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

    def load(self) -> None:
        """Read the manifest now."""
        self.manifest  # noqa: B018

    def field(self, name: str) -> Field:
        """Return what a row of a column holds."""
        return self._entry(name).field

    def chunking(self, name: str) -> Chunking:
        """Return what it takes to read rows of a column."""
        return self._entry(name).chunking

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of a fixed column, which must be in range, into the C-contiguous `out`."""
        self._attempt(self._data(name), lambda reader: reader.take(rows, out))

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of a fixed column, one after the other, into the C-contiguous `out`."""
        self._attempt(self._data(name), lambda reader: reader.take_runs(starts, stops, out))

    def read_slice(self, name: str, start: int, stop: int) -> Values:
        """Return consecutive rows of a column, as a read-only view where that needs no copy."""
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
                "of the column; run shardstore verify, and restore the file from a copy or ingest again"
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
        return StoreFiles(path, self.store_id)

    def verify(self, progress: bool | None) -> VerifyReport:
        """Check every byte against its checksums."""
        from shardstore.verify import verify_store  # with the threads that only this needs

        return verify_store(self._open().directory, self._open().whole, progress)

    def close(self) -> None:
        """Let go of all files. Arrays that show a mapping keep it until they go themselves."""
        self._closed = True
        self._readers.clear()

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
        except CannotMapError:
            # Give up the one mapping of the array, from now on.
            self._shardwise.add(path)
            self._readers.pop(path, None)
        # Behind the handler, so that nothing holds on to the reader whose mappings must go.
        return read(self._reader(path, entry))

    def _reader(self, path: str, entry: ArrayEntry) -> Reader:
        reader = self._readers.get(path)
        if reader is None:
            self.check_open()
            directory = ColumnDirectory(self._open(), path.split("/")[0])
            reader = open_reader(directory, entry, self._chunks, path not in self._shardwise)
            self._readers[path] = reader
        return reader

    def __reduce__(self) -> tuple[Any, ...]:
        meant = self._meant
        if self._opened is not None and meant[1] is None:
            entries = self.manifest.columns
            meant = self.store_id, {name: entry.since for name, entry in entries.items()}
        return StoreFiles, (self.absolute_path, *meant)


class Store(Table):
    """A store, opened for reading. Made by `shardstore.open`; a context manager.

    Nothing but the manifest is read until rows are asked for. Pickles as its path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._files = StoreFiles(Path(path))
        # Statistics that could not be kept in the store.
        self._stats: dict[str, ColumnStatistics] = {}

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._files.path

    @property
    def files(self) -> StoreFiles:
        """The store's files."""
        return self._files

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return self._files.columns

    @property
    def selection(self) -> Selection:
        """All rows."""
        return self._files.all_rows

    @property
    def manifest(self) -> Manifest:
        """What the store says of itself: layout, checksums, provenance."""
        return self._files.manifest

    @property
    def generation(self) -> int:
        """How many commits made the store: 1 when it is new."""
        return self.manifest.generation

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all shard files on disk."""
        return sum(column.stored_nbytes for column in self.manifest.columns.values())

    @property
    def chunks_decoded(self) -> int:
        """How many compressed chunks this process has decoded for the open store: a measure of wasted work."""
        return self._files.chunks_decoded

    def verify(self, progress: bool | None = None) -> VerifyReport:
        """Check every byte of the store against its checksums, and return what was found.

        Args:
            progress: whether to draw a progress bar; None draws one on a terminal.
        """
        return self._files.verify(progress)

    @property
    def stats(self) -> dict[str, ColumnStatistics]:
        """Statistics of all columns, by name: those that the store keeps, and what is missing computed now and kept.

        They are computed from all rows, a block at a time. Where the store cannot be written to, they are computed once
        for this object.
        """
        kept = self.kept_stats
        missing = [name for name in self.columns if name not in kept]
        if missing:
            kept |= self.compute_stats(missing)
        return {name: kept[name] for name in self.columns}

    @property
    def kept_stats(self) -> dict[str, ColumnStatistics]:
        """Statistics of those columns of which there are any without reading the columns."""
        from shardstore.statistics.kept import kept_statistics

        return {**self._stats, **kept_statistics(self.manifest)}

    def compute_stats(
        self, columns: str | Sequence[str] | None = None, bins: int = DEFAULT_BINS
    ) -> dict[str, ColumnStatistics]:
        """Compute statistics of columns anew and keep them in the store; see `Table.compute_stats`."""
        from shardstore.statistics.kept import keep_statistics

        manifest = self.manifest
        found = super().compute_stats(columns, bins)
        try:
            with self._changing() as change:
                keep_statistics(change, found, manifest)
        except (DestinationError, LockedError) as error:
            _log.info("statistics are not kept: %s", error)
            self._stats |= found
        return found

    def add_column(
        self,
        name: str,
        values: Any,
        *,
        columns: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        codec: str = "raw",
        type: ColumnType | TypeLike | None = None,
        fingerprint: str | None = None,
        replace: bool = False,
        shard_bytes: int | str = DEFAULT_SHARD_BYTES,
        chunk_bytes: int | str | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Add a column: rows that are there, or what a function makes of other columns, computed batch by batch.

        It appears when it is complete. Views and streams that exist go on with the columns that they have.
        A function is called with dicts of fresh arrays (or `Ragged`) of consecutive rows, in order, and returns as many
        rows. The manifest keeps a fingerprint of it and of its sources' data. Called again with the same function,
        `add_column` does nothing; an interrupted call is gone on with behind the last finished shard of rows.

        Args:
            name: its name.
            values: an array, a list, a `Ragged` or a `Column` of one row per row of the store; or an iterable of blocks
                of rows; or a function of batches.
            columns: what a function gets; all by default.
            batch_size: how many rows it gets at a time; by default some megabytes of them.
            codec: see `shardstore.codecs`.
            type: what its rows are where the first ones do not tell; see `shardstore.column_types`.
            fingerprint: what tells the function from others, instead of its code (`shardstore.fingerprints`); needed
                where it holds on to what has no plain value, such as a model. For rows, a text that is kept with them.
            replace: whether to drop another column of this name first, in a commit of its own.
            shard_bytes: of ragged rows, target size of the shard files of their values.
            chunk_bytes: target size of a decoded chunk.
            progress: whether to draw a progress bar for a function; None draws one on a terminal.

        Raises:
            SchemaError: if there is such a column, made differently or of sources that have changed since (a *stale*
                one), or the rows do not fit; nothing is left of them then.
            SourceError: if the function or iterable raises; what was finished of a function's rows is kept.
            KeyError, ValueError, TypeError: if an argument makes no sense, or a function has no fingerprint of its own.
            LockedError, FormatError, DestinationError: if the store cannot be changed.
        """
        from shardstore.adding import add_column
        from shardstore.addition import AddOptions

        options = AddOptions(columns, batch_size, codec, type, fingerprint, replace, shard_bytes, chunk_bytes, progress)
        with self._changing() as change, Store(self._files.absolute_path) as current:
            add_column(change, current, name, values, options)
        return self

    def drop_column(self, name: str) -> Self:
        """Take a column out of the store, and remove its files.

        Raises:
            KeyError: if there is none of this name.
            SchemaError: if it is the only one.
        """
        with self._changing() as change:
            change.drop(name)
        return self

    def rename_column(self, old: str, new: str) -> Self:
        """Give a column another name, in its place in the order. Columns that were made from it are stale then.

        Raises:
            KeyError: if there is none of the old name.
            SchemaError: if the new name cannot be a column's, or is taken.
        """
        with self._changing() as change:
            change.rename(old, new)
        return self

    def stale_columns(self) -> tuple[str, ...]:
        """Return the names of columns that were made of columns which are no longer there, or not the same."""
        from shardstore.lineage import stale_columns

        return stale_columns(self.manifest)

    @contextmanager
    def _changing(self) -> Iterator[Change]:
        """Change the store, under its lock; then this object has it as it is after the change."""
        from shardstore.changing import changing

        self._files.check_open()
        with changing(self._files.absolute_path, self._files.store_id) as change:
            try:
                yield change
            finally:
                if change.manifest.generation != self.generation:
                    self._files = self._files.renewed()

    def zarr(self) -> zarr.Group:
        """Return the store as zarr-python sees it, read-only. Imports zarr."""
        import zarr

        return zarr.open_group(self._files.absolute_path, mode="r")

    def close(self) -> None:
        """Let go of all files; later reads raise `ValueError`. Arrays that were read stay valid."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
