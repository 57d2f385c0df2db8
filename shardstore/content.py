"""What stored numbers must be besides what was written: ranges end to end, text in UTF-8, codes of known categories.

The bytes are known to be those that were written. So what is found here is what a writer did wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.access import AccessOptions
from shardstore.damage import Damage
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.files import Directory
from shardstore.readers.opening import open_reader
from shardstore.readers.shared import Shared
from shardstore.shardfile import footer_nbytes, read_at
from shardstore.shards import open_shard

_ROWS_AT_ONCE = 1 << 16
_NBYTES_AT_ONCE = 4 << 20
Blocks = Iterator[tuple[int, NDArray[Any]]]


def range_damages(directory: Directory, column: ColumnEntry) -> Iterator[Damage]:
    """Look whether the rows of a ragged column lie end to end: windows over them rely on it."""
    if column.ranges is None:
        return
    end = 0
    for first, ranges in _blocks(directory, column.ranges):
        begins = np.concatenate([[end], ranges[:-1, 1]])
        wrong = (ranges[:, 0] != begins) | (ranges[:, 1] < ranges[:, 0])
        if wrong.any():
            yield _wrong_row(column.ranges, first + int(wrong.argmax()), "the rows do not lie end to end")
            return
        end = int(ranges[-1, 1])
    if end != column.data.rows:
        last = column.ranges.rows
        reason = f"the rows do not lie end to end: they end at item {end:,} of {column.data.rows:,}"
        yield Damage(column.ranges.layout.field.name, reason, None, (max(0, last - 1), last))


def content_damages(directory: Directory, column: ColumnEntry) -> Iterator[Damage]:
    """Look whether what a column holds is what its type says, and its padding zeros; yields the first thing of each."""
    for array in column.arrays:
        yield from _padding_damages(directory, array)
    if column.field.kind == "utf8":
        yield from _text_damages(directory, column)
    elif column.field.kind == "categorical":
        count = len(column.field.categories)
        yield from _first_wrong(
            directory,
            column.data,
            lambda codes: (codes < 0) | (codes >= count),
            f"a code of none of {count:,} categories",
        )
    elif column.field.stored_dtype == np.bool_:
        yield from _first_wrong(
            directory, column.data, lambda values: values.view(np.uint8) > 1, "a bool that is neither 0 nor 1"
        )


def _blocks(directory: Directory, entry: ArrayEntry) -> Blocks:
    """Yield all rows of an array, some at a time, each time with the number of the first."""
    reader = open_reader(directory, entry, Shared(AccessOptions("streaming")))
    size = max(1, min(_ROWS_AT_ONCE, _NBYTES_AT_ONCE // max(1, entry.layout.field.row_nbytes)))
    for start in range(0, entry.rows, size):
        yield start, reader.slice(start, min(start + size, entry.rows))


def _first_wrong(
    directory: Directory, entry: ArrayEntry, is_wrong: Callable[[NDArray[Any]], NDArray[np.bool_]], what: str
) -> Iterator[Damage]:
    for first, rows in _blocks(directory, entry):
        wrong = is_wrong(rows).reshape(len(rows), -1).any(axis=1)
        if wrong.any():
            yield _wrong_row(entry, first + int(wrong.argmax()), what)
            return


def _padding_damages(directory: Directory, entry: ArrayEntry) -> Iterator[Damage]:
    """Look at what is behind the last row in its chunk, which other programs see; compressed chunks are left alone."""
    layout = entry.layout
    missing = -entry.rows % layout.chunk_rows
    if not layout.codec.is_raw or not missing or not layout.field.row_nbytes:
        return
    shard = layout.num_shards(entry.rows) - 1
    nbytes = missing * layout.field.row_nbytes
    file = open_shard(directory, entry, shard)
    try:
        padding = read_at(file.descriptor, nbytes, file.record.nbytes - footer_nbytes(layout.slots) - nbytes)
    finally:
        os.close(file.descriptor)
    if padding.strip(b"\0"):
        chunk = entry.rows % layout.shard_rows // layout.chunk_rows
        yield Damage(layout.shard_key(shard), "the places behind the last row are not zero", chunk)


def _text_damages(directory: Directory, column: ColumnEntry) -> Iterator[Damage]:
    """Look whether each row is UTF-8: all of a block's rows one after the other are, and each begins a character."""
    assert column.ranges is not None
    reader = open_reader(directory, column.data, Shared(AccessOptions("streaming")))
    for first, ranges in _blocks(directory, column.ranges):
        for start, stop in _pieces(ranges):
            begin = int(ranges[start, 0])
            values = reader.slice(begin, int(ranges[stop - 1, 1]))
            if not _is_text(values, ranges[start:stop] - begin):
                row = next(row for row in range(start, stop) if not _is_text(*_row(values, ranges[row] - begin)))
                yield _wrong_row(column.ranges, first + row, "the text is not UTF-8")
                return


def _pieces(ranges: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of some megabytes of items, or of one row."""
    start = 0
    while start < len(ranges):
        stop = int(np.searchsorted(ranges[:, 1], ranges[start, 0] + _NBYTES_AT_ONCE, side="right"))
        yield start, max(start + 1, stop)
        start = max(start + 1, stop)


def _row(values: NDArray[np.uint8], bounds: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    start, stop = bounds.tolist()
    return values[start:stop], np.array([[0, stop - start]])


def _is_text(values: NDArray[np.uint8], ranges: NDArray[np.int64]) -> bool:
    try:
        str(values.data, "utf-8")
    except UnicodeDecodeError:
        return False
    begins = ranges[ranges[:, 0] < ranges[:, 1], 0]
    return not (values[begins] & 0xC0 == 0x80).any()


def _wrong_row(entry: ArrayEntry, row: int, reason: str) -> Damage:
    shard, local = divmod(row, entry.layout.shard_rows)
    return Damage(entry.layout.shard_key(shard), reason, local // entry.layout.chunk_rows, (row, row + 1))
