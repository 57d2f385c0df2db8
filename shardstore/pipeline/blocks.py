"""Blocks: rows that come one by one or in batches, collected and cut into pieces of bounded size. Pure functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardstore.errors import SchemaError, ShardStoreError
from shardstore.ragged import Ragged

BLOCK_BYTES = 2 << 20
# Rows of Python objects take longer to go through than their bytes say.
MAX_COLLECTED_ROWS = 1024
MAX_REASON_LENGTH = 300

Columns = dict[str, Any]
# Of these, a shallow copy of a list is a copy.
_IMMUTABLE = frozenset({bool, int, float, complex, str, bytes, type(None)})


@dataclass(frozen=True)
class Block:
    """Some rows of a stream.

    Attributes:
        numbers: of each row its number in the stream.
        columns: by name, a list or array of the rows' values.
        nbytes: estimated size of the values in memory.
    """

    numbers: Sequence[int]
    columns: Columns
    nbytes: int = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.numbers)

    def part(self, start: int, stop: int) -> Block:
        """Return rows `[start, stop)` of the block."""
        part = {name: values[start:stop] for name, values in self.columns.items()}
        return Block(self.numbers[start:stop], part, self.nbytes * (stop - start) // max(1, self.rows))

    def halves(self) -> tuple[Block, Block]:
        """Return the first and the second half."""
        middle = self.rows // 2
        return self.part(0, middle), self.part(middle, self.rows)


@dataclass(frozen=True)
class BadRow:
    """A row that its source could not give.

    Attributes:
        number: its number in the stream.
        error: why.
        final: whether nothing can come after it, so that it cannot be skipped.
    """

    number: int
    error: Exception
    final: bool = False


@dataclass(frozen=True)
class Ended:
    """What stands at the end of the items of a source that failed for good."""

    error: Exception


def collect_rows(items: Iterable[Any], block_rows: int | None, skip: bool) -> Iterator[Block | BadRow]:
    """Collect rows into blocks: by column the list of their values.

    A block ends when it has `block_rows` rows; by default when it has 1,024 rows or its values take 2 MiB. A bad row
    comes after the block that it would be in, and ends that block unless bad rows are skipped.

    Args:
        items: mappings from column to value; an exception in place of a row that could not be read; `Ended` if nothing
            more can be read.
        block_rows: rows of a block, or None.
        skip: whether bad rows are skipped.
    """
    most_rows, most_nbytes = (block_rows, sys.maxsize) if block_rows else (MAX_COLLECTED_ROWS, BLOCK_BYTES)
    names: KeysView[str] | None = None
    numbers: list[int] = []
    rows: list[list[Any]] = []
    bad: list[BadRow] = []
    nbytes = 0
    for number, item in enumerate(items):
        error = _row_error(item, names)
        if error is None:
            names = names or dict.fromkeys(item).keys()
            # A generator may fill the same array again for its next row.
            row = [owned(item[name]) for name in names]
            numbers.append(number)
            rows.append(row)
            nbytes += sum(map(nbytes_of, row))
        else:
            bad.append(BadRow(number, error, final=isinstance(item, Ended)))
        if len(rows) >= most_rows or nbytes >= most_nbytes or (bad and not skip):
            yield from _collected(names, numbers, rows, nbytes)
            yield from bad
            numbers, rows, bad, nbytes = [], [], [], 0
    yield from _collected(names, numbers, rows, nbytes)
    yield from bad


def _collected(names: Iterable[str] | None, numbers: list[int], rows: list[list[Any]], nbytes: int) -> Iterator[Block]:
    if rows:
        columns = [list(values) for values in zip(*rows, strict=True)]
        yield Block(numbers, dict(zip(names or (), columns, strict=True)), nbytes)


def _row_error(item: Any, names: KeysView[str] | None) -> Exception | None:
    """Return why an item is no row with these columns, or None."""
    if type(item) is dict and item.keys() == names:  # nearly always
        return None
    if isinstance(item, Ended):
        return item.error
    if isinstance(item, Exception):
        return item
    if not isinstance(item, Mapping):
        return SchemaError(f"expected a row as a dict from column to value, found {_kind(item)}")
    if not item:
        return SchemaError("expected a row as a dict from column to value, found one without columns")
    if names is not None and item.keys() != names:
        return SchemaError(f"expected the columns {_listed(names)}, as in the first row, found {_listed(item)}")
    return None


def cut_batches(items: Iterable[Any], block_rows: int | None, copy: bool) -> Iterator[Block | BadRow]:
    """Cut batches into blocks of at most `block_rows` rows, by default of about 2 MiB; a small batch is a block.

    Batches without rows are left out, unless there are no rows at all: then the first tells the columns.

    Args:
        items: mappings from column to the values of some rows; or see `collect_rows`. An exception counts as a row.
        block_rows: the most rows of a block, or None.
        copy: whether blocks must stay as they are when the source changes its arrays.
    """
    number = 0
    empty: Block | None = None
    for item in items:
        if isinstance(item, Ended | Exception):
            error = item.error if isinstance(item, Ended) else item
            yield BadRow(number, error, final=isinstance(item, Ended))
            number += 1
            continue
        try:
            columns, rows = checked_columns(item, "a batch")
        except SchemaError as error:
            yield BadRow(number, error, final=True)
            return
        batch = Block(range(number, number + rows), columns, sum(map(nbytes_of, columns.values())))
        if not rows:
            empty = empty or batch
            continue
        size = block_rows or max(1, rows * BLOCK_BYTES // max(1, batch.nbytes))
        for start in range(0, rows, size):
            block = batch.part(start, min(rows, start + size))
            yield Block(block.numbers, owned(block.columns), block.nbytes) if copy else block
        number += rows
    if not number and empty is not None:
        yield empty


def checked_columns(columns: Any, what: str) -> tuple[Columns, int]:
    """Return columns of one length as a dict, and that length.

    Raises:
        SchemaError: if it is no mapping, there is no column, or they differ in length; `what` names it.
    """
    if not isinstance(columns, Mapping):
        raise SchemaError(f"{what} must be a dict from column to rows, found {_kind(columns)}")
    if not columns:
        raise SchemaError(f"{what} has no columns; for no rows, give each column no values")
    lengths: dict[str, int] = {}
    for name, values in columns.items():
        if isinstance(values, str | bytes) or not hasattr(values, "__len__") or getattr(values, "shape", None) == ():
            raise SchemaError(f"{what} has a single value in column {name!r}; expected one for each row")
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name!r} has {length:,}" for name, length in lengths.items())
        raise SchemaError(f"all columns of {what} must have the same number of rows, but {found}")
    return dict(columns), next(iter(lengths.values()))


def owned(value: Any) -> Any:
    """Return a copy of what can change: arrays, bytearrays, and lists, tuples and dicts of these."""
    if type(value) in _IMMUTABLE:
        return value
    if isinstance(value, np.ndarray | bytearray | Ragged):
        return value.copy()
    if type(value) is list:
        return value.copy() if _IMMUTABLE.issuperset(map(type, value)) else [owned(item) for item in value]
    if type(value) is tuple:
        return tuple(owned(item) for item in value)
    if type(value) is dict:
        return {key: owned(item) for key, item in value.items()}
    return value


def nbytes_of(value: Any) -> int:
    """Return about how much memory a value takes. Objects that do not tell count little."""
    if type(value) in _IMMUTABLE:
        return sys.getsizeof(value)
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(value, list | tuple):
        own = sys.getsizeof(value)
        if value and isinstance(value[0], int | float):
            return own + len(value) * sys.getsizeof(value[-1])
        return own + sum(map(nbytes_of, value))
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(map(nbytes_of, value.values()))
    return sys.getsizeof(value)


def place_of(columns: Columns, row: int) -> str | None:
    """Return the file and line that a row itself names in its columns `path` and `line`, or None."""
    path = columns["path"][row] if "path" in columns else None
    if not isinstance(path, str | os.PathLike):
        return None
    return f"{path}, line {columns['line'][row]}" if "line" in columns else str(path)


def reason_of(error: Exception) -> str:
    """Return an error as one short line: of an error of this package its message, of another its class, too."""
    text = " ".join(str(error).split())
    if not isinstance(error, ShardStoreError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]}…"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
