"""`OpenedStore`: a store's directory and the manifest that was read there, and what of it still holds.

Somebody may change the store meanwhile: drop a column, and add another one of the same name. Files are opened as rows
are asked for, so each one is opened first, and then the manifest looked at: if it still has the column that was opened,
the file is that column's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import FormatError
from shardstore.files import Witness
from shardstore.manifest import METADATA_FILE, Manifest, open_directory, read_manifest


class OpenedStore:
    """An open store: its directory, and its manifest as it was then.

    Args:
        path: the store's directory.
        store_id: the store that it must be, where that is known.
        columns: the columns that are meant, where these are known: by name, `ColumnEntry.since`. Those that are no
            longer there are left out of the manifest.
        generation: the generation that is meant; None for the newest. Of a newer store it has the first rows.

    Attributes:
        directory: the open directory.
        whole: the manifest that is there.
        manifest: the same as of the generation that is meant, with the columns that are.

    Raises:
        FormatError: if there is no store, another one, or one of a later format version.
        CorruptionError: if its `zarr.json` is damaged.
    """

    def __init__(
        self,
        path: Path,
        store_id: str | None = None,
        columns: Mapping[str, int] | None = None,
        generation: int | None = None,
    ) -> None:
        self._latest: tuple[Witness | None, Manifest]
        while True:
            self.directory = open_directory(path)
            try:
                self._latest = self._read()
                break
            except FormatError:
                # Whoever overwrites a store removes the files of the old one, perhaps of the one that was opened here.
                if not self.directory.replaced:
                    raise
        self.whole = self.manifest = self._latest[1]
        if store_id not in (None, self.whole.store_id):
            raise FormatError(
                f"{path}: expected the store {store_id}, found {self.whole.store_id}: it was replaced; open it again"
            )
        if generation is not None:
            try:
                self.manifest = self.whole.at(generation)
            except FormatError as error:
                raise FormatError(f"{path}: {error}") from None
        if columns is not None:
            there = self.manifest
            kept = {name: there.columns[name] for name, since in columns.items() if _has(there, name, since)}
            self.manifest = replace(there, columns=MappingProxyType(kept))

    def _read(self) -> tuple[Witness | None, Manifest]:
        try:
            witness = Witness(self.directory, METADATA_FILE)  # first, so that it can be older than what is read
        except OSError:
            witness = None
        return witness, read_manifest(self.directory)

    def still_has(self, column: str) -> bool:
        """Whether the store on disk still has a column, and not another one of its name."""
        return _has(self._looked_at(), column, self.manifest.columns[column].since)

    def latest(self, column: str) -> ColumnEntry | None:
        """Return a column as the store on disk has it; None if it has none of this name, or another one."""
        return self._looked_at().columns[column] if self.still_has(column) else None

    def _looked_at(self) -> Manifest:
        """Return the manifest on disk, which is read again only if it is not the same file."""
        witness, manifest = self._latest
        if witness is not None and not witness.stands:
            self._latest = _, manifest = self._read()
        return manifest


def _has(manifest: Manifest, name: str, since: int) -> bool:
    entry = manifest.columns.get(name)
    return entry is not None and entry.since == since


class ColumnDirectory:
    """The directory of an open store as one column's files are opened there: never those of another column."""

    def __init__(self, opened: OpenedStore, column: str) -> None:
        self._opened = opened
        self._column = column

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._opened.directory.path

    @property
    def outdated(self) -> str | None:
        """What happened to the store since it was opened, if it no longer has the column."""
        if outdated := self._opened.directory.outdated:
            return outdated
        if self._opened.still_has(self._column):
            return None
        return f"column {self._column!r} was dropped or replaced since the store was opened"

    def open(self, name: str) -> int:
        """Open a file for reading and return its descriptor; before its bytes are believed, `confirm` has to hold."""
        return self._opened.directory.open(name)

    def confirm(self) -> None:
        """Raise `FormatError` if files that were opened until now may be another column's."""
        if not self._opened.still_has(self._column):
            raise FormatError(f"{self.path}: {self.outdated}; open it again")

    def latest(self, entry: ArrayEntry) -> ArrayEntry:
        """Return one of the column's arrays as the store on disk has it; raise `FormatError` if it has it no more."""
        column = self._opened.latest(self._column)
        if column is None:
            raise FormatError(f"{self.path}: {self.outdated}; open it again")
        return column.array(entry.layout.field.name)

    def stats(self, names: Iterable[str]) -> Iterator[os.stat_result | None]:
        """Yield what the system knows of each file, None if it is missing."""
        return self._opened.directory.stats(names)
