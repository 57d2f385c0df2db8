"""`Store`: an opened store, a table of all its rows and columns."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from shardstore.access import DEFAULT_ACCESS, Access, AccessOptions, Verification
from shardstore.errors import DestinationError, LockedError
from shardstore.manifest import Manifest
from shardstore.order import check_int
from shardstore.schema import DEFAULT_SHARD_BYTES
from shardstore.selection import Selection
from shardstore.statistics.summary import DEFAULT_BINS, ColumnStatistics
from shardstore.store_files import StoreFiles
from shardstore.stream import Streamable, column_names
from shardstore.table import Table

if TYPE_CHECKING:
    import zarr

    from shardstore.changes.commits import Change
    from shardstore.changes.vacuuming import VacuumReport
    from shardstore.column_types import ColumnType, TypeLike
    from shardstore.memory_report import MemoryReport
    from shardstore.verify import VerifyReport

_log = logging.getLogger("shardstore")


def open_store(
    path: str | os.PathLike[str],
    *,
    access: Access = "auto",
    memory_budget: int | str | None = None,
    verify: Verification = "off",
    generation: int | None = None,
) -> Store:
    """Open the store at a directory for reading.

    Args:
        path: the directory.
        access: how the pages of raw columns are used. `"auto"` keeps columns resident that fit the memory budget, and
            streams through larger ones; `"resident"` keeps all, `"streaming"` none.
        memory_budget: bytes, or a text such as `"2GiB"`: what this process may have resident of the store's files, and
            in buffers and caches for reading them. By default half of the memory that is available now.
        verify: whether raw chunks are checked against their checksums. With `"on_read"` each one is when the first of
            its rows is read, once in a process; a slice that shows the files reads all of its rows. What is damaged is
            a `CorruptionError` then. Compressed chunks are checked whenever they are decoded.
        generation: an earlier generation: the rows that the store had then, in the columns of then that it still has.
            By default the newest.

    Raises:
        ValueError, TypeError, SchemaError: if an option makes no sense.
        FormatError: if there is no store, or one of a later format version, or no such generation.
        CorruptionError: if its manifest is damaged.
    """
    if generation is not None:
        generation = check_int("generation", generation)
    store = Store(path, AccessOptions.checked(access, memory_budget, verify), generation)
    store.files.load()  # an error belongs here, not to the first read
    return store


def open_rows(rows: str | os.PathLike[str] | Streamable) -> Streamable:
    """Return what can be streamed: the store at a path, or what was given."""
    return rows if isinstance(rows, Streamable) else open_store(rows)


class Store(Table):
    """A store, opened for reading. Made by `shardstore.open`; a context manager.

    Nothing but the manifest is read until rows are asked for. Pickles as its path.
    """

    def __init__(
        self, path: str | os.PathLike[str], options: AccessOptions = DEFAULT_ACCESS, generation: int | None = None
    ) -> None:
        self._files = StoreFiles(Path(path), options, generation=generation)
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
        """How many commits made the store as it was when it was opened: 1 for a new one."""
        return self.manifest.generation

    def refresh(self) -> Self:
        """Have the store as it is on disk now: with rows and columns that others have added since it was opened.

        Views and streams that exist go on with the rows that they have.

        Raises:
            FormatError, CorruptionError: as `shardstore.open`, and if another store has its place now.
        """
        self._files.check_open()
        renewed = self._files.renewed()
        renewed.load()
        if renewed.manifest.generation != self.generation:
            self._renew(renewed)
        return self

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all shard files on disk."""
        return sum(column.stored_nbytes for column in self.manifest.columns.values())

    @property
    def chunks_decoded(self) -> int:
        """How many compressed chunks this process has decoded for the open store: a measure of wasted work."""
        return self._files.chunks_decoded

    def warm(self, columns: str | Sequence[str] | None = None) -> None:
        """Bring columns into the page cache, and those that the memory budget keeps resident into the page tables.

        Compressed columns are left out. What takes no time on a warm store takes the disk's time on a cold one.

        Args:
            columns: the columns; all by default.
        """
        names = self.columns if columns is None else self._known(column_names(columns))
        for name in names:
            self._files.warm(name)

    def verify(self, progress: bool | None = None, *, deep: bool = False) -> VerifyReport:
        """Check every byte of the store against its checksums, and return what was found.

        Args:
            deep: whether also to decode all compressed chunks, and to look whether what the columns hold is what their
                types say: texts UTF-8, codes those of categories, bools 0 or 1, padding zeros. Nothing but a program
                that writes stores wrongly makes a difference there.
            progress: whether to draw a progress bar; None draws one on a terminal.
        """
        return self._files.verify(progress, deep)

    def memory(self) -> MemoryReport:
        """Return what the store costs now: anonymous, resident, cached and mapped bytes, each by itself."""
        from shardstore.memory_report import memory_report

        return memory_report(self._files)

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
        from shardstore.changes.commits import changing
        from shardstore.statistics.kept import keep_statistics

        manifest = self.manifest
        found = super().compute_stats(columns, bins)
        try:
            self._files.check_open()
            with changing(self._files.absolute_path, self._files.store_id) as change:
                is_newest = change.manifest.generation == manifest.generation
                kept = keep_statistics(change, found, manifest)
            if kept and is_newest:
                self._renew(self._files.renewed())
            else:  # of other rows or columns than the store has now, which this object does not go on to
                self._stats |= found
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
            fingerprint: what tells the function from others, instead of its code (see
                `shardstore.changes.fingerprints`); needed where it holds on to what has no plain value, such as a
                model. For rows, a text that is kept with them.
            replace: whether to put it in the place of another column of this name once it is complete: it is added as
                `_replacing_NAME`, the other one dropped, and it gets the name, in a commit each.
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
        from shardstore.changes.adding import add_column
        from shardstore.changes.addition import AddOptions

        options = AddOptions(columns, batch_size, codec, type, fingerprint, replace, shard_bytes, chunk_bytes, progress)
        with self._changing() as change, Store(self._files.absolute_path, self._files.options) as current:
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

    def vacuum(self) -> VacuumReport:
        """Remove the files that no generation of the store needs: what interrupted changes and builds have left.

        Whoever changes the store removes most of it anyway. This removes what could be gone on with, too: a column
        whose computation was interrupted, and new stores of this name whose ingest was.

        Raises:
            LockedError: if somebody is changing the store.
            DestinationError: if files cannot be removed.
        """
        from shardstore.changes.vacuuming import vacuum

        return vacuum(self._files.absolute_path)

    def stale_columns(self) -> tuple[str, ...]:
        """Return the names of columns that were made of columns which are no longer there, or not the same."""
        from shardstore.changes.lineage import stale_columns

        return stale_columns(self.manifest)

    @contextmanager
    def _changing(self) -> Iterator[Change]:
        """Change the store, under its lock; then this object has it as it is after the change."""
        from shardstore.changes.commits import changing

        self._files.check_open()
        with changing(self._files.absolute_path, self._files.store_id) as change:
            try:
                yield change
            finally:
                if change.manifest.generation != self.generation:
                    self._renew(self._files.renewed())

    def _renew(self, files: StoreFiles) -> None:
        self._files, self._stats = files, {}  # statistics may be of columns that are others now

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
