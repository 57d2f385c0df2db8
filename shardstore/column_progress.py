"""What is finished of columns that are being written row after row, and taking it over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardstore import files
from shardstore.column_bodies import column_body, read_column
from shardstore.columns import ArrayStart, ColumnStart
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import ShardStoreError
from shardstore.files import remove_others
from shardstore.journals import JOURNAL_FILE, read_journal, write_journal
from shardstore.schema import ColumnLayout
from shardstore.shards import open_shard

_KIND = "rows"
# What reading JSON values raises that are not what was written.
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, ShardStoreError)


@dataclass(frozen=True)
class ColumnProgress:
    """What is finished of a column.

    Attributes:
        entry: the column so far: only whole shards.
        items_at: of a ragged column, how many items the rows of each finished shard of rows end with.
    """

    entry: ColumnEntry
    items_at: tuple[int, ...] = ()

    @property
    def layout(self) -> ColumnLayout:
        """How the column is cut."""
        ranges = self.entry.ranges
        return ColumnLayout(self.entry.field, self.entry.data.layout, None if ranges is None else ranges.layout)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values without floats."""
        rows_of = self.entry.ranges or self.entry.data
        return {
            "rows": rows_of.rows,
            "shard_rows": rows_of.layout.shard_rows,
            "items_at": list(self.items_at),
            "column": column_body(self.entry),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ColumnProgress:
        """Read what `to_json` returns.

        Raises:
            UNREADABLE: if it is not that.
        """
        entry, counts = read_column(body["column"], body["rows"], body["shard_rows"]), body["items_at"]
        shards = 0 if entry.ranges is None else len(entry.ranges.nbytes)
        if len(counts) != shards or any(type(count) is not int for count in counts) or counts != sorted(counts):
            raise ValueError("items_at does not fit the shards of rows")
        return cls(entry, tuple(counts))

    def verified(self, store: Path) -> ColumnProgress:
        """Return what of it is there: a shard file counts if its footer is the listed one, and all before it count."""
        directory = files.Directory(store)
        data = _verified(directory, self.entry.data)
        ranges = None if self.entry.ranges is None else _verified(directory, self.entry.ranges)
        return replace(self, entry=replace(self.entry, data=data, ranges=ranges))

    @property
    def shards(self) -> int:
        """How many shards of rows can be gone on behind: of a ragged column, those whose items are in whole shards."""
        if self.entry.ranges is None:
            return len(self.entry.data.nbytes)
        ends = (0, *self.items_at)
        return max(n for n in range(len(self.entry.ranges.nbytes) + 1) if ends[n] <= self.entry.data.rows)

    def start(self, store: Path, shards: int) -> ColumnStart:
        """Return the start behind so many shards of rows.

        The shard of values in which these rows end is written again, from its own items.
        """
        data, ranges = self.entry.data, self.entry.ranges
        if ranges is None:
            return ColumnStart(ArrayStart.of(store, data, shards * data.layout.shard_rows))
        items = (0, *self.items_at)[shards]
        rows = shards * ranges.layout.shard_rows
        return ColumnStart(ArrayStart.of(store, data, items), ArrayStart.of(store, ranges, rows))

    @property
    def has_files(self) -> bool:
        """Whether rows take any bytes."""
        return bool((self.entry.ranges or self.entry.data).layout.field.row_nbytes)

    def up_to(self, shards: int) -> ColumnProgress:
        """Return the same with so many shards of rows, and the whole shards of values that these need."""
        data, ranges, items_at = self.entry.data, self.entry.ranges, self.items_at[:shards]
        if ranges is None:
            return replace(self, entry=replace(self.entry, data=_first_shards(data, shards)))
        needed = data.layout.num_shards((0, *items_at)[shards])
        entry = replace(self.entry, data=_first_shards(data, needed), ranges=_first_shards(ranges, shards))
        return ColumnProgress(entry, items_at)

    @property
    def keys(self) -> list[str]:
        """The paths of its shard files."""
        return [key for array in self.entry.arrays for key in array.keys]


def write_progress(folder: Path, columns: Mapping[str, ColumnProgress]) -> None:
    """Bring to disk what is finished of all columns that are being written in lockstep into a new store's directory."""
    write_journal(folder, {"kind": _KIND, "columns": [progress.to_json() for progress in columns.values()]})


def read_progress(folder: Path) -> dict[str, ColumnProgress]:
    """Return what `write_progress` has written, by column; nothing if that cannot be relied on."""
    body = read_journal(folder)
    if body is None or body.get("kind") != _KIND:
        return {}
    try:
        found = [ColumnProgress.from_json(column) for column in body["columns"]]
    except UNREADABLE:
        return {}
    return {progress.entry.field.name: progress for progress in found}


def take_over(folder: Path, columns: Mapping[str, ColumnProgress]) -> tuple[dict[str, ColumnProgress], int]:
    """Return what is there of all columns, and how many shards of rows all of them have; other files are removed.

    Columns whose rows have no bytes have any number of them.
    """
    there = {name: progress.verified(folder) for name, progress in columns.items()}
    shards = min((column.shards for column in there.values() if column.has_files), default=0)
    cut = {name: column.up_to(shards) if column.has_files else column for name, column in there.items()}
    kept = {JOURNAL_FILE, *(key for column in cut.values() for key in column.keys)}
    remove_others(folder, kept.__contains__)
    return cut, shards


def start_over(folder: Path) -> None:
    """Remove all files of a new store's directory."""
    remove_others(folder, lambda path: False)


def _verified(directory: files.Directory, entry: ArrayEntry) -> ArrayEntry:
    """Return the first shards of an array, up to the first whose footer is not the listed one."""
    for shard in range(len(entry.nbytes)):
        try:
            file = open_shard(directory, entry, shard)
            try:
                file.read_footer(entry)
            finally:
                os.close(file.descriptor)
        except (ShardStoreError, OSError):
            return _first_shards(entry, shard)
    return entry


def _first_shards(entry: ArrayEntry, shards: int) -> ArrayEntry:
    rows = shards * entry.layout.shard_rows
    return replace(entry, rows=rows, nbytes=entry.nbytes[:shards], footer_crc32c=entry.footer_crc32c[:shards])
