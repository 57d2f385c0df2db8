"""What a store knows of its columns: how each is cut, and the sizes and checksums of its shard files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardstore.schema import ArrayLayout, Chunking, Field, power_of_two_at_most
from shardstore.shardfile import ShardRecord

# The key of a column's `extra` that holds statistics of all its rows.
STATISTICS = "statistics"
# Rows of a ragged column do not begin where chunks do: of so many chunks that are read together, one more is decoded.
_RAGGED_CHUNKS = 16


class Successor(NamedTuple):
    """A shard file that was written in the place of a shorter one.

    Attributes:
        shard: number of the shard.
        generation: that of the commit which put it there. It has a name of its own until it gets the shard's.
    """

    shard: int
    generation: int


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a store: how it is cut, and the size and footer checksum of each of its shard files.

    Attributes:
        layout: field, codec, shard and chunk rows.
        rows: how many rows it has.
        nbytes: int64 `(shards,)`, each shard file's size.
        footer_crc32c: int64 `(shards,)`, each footer's CRC32C.
        successor: the last shard file that took the place of another one, or None.
        rows_on_disk: how many rows the shard files hold: more than `rows` where these are an earlier generation's; None
            for as many.
    """

    layout: ArrayLayout
    rows: int
    nbytes: NDArray[np.int64]
    footer_crc32c: NDArray[np.int64]
    successor: Successor | None = None
    rows_on_disk: int | None = None

    def record(self, shard: int) -> ShardRecord:
        """Return what is known of one shard file."""
        return ShardRecord(int(self.nbytes[shard]), int(self.footer_crc32c[shard]))

    @property
    def keys(self) -> list[str]:
        """The paths of all shard files within the store, in order."""
        return self.layout.shard_keys(self.rows)

    def names(self, shard: int) -> tuple[str, ...]:
        """Return the paths at which a shard file may be: the first of them at which there is one."""
        key = self.layout.shard_key(shard)
        if self.successor is None or self.successor.shard != shard:
            return (key,)
        return (successor_key(key, self.successor.generation), key)

    def rows_in_file(self, shard: int) -> int:
        """Return how many rows a shard file holds."""
        return self.layout.rows_in_shard(shard, self.rows if self.rows_on_disk is None else self.rows_on_disk)

    def is_growing(self, shard: int) -> bool:
        """Whether a longer file may take the place of a shard's: that of the last one, while it is short."""
        return self.rows_in_file(shard) < self.layout.shard_rows

    def up_to(self, rows: int) -> ArrayEntry:
        """Return the same array with its first rows only."""
        shards = self.layout.num_shards(rows)
        on_disk = self.rows if self.rows_on_disk is None else self.rows_on_disk
        successor = self.successor if self.successor is not None and self.successor.shard < shards else None
        return ArrayEntry(self.layout, rows, self.nbytes[:shards], self.footer_crc32c[:shards], successor, on_disk)


def successor_key(key: str, generation: int) -> str:
    """Return the path of a shard file that is to take the place of another one at `key`."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/.{name}.tail-{generation}"


@dataclass(frozen=True)
class ColumnEntry:
    """One column of a store.

    Attributes:
        field: what a row holds.
        data: the array of the rows; of a ragged column, that of its values.
        ranges: of a ragged column, int64 `(rows, 2)`: the first item of each row and one past its last; else None.
        extra: what else the manifest keeps of the column, as plain JSON values without floats. Readers of rows must
            not need it.
        unknown: keys of the column's manifest entry that this release does not know, and `"ranges"` with those of its
            ranges. They are kept.
    """

    field: Field
    data: ArrayEntry
    ranges: ArrayEntry | None = None
    extra: Mapping[str, Any] = dataclass_field(default_factory=dict)
    unknown: Mapping[str, Any] = dataclass_field(default_factory=dict)

    @property
    def since(self) -> int:
        """The generation of the commit that made the column's files: with the name, what tells them from others."""
        since = self.extra.get("since", 1)
        return since if type(since) is int else 1

    @property
    def arrays(self) -> tuple[ArrayEntry, ...]:
        """The arrays that make up the column."""
        return (self.data,) if self.ranges is None else (self.data, self.ranges)

    @property
    def nbytes(self) -> int:
        """Decoded bytes of all rows."""
        return sum(entry.rows * entry.layout.field.row_nbytes for entry in self.arrays)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all shard files."""
        return sum(int(entry.nbytes.sum()) for entry in self.arrays)

    @property
    def num_shards(self) -> int:
        """How many shard files there are."""
        return sum(len(entry.nbytes) for entry in self.arrays)

    def array(self, name: str) -> ArrayEntry:
        """Return the array at a path in the store."""
        return next(array for array in self.arrays if array.layout.field.name == name)

    def up_to(self, rows: int, items: int) -> ColumnEntry:
        """Return the same column with its first rows only, which have so many items, and without their statistics."""
        extra = {key: value for key, value in self.extra.items() if key != STATISTICS}
        if self.ranges is None:
            return replace(self, data=self.data.up_to(rows), extra=extra)
        return replace(self, data=self.data.up_to(items), ranges=self.ranges.up_to(rows), extra=extra)

    @property
    def chunking(self) -> Chunking:
        """What it takes to read rows of the column."""
        data = self.item_chunking
        if self.ranges is None:
            return data
        rows, items = max(1, self.ranges.rows), self.data.rows
        range_nbytes = self.ranges.layout.field.row_nbytes
        chunk_rows = power_of_two_at_most(_RAGGED_CHUNKS * data.chunk_rows * rows // max(1, items))
        row_nbytes = range_nbytes + -(-items * data.row_nbytes // rows)
        return Chunking(row_nbytes, min(chunk_rows, self.ranges.layout.shard_rows), data.decoded)

    @property
    def item_chunking(self) -> Chunking:
        """What it takes to read rows of the first array: rows of a fixed column, items of a ragged one."""
        layout = self.data.layout
        row_nbytes = layout.field.row_nbytes
        return Chunking(row_nbytes, layout.chunk_rows, row_nbytes > 0 and not layout.codec.is_raw)
