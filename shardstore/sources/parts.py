"""`Part`: the rows that one array gives to one column."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.column_types import ColumnType, parse_type
from shardstore.encoding import ColumnEncoder
from shardstore.errors import SchemaError, SourceError
from shardstore.ragged import Values
from shardstore.schema import Field
from shardstore.sources.npy import ArraySource, little_endian
from shardstore.sources.split import Cut


@dataclass(frozen=True)
class Part:
    """The rows that one array gives to one column.

    Attributes:
        array: where they are read.
        field: the column as this array has it.
        member: the structured dtype's field to take, or None.
        cut: the part of the last axis to take, with its cast.
        declared: what the rows that are read have yet to be made into, or None: they are stored as they are.
    """

    array: ArraySource
    field: Field
    member: str | None
    cut: Cut
    declared: ColumnType | None = None

    @property
    def rows(self) -> int:
        """Rows of the array."""
        return self.array.header.shape[0]

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.array.label

    @property
    def rows_label(self) -> str:
        """What says how many rows there are."""
        return self.array.label

    @property
    def arrays(self) -> tuple[ArraySource, ...]:
        """All that is read."""
        return (self.array,)

    @property
    def sequential(self) -> bool:
        """Whether blocks can only be read in order."""
        return self.array.sequential

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.rows * self.field.row_nbytes if self.declared is None else self.array.header.data_nbytes

    @property
    def row_form(self) -> str:
        """Dtype and shape of the array's rows, before any cut; of a structured array only the column's own field."""
        header = self.array.header
        if self.member is not None:
            return str(self.field)
        shape = "×".join(map(str, header.shape[1:]))
        return f"{little_endian(header.dtype)}[{shape}]" if shape else str(little_endian(header.dtype))

    def read(self, start: int, stop: int, block_rows: int) -> Iterator[NDArray[Any]]:
        """Yield rows `[start, stop)` in blocks, C-contiguous and little-endian; undeclared, of the field's dtype.

        A block is valid until the next one; unless the order, byte order or cut differ it is not a copy.

        Raises:
            SourceError: if a value would not survive its cast, or the file ends early.
        """
        with self.array.open() as reader:
            for first in range(start, stop, block_rows):
                block = reader.read(first, min(first + block_rows, stop))
                yield self._convert(block if self.member is None else block[self.member], first)

    def blocks(self, most_rows: int, most_nbytes: int | None = None) -> Generator[Values, None, None]:
        """Yield all rows in order, in blocks of at most so many rows, and of at most so many bytes or one row."""
        if most_nbytes is not None:
            row_nbytes = self.array.header.data_nbytes // max(1, self.rows)
            most_rows = min(most_rows, max(1, most_nbytes // max(1, row_nbytes)))
        yield from self.read(0, self.rows, most_rows)

    def _convert(self, block: NDArray[Any], first_row: int) -> NDArray[Any]:
        block = self.cut.apply(block)
        if self.cut.cast is None:
            dtype = little_endian(block.dtype)
            return np.ascontiguousarray(block, dtype).reshape(block.shape)
        result, changed = self.cut.cast.apply(np.ascontiguousarray(block))
        if changed is not None:
            row = first_row + changed // max(1, block[0].size)
            hint = "; write @~DTYPE to allow rounding" if self.cut.cast.dtype.kind in "fc" else ""
            raise SourceError(
                f"{self.array.label}, row {row:,}: the value {block.reshape(-1)[changed]} of column "
                f"{self.field.name!r} would change in a cast to {self.cut.cast.dtype}{hint}"
            )
        return result


def make_part(
    name: str,
    array: ArraySource,
    member: str | None = None,
    cut: Cut | None = None,
    declared: ColumnType | None = None,
) -> Part:
    """Return the rows that an array gives to a column.

    Args:
        name: the column's name.
        array: the array.
        member: the structured dtype's field to take, or None.
        cut: the part of the last axis to take, or None.
        declared: the column's type, where the user said it. Fixed-width strings become text without it.

    Raises:
        SchemaError: if the array cannot be, or be made into, rows of the column.
    """
    dtype, row_shape = array.header.dtype, array.header.shape[1:]
    if member is not None:
        dtype = dtype[member]
    if dtype.subdtype is not None:
        dtype, inner = dtype.subdtype
        row_shape = (*row_shape, *inner)
    if dtype.names is not None:
        raise SchemaError(f"{array.label}: column {name!r} is itself structured; flatten its fields first")
    cut = cut or Cut(name)
    dtype, row_shape = cut.result(dtype, row_shape, array.label)
    dtype = little_endian(dtype)
    if declared is None and dtype.kind == "U":
        declared = parse_type(name, "utf8")
    if declared is not None and declared.kind == "fixed" and declared.dtype == dtype:
        declared = None
    try:
        if declared is None:
            return Part(array, Field.of(name, dtype, row_shape), member, cut)
        _check_row_shape(name, declared, row_shape)
        return Part(array, field_of_type(name, declared, np.empty((0, *row_shape), dtype)), member, cut, declared)
    except SchemaError as error:
        raise SchemaError(f"{array.label}: {error}") from None


def field_of_type(name: str, declared: ColumnType, empty: Values) -> Field:
    """Return the column that rows like those of `empty`, which has none, become by a type."""
    encoder = ColumnEncoder(name, declared)
    return encoder.field(encoder.encode(empty, None, 0))


def _check_row_shape(name: str, declared: ColumnType, row_shape: tuple[int, ...]) -> None:
    if declared.kind in ("utf8", "binary") and row_shape:
        raise SchemaError(
            f"column {name!r} has rows of shape {row_shape}, but a row of a {declared.kind} column is one value: "
            "split its last axis, or declare it categorical"
        )
    if declared.kind == "ragged" and not row_shape:
        raise SchemaError(
            f"column {name!r} has single values for rows, but a row of a ragged column is an array: name the files of "
            f'its values and offsets, {{"{name}": {{"values": ..., "offsets": ...}}}}'
        )
