"""The files of an array's shards: found and opened while others may append to the store.

An append puts a longer file in the place of the last one, if that is short. No other file of a column ever changes.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError, FormatError, ShardStoreError
from shardstore.files import UnfitFileError, kind_of_file
from shardstore.shardfile import RESTORE, Footer, ShardRecord, read_footer


class ShardDirectory(Protocol):
    """The directory of a store, as far as shard files are opened in it."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def outdated(self) -> str | None:
        """What happened since it was opened, if its files are no longer those that the manifest lists."""

    def open(self, name: str) -> int:
        """Open a file for reading and return its descriptor."""

    def confirm(self) -> None:
        """Raise `FormatError` if files that were opened until now may be others than the manifest lists."""

    def latest(self, entry: ArrayEntry) -> ArrayEntry:
        """Return an array as the manifest on disk has it; raise `FormatError` if its column is no longer there."""

    def stats(self, names: Iterable[str]) -> Iterator[os.stat_result | None]:
        """Yield what the system knows of each file, None if it is missing."""


@dataclass(frozen=True)
class Shard:
    """An open shard file. Whoever opened it closes the descriptor.

    Attributes:
        descriptor: open for reading.
        path: where the file was when it was opened.
        record: its size and footer checksum: those of a longer one where that took the place of the one that was meant.
        rows: how many rows it holds.
    """

    descriptor: int
    path: Path
    record: ShardRecord
    rows: int

    def read_footer(self, entry: ArrayEntry) -> Footer:
        """Read the footer and check it; raise `CorruptionError` if any of it differs from what was written."""
        return read_footer(self.descriptor, self.path, entry.layout, self.record, self.rows)


def open_shard(directory: ShardDirectory, entry: ArrayEntry, shard: int, confirm: bool = True) -> Shard:
    """Open a shard file of a store for reading, once its size is what the manifest says.

    Without `confirm`, the caller has to call the directory's `confirm` before it believes what it reads.

    Raises:
        CorruptionError: if the file is missing or has another size. Checked before anything is mapped, because
            touching a mapping past the end of its file kills the process.
        FormatError: if the store was replaced or changed so that this is no longer its file.
    """
    while True:
        name, descriptor, status = _open_first(directory, entry.names(shard))
        try:
            is_whole = _is_whole(status, int(entry.nbytes[shard]))
            if is_whole and not entry.is_growing(shard):
                if confirm:
                    directory.confirm()
                latest = entry
            else:
                # Opened first and looked at then: if the manifest still lists this file, it is the one that was opened.
                latest = directory.latest(entry)
            if _same_file(entry, latest, shard):
                if not is_whole:
                    raise _bad_shard(directory, entry, shard, status)
                opened, descriptor = descriptor, None
                assert opened is not None
                return Shard(opened, directory.path / name, entry.record(shard), entry.rows_in_file(shard))
        finally:
            if descriptor is not None:
                os.close(descriptor)
        entry = latest


def _open_first(directory: ShardDirectory, names: tuple[str, ...]) -> tuple[str, int | None, os.stat_result | None]:
    """Open the first of some files that is there; return its name, its descriptor and what the system knows of it."""
    for name in names:
        try:
            descriptor = directory.open(name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UnfitFileError as error:
            raise CorruptionError(f"{directory.path / name}: {error}, expected a shard file; {RESTORE}") from None
        return name, descriptor, os.fstat(descriptor)
    return names[-1], None, None


def _is_whole(status: os.stat_result | None, nbytes: int) -> bool:
    return status is not None and status.st_size == nbytes and stat.S_ISREG(status.st_mode)


def _same_file(one: ArrayEntry, other: ArrayEntry, shard: int) -> bool:
    return one is other or (
        one.record(shard) == other.record(shard)
        and one.names(shard) == other.names(shard)
        and one.rows_in_file(shard) == other.rows_in_file(shard)
    )


class OpenShard:
    """An open shard file, closed when nobody holds this any more."""

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, shard: int) -> None:
        self._entry = entry
        self.shard = open_shard(directory, entry, shard)
        self.descriptor = self.shard.descriptor
        weakref.finalize(self, os.close, self.descriptor).atexit = False

    def read_footer(self) -> Footer:
        """Read the footer and check it; raise `CorruptionError` if any of it differs from what was written."""
        return self.shard.read_footer(self._entry)


def check_shards(directory: ShardDirectory, entry: ArrayEntry) -> None:
    """Raise `CorruptionError` unless all shard files of an array are there and have their sizes."""
    replaced = None if entry.successor is None else entry.successor.shard
    sizes, keys = entry.nbytes.tolist(), entry.keys
    for shard, (nbytes, status) in enumerate(zip(sizes, directory.stats(keys), strict=True)):
        if shard == replaced or not _is_whole(status, nbytes):
            os.close(open_shard(directory, entry, shard).descriptor)  # which knows all names, and what is wrong


def _bad_shard(
    directory: ShardDirectory, entry: ArrayEntry, shard: int, status: os.stat_result | None
) -> ShardStoreError:
    nbytes = int(entry.nbytes[shard])
    if outdated := directory.outdated:
        return FormatError(f"{directory.path}: {outdated}; open it again")
    if status is None:
        problem = f"the shard file is missing ({nbytes:,} bytes expected)"
    elif not stat.S_ISREG(status.st_mode):
        problem = f"a {kind_of_file(status.st_mode)}, expected a shard file of {nbytes:,} bytes"
    else:
        what = "short" if status.st_size < nbytes else "overlong"
        problem = f"the shard file is {what}: expected {nbytes:,} bytes, found {status.st_size:,}"
    return CorruptionError(f"{directory.path / entry.layout.shard_key(shard)}: {problem}; {RESTORE}")
