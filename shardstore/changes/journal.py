"""The journal of a column that is being added: which of its shard files are finished.

It lies in the column's folder, and means something only to the call that goes on with it: a column that the manifest
lists is whole, whatever its journal says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore import files
from shardstore.changes.commits import JOURNAL_FILE
from shardstore.changes.lineage import MadeBy
from shardstore.column_bodies import column_body, read_column
from shardstore.columns import Finished
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import ShardStoreError
from shardstore.manifest import encode_document, manifest_checksum
from shardstore.readers.opening import open_reader
from shardstore.readers.shared import Shared
from shardstore.schema import ColumnLayout
from shardstore.shardfile import ShardRecord, open_shard, read_footer


@dataclass(frozen=True)
class Journal:
    """What is finished of a column.

    Attributes:
        made_by: what makes it, of which columns.
        entry: the column so far: only whole shards.
        items_at: of a ragged column, how many items the rows of each finished shard of rows end with.
    """

    made_by: MadeBy
    entry: ColumnEntry
    items_at: tuple[int, ...] = ()

    @property
    def layout(self) -> ColumnLayout:
        """How the column is cut."""
        ranges = self.entry.ranges
        return ColumnLayout(self.entry.field, self.entry.data.layout, None if ranges is None else ranges.layout)

    def write(self, folder: Path) -> None:
        """Bring the journal to disk, in the place of the one before; shard files have to be there already."""
        rows_of = self.entry.ranges or self.entry.data
        body = {
            "rows": rows_of.rows,
            "shard_rows": rows_of.layout.shard_rows,
            "items_at": list(self.items_at),
            "made_by": self.made_by.to_json(),
            "column": column_body(self.entry),
        }
        files.write_file(folder / JOURNAL_FILE, encode_document({**body, "crc32c": manifest_checksum(body)}))

    @classmethod
    def read(cls, folder: Path) -> Journal | None:
        """Return the journal of a folder, or None if there is none that can be relied on."""
        try:
            body = json.loads(files.Directory(folder.parent).read(f"{folder.name}/{JOURNAL_FILE}"))
            if body.pop("crc32c") != manifest_checksum(body):
                return None
            entry = read_column(body["column"], body["rows"], body["shard_rows"])
            made_by = MadeBy.read(body["made_by"])
            return None if made_by is None else cls(made_by, entry, _items_at(body, entry))
        except _UNREADABLE:
            return None  # another one is written; nothing is lost but time


_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError),
    ShardStoreError,
)


def _items_at(body: Mapping[str, Any], entry: ColumnEntry) -> tuple[int, ...]:
    counts = body["items_at"]
    shards = 0 if entry.ranges is None else len(entry.ranges.nbytes)
    if len(counts) != shards or any(type(count) is not int for count in counts) or counts != sorted(counts):
        raise ValueError("items_at does not fit the shards of rows")
    return tuple(counts)


def take_over(store: Path, journal: Journal) -> Finished:
    """Return what can be gone on with behind a journal's shard files; unfinished files of the folder are removed.

    A shard file counts if its footer is the one that the journal lists, and all before it count. Rows of a ragged
    column count up to the end of a shard of rows whose items are all in whole shards, too. The shard of values in which
    these rows end is written again, from its own items.
    """
    directory = files.Directory(store)
    data = _verified(directory, journal.entry.data)
    if journal.entry.ranges is None:
        _sweep(store, journal.entry.field.name, data.keys)
        return Finished(data.rows, data.rows, _records(data), [], None)
    ranges, items_at = _verified(directory, journal.entry.ranges), (0, *journal.items_at)
    # What is not gone on with stays until it is written again: whoever is interrupted before has lost nothing.
    _sweep(store, journal.entry.field.name, [*data.keys, *ranges.keys])
    shards = max(n for n in range(len(ranges.nbytes) + 1) if items_at[n] <= data.rows)
    return _cut(directory, data, _first_shards(ranges, shards), items_at[shards])


def _cut(directory: files.Directory, data: ArrayEntry, ranges: ArrayEntry, items: int) -> Finished:
    whole, rest = divmod(items, data.layout.shard_rows)
    tail: NDArray[Any] | None = None
    if rest:
        reader = open_reader(directory, data, Shared())
        tail = np.array(reader.slice(items - rest, items))  # a copy: its file is written again
    return Finished(ranges.rows, items, _records(data)[:whole], _records(ranges), tail)


def _verified(directory: files.Directory, entry: ArrayEntry) -> ArrayEntry:
    """Return the first shards of an array, up to the first whose footer is not the listed one."""
    layout = entry.layout
    for shard in range(len(entry.nbytes)):
        key, record = layout.shard_key(shard), entry.record(shard)
        try:
            descriptor = open_shard(directory, key, record.nbytes)
            try:
                read_footer(descriptor, directory.path / key, layout, record, layout.rows_in_shard(shard, entry.rows))
            finally:
                os.close(descriptor)
        except (ShardStoreError, OSError):
            return _first_shards(entry, shard)
    return entry


def _first_shards(entry: ArrayEntry, shards: int) -> ArrayEntry:
    rows = shards * entry.layout.shard_rows
    return replace(entry, rows=rows, nbytes=entry.nbytes[:shards], footer_crc32c=entry.footer_crc32c[:shards])


def _records(entry: ArrayEntry) -> list[ShardRecord]:
    return [entry.record(shard) for shard in range(len(entry.nbytes))]


def _sweep(store: Path, name: str, keep: Sequence[str]) -> None:
    """Remove the other files of a column's folder: unfinished ones would be in the way."""
    kept = {*keep, f"{name}/{JOURNAL_FILE}"}
    for folder, folders, names in os.walk(store / name):
        links = [inner for inner in folders if Path(folder, inner).is_symlink()]  # nothing is written through them
        for file in [*names, *links]:
            path = Path(folder, file)
            if path.relative_to(store).as_posix() not in kept:
                path.unlink()
