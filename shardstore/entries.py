"""What a store knows of its columns: how each is cut, and the sizes and checksums of its shard files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.schema import ArrayLayout, Chunking, Field, power_of_two_at_most
from shardstore.shardfile import ShardRecord

# Rows of a ragged column do not begin where chunks do: of so many chunks that are read together, one more is decoded.
_RAGGED_CHUNKS = 16


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a store: how it is cut, and the size and footer checksum of each of its shard files.

    Attributes:
        layout: field, codec, shard and chunk rows.
        rows: how many rows it has.
        nbytes: int64 `(shards,)`, each shard file's size.
        footer_crc32c: int64 `(shards,)`, each footer's CRC32C.
    """

    layout: ArrayLayout
    rows: int
    nbytes: NDArray[np.int64]
    footer_crc32c: NDArray[np.int64]

    def record(self, shard: int) -> ShardRecord:
        """Return what is known of one shard file."""
        return ShardRecord(int(self.nbytes[shard]), int(self.footer_crc32c[shard]))

    @property
    def keys(self) -> list[str]:
        """The paths of all shard files within the store, in order."""
        return self.layout.shard_keys(self.rows)


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
