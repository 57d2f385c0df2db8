"""`Store`: an opened store, a table of all its rows and columns."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from shardstore.cache import BoundedCache
from shardstore.errors import FormatError
from shardstore.files import Directory
from shardstore.manifest import Manifest, load_manifest
from shardstore.mapping import CannotMapError
from shardstore.readers import CHUNK_CACHE_NBYTES, ChunkCache, ChunkReader, Reader, open_reader
from shardstore.schema import ColumnLayout, Field
from shardstore.selection import Rows, Selection
from shardstore.stream import Streamable
from shardstore.table import Table

if TYPE_CHECKING:
    import zarr

    from shardstore.verify import VerifyReport


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

    Pickles as the path, and opens again when it is first used.
    """

    def __init__(self, path: Path, store_id: str | None = None) -> None:
        self.path = path
        # The working directory may be another one by the time this is pickled.
        self.absolute_path = path.absolute()
        self._store_id = store_id
        self._opened: tuple[Directory, Manifest] | None = None
        self._readers: dict[str, Reader] = {}
        # One budget for the decoded chunks of all columns.
        self._chunks: ChunkCache = BoundedCache(CHUNK_CACHE_NBYTES, lambda chunk: chunk.nbytes)
        # Columns for which the process has run out of mappings.
        self._shardwise: set[str] = set()
        self._closed = False

    @property
    def manifest(self) -> Manifest:
        """The manifest, read on first use."""
        return self._open()[1]

    def _open(self) -> tuple[Directory, Manifest]:
        if self._opened is None:
            directory, manifest = load_manifest(self.path)
            if self._store_id not in (None, manifest.store_id):
                raise FormatError(
                    f"{self.path}: expected the store {self._store_id}, found {manifest.store_id}: "
                    "it was replaced; open it again"
                )
            self._opened = directory, manifest
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
        """Return a column's dtype and row shape."""
        return self.manifest.columns[name].layout.field

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of a column, which must be in range, into the C-contiguous `out`."""
        try:
            self._reader(name).take(rows, out)
            return
        except CannotMapError:
            self._read_shardwise(name)
        # Behind the handler, so that nothing holds on to the reader whose mappings must go.
        self._reader(name).take(rows, out)

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of a column, one after the other, into the C-contiguous `out`."""
        try:
            self._reader(name).take_runs(starts, stops, out)
            return
        except CannotMapError:
            self._read_shardwise(name)
        self._reader(name).take_runs(starts, stops, out)

    def read_slice(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive rows of a column, as a read-only view where that needs no copy."""
        try:
            return self._reader(name).slice(start, stop)
        except CannotMapError:
            self._read_shardwise(name)
        return self._reader(name).slice(start, stop)

    def slices_are_views(self, name: str) -> bool:
        """Whether no slice of the column needs a copy."""
        return self._reader(name).slices_are_views

    def layout(self, name: str) -> ColumnLayout:
        """Return how a column is cut."""
        return self.manifest.columns[name].layout

    @property
    def store_id(self) -> str:
        """What tells this store from all others, on every machine."""
        return self.manifest.store_id

    @property
    def chunks_decoded(self) -> int:
        """How many chunks of all columns were decoded since they were opened, in this process."""
        return sum(reader.chunks_decoded for reader in self._readers.values() if isinstance(reader, ChunkReader))

    def verify(self, progress: bool | None) -> VerifyReport:
        """Check every byte against its checksums."""
        from shardstore.verify import verify_store  # with the threads that only this needs

        return verify_store(*self._open(), progress)

    def close(self) -> None:
        """Let go of all files. Arrays that show a mapping keep it until they go themselves."""
        self._closed = True
        self._readers.clear()

    def _reader(self, name: str) -> Reader:
        reader = self._readers.get(name)
        if reader is None:
            if self._closed:
                raise ValueError(f"the store {self.path} is closed")
            directory, manifest = self._open()
            contiguous = name not in self._shardwise
            reader = open_reader(directory, manifest.columns[name], manifest.rows, self._chunks, contiguous)
            self._readers[name] = reader
        return reader

    def _read_shardwise(self, name: str) -> None:
        """Give up the one mapping of a column, from now on."""
        self._shardwise.add(name)
        self._readers.pop(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        store_id = self._opened[1].store_id if self._opened is not None else self._store_id
        return StoreFiles, (self.absolute_path, store_id)


class Store(Table):
    """A store, opened for reading. Made by `shardstore.open`; a context manager.

    Nothing but the manifest is read until rows are asked for. Pickles as its path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._files = StoreFiles(Path(path))

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
        return sum(int(entry.nbytes.sum()) for entry in self.manifest.columns.values())

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
