"""Parts of ragged columns: rows end to end with offsets or lengths, padded rows, or an archive with a member a row."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.column_types import ColumnType
from shardstore.errors import SchemaError, SourceError
from shardstore.ragged import Ragged, offsets_of
from shardstore.schema import Field
from shardstore.sources.npy import ArraySource, NpyHeader, little_endian
from shardstore.sources.npz import NpzArray, read_members
from shardstore.sources.parts import Part, field_of_type
from shardstore.sources.row_ends import RowEnds
from shardstore.sources.split import Cut

RANGE_NBYTES = 16
_OFFSET_NBYTES = 8


@dataclass(frozen=True)
class RaggedPart:
    """The rows of one file of values, which lie end to end.

    Attributes:
        values: their items.
        ends: where each row ends.
        field: the column as these files have it.
        declared: what the rows that are read have yet to be made into, or None: they are stored as they are.
    """

    values: ArraySource
    ends: RowEnds
    field: Field
    declared: ColumnType | None = None
    sequential = True

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.ends.rows

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.values.label

    @property
    def rows_label(self) -> str:
        """What says how many rows there are."""
        return self.ends.array.label

    @property
    def arrays(self) -> tuple[ArraySource, ...]:
        """All that is read."""
        return (self.values, self.ends.array)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        each = RANGE_NBYTES if self.declared is None else _OFFSET_NBYTES
        return self.values.header.data_nbytes + each * self.rows

    @property
    def row_form(self) -> str:
        """What its rows are."""
        return str(self.field)

    @property
    def items(self) -> Part:
        """The items, as rows of an array of their own."""
        return Part(self.values, self.field.values, None, Cut(self.field.name))

    def blocks(self, most_rows: int, most_nbytes: int | None = None) -> Generator[Ragged, None, None]:
        """Yield all rows in order, in blocks of at most so many rows, and of at most so many bytes or one row."""
        header = self.values.header
        item_nbytes = header.data_nbytes // max(1, header.shape[0])
        most_items = header.shape[0] if most_nbytes is None else most_nbytes // max(1, item_nbytes)
        start = 0
        with self.values.open() as reader:
            for ends in self.ends.read(most_rows):
                while len(ends):
                    count = max(1, int(np.searchsorted(ends, start + most_items, "right")))
                    stop = int(ends[count - 1])
                    values = _plain(reader.read(start, stop))
                    yield Ragged.checked(values, np.concatenate([[0], ends[:count] - start]))
                    ends, start = ends[count:], stop


@dataclass(frozen=True)
class RangesPart:
    """Where the rows of a `RaggedPart` lie among the items of all files, as rows of an array of their own.

    Attributes:
        ends: where each row ends among the items of its own file.
        first_item: how many items the files before have.
    """

    ends: RowEnds
    first_item: int
    sequential = True

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.ends.rows

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.ends.array.label

    @property
    def arrays(self) -> tuple[ArraySource, ...]:
        """All that is read."""
        return (self.ends.array,)

    def read(self, start: int, stop: int, block_rows: int) -> Iterator[NDArray[Any]]:
        """Yield int64 `(rows, 2)`, each row's first item and one past its last, of all rows in blocks."""
        if (start, stop) != (0, self.rows):
            raise ValueError(f"ranges come in order: asked for rows {start} to {stop} of {self.rows}")
        end = self.first_item
        for block in self.ends.read(block_rows):
            ends = block + self.first_item
            yield np.stack([np.concatenate([[end], ends[:-1]]), ends], axis=1)
            end = int(ends[-1])


@dataclass(frozen=True)
class PaddedPart:
    """The rows of one file, each filled up to one length; how long they are says another.

    Attributes:
        padded: `(rows, width, *item_shape)`.
        lengths: how many of a row's items are its own: the first ones.
        field: the column as these files have it.
        declared: what the rows that are read have yet to be made into.
        items: how many items all rows have.
    """

    padded: ArraySource
    lengths: RowEnds
    field: Field
    declared: ColumnType
    items: int
    sequential = True

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.padded.header.shape[0]

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.padded.label

    @property
    def rows_label(self) -> str:
        """What says how many rows there are."""
        return self.padded.label

    @property
    def arrays(self) -> tuple[ArraySource, ...]:
        """All that is read."""
        return (self.padded, self.lengths.array)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        header = self.padded.header
        return (
            self.items * (header.data_nbytes // max(1, header.shape[0] * header.shape[1])) + _OFFSET_NBYTES * self.rows
        )

    @property
    def row_form(self) -> str:
        """What its rows are."""
        return str(self.field)

    def blocks(self, most_rows: int, most_nbytes: int | None = None) -> Generator[Ragged, None, None]:
        """Yield all rows in order, in blocks of at most so many rows, and of at most so many padded bytes or a row."""
        header = self.padded.header
        if most_nbytes is not None:
            most_rows = min(most_rows, max(1, most_nbytes // max(1, header.data_nbytes // max(1, self.rows))))
        places = np.arange(header.shape[1])
        with self.padded.open() as reader, self.lengths.array.open() as lengths_reader:
            for first in range(0, self.rows, most_rows):
                last = min(first + most_rows, self.rows)
                lengths = lengths_reader.read(first, last).astype(np.int64)
                values = _plain(reader.read(first, last)[places < lengths[:, None]])
                yield Ragged.checked(values, offsets_of(lengths))


@dataclass(frozen=True)
class MembersPart:
    """An `.npz` file each member of which is one row.

    Attributes:
        path: the file.
        members: its members, in their order.
        dtype: the dtype of all members that are not empty.
        item_shape: the shape of their items.
        field: the column as this file has it.
        declared: what the rows that are read have yet to be made into.
    """

    path: Path
    members: tuple[NpzArray, ...]
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    field: Field
    declared: ColumnType
    sequential = True

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.members)

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def rows_label(self) -> str:
        """What says how many rows there are."""
        return str(self.path)

    @property
    def header(self) -> NpyHeader:
        """What provenance keeps of it: the dtype of its items, and the number of rows for a shape."""
        return NpyHeader(self.dtype, (self.rows,), False, 0)

    @property
    def arrays(self) -> tuple[MembersPart, ...]:
        """All that is read, as one array."""
        return (self,)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(member.header.data_nbytes for member in self.members) + _OFFSET_NBYTES * self.rows

    @property
    def row_form(self) -> str:
        """What its rows are."""
        return str(self.field)

    def blocks(self, most_rows: int, most_nbytes: int | None = None) -> Generator[Ragged, None, None]:
        """Yield all rows in order, in blocks of at most so many rows, and of about so many bytes or one row."""
        dtype = little_endian(self.dtype)
        block: list[NDArray[Any]] = []
        nbytes = 0
        for row in read_members(self.path, self.members):
            if block and (len(block) == most_rows or (most_nbytes is not None and nbytes + row.nbytes > most_nbytes)):
                yield Ragged.from_rows(block, dtype, self.item_shape)
                block, nbytes = [], 0
            block.append(row)
            nbytes += row.nbytes
        if block:
            yield Ragged.from_rows(block, dtype, self.item_shape)


InputPart = Part | RaggedPart | PaddedPart | MembersPart


def paths_of(parts: Iterable[InputPart | RangesPart]) -> set[Path]:
    """Return the files that parts are read from."""
    return {array.path for part in parts for array in part.arrays}


def ragged_part(name: str, values: ArraySource, ends: RowEnds, declared: ColumnType | None) -> RaggedPart:
    """Return the rows of a file of values and one of offsets or lengths, all of which are checked.

    Raises:
        SourceError: if offsets or lengths do not fit the values.
        SchemaError: if the values cannot be, or be made into, items of the column.
    """
    ends.check(values.header.shape[0], values.label)
    declared = _declared_type(name, values, values.header.shape[1:], declared)
    field = _field(name, values, values.header.shape[1:], declared)
    return RaggedPart(values, ends, field, None if _is_stored_as(values, declared) else declared)


def padded_part(name: str, padded: ArraySource, lengths: RowEnds, declared: ColumnType | None) -> PaddedPart:
    """Return the rows of a padded file and one of their lengths, all of which are checked.

    Raises:
        SourceError: if the lengths do not fit the rows.
        SchemaError: if the rows cannot be, or be made into, rows of the column.
    """
    header = padded.header
    if len(header.shape) < 2:
        raise SourceError(f"{padded.label}: padded rows need at least two axes, found the shape {header.shape}")
    if lengths.rows != header.shape[0]:
        raise SourceError(
            f"parallel files must agree in rows: {padded.label} has {header.shape[0]:,}, "
            f"{lengths.array.label} has {lengths.rows:,}"
        )
    items = lengths.check_padded(header.shape[1], padded.label)
    declared = _declared_type(name, padded, header.shape[2:], declared)
    return PaddedPart(padded, lengths, _field(name, padded, header.shape[2:], declared), declared, items)


def members_part(name: str, path: Path, members: tuple[NpzArray, ...], declared: ColumnType | None) -> MembersPart:
    """Return the rows of an archive whose members are one row each.

    Raises:
        SourceError: if the members differ in dtype or in the shape of their items.
        SchemaError: if they cannot be, or be made into, rows of the column.
    """
    # What is empty has no dtype to speak of: NumPy takes an empty list for floats.
    first = next((member for member in members if member.header.shape[0]), members[0])
    dtype, shape = first.header.dtype, first.header.shape[1:]
    for row, member in enumerate(members):
        header = member.header
        if header.shape[0] and (little_endian(header.dtype), header.shape[1:]) != (little_endian(dtype), shape):
            raise SourceError(
                f"{member.label}, row {row:,}: items of {header.dtype} of shape {header.shape[1:]}, "
                f"but {first.label} has {dtype} of shape {shape}"
            )
    declared = _declared_type(name, first, shape, declared)
    return MembersPart(path, members, dtype, shape, _field(name, first, shape, declared), declared)


def _plain(block: NDArray[Any]) -> NDArray[Any]:
    """Return a block in C order and little-endian; mostly it is."""
    return np.ascontiguousarray(block, little_endian(block.dtype)).reshape(block.shape)


def _declared_type(
    name: str, array: ArraySource, item_shape: tuple[int, ...], declared: ColumnType | None
) -> ColumnType:
    """Return a ragged type with dtype and item shape; raise `SchemaError` if items cannot be of the declared one."""
    dtype = little_endian(array.header.dtype)
    if dtype.names is not None:
        raise SchemaError(f"{array.label}: column {name!r} needs plain arrays; a structured one has its own columns")
    if declared is None:
        return ColumnType("ragged", dtype, item_shape)
    if declared.kind in ("fixed", "categorical"):
        hint = ""
        if declared.kind == "fixed":
            hint = f"; for its items' dtype write ragged[{', '.join(map(str, (declared.dtype, *item_shape)))}]"
        raise SchemaError(f"{array.label}: column {name!r} is ragged, but it is declared {_words(declared)}{hint}")
    expected = declared.item_shape if declared.item_shape is not None else item_shape
    if item_shape != expected:
        raise SchemaError(f"{array.label}: column {name!r} has items of shape {item_shape}, declared are {expected}")
    if declared.kind != "ragged" and dtype != np.uint8:
        raise SchemaError(f"{array.label}: column {name!r} is declared {declared.kind}, so uint8; found {dtype}")
    return ColumnType(declared.kind, declared.dtype or dtype, item_shape)


def _words(declared: ColumnType) -> str:
    return str(declared.dtype) if declared.kind == "fixed" else declared.kind


def _field(name: str, array: ArraySource, item_shape: tuple[int, ...], declared: ColumnType) -> Field:
    values = np.empty((0, *item_shape), little_endian(array.header.dtype))
    try:
        # Before NumPy is asked to make something of a dtype that no column has.
        if values.dtype == declared.dtype:
            return Field.of(name, values.dtype, item_shape, declared.kind)
        return field_of_type(name, declared, Ragged.checked(values, np.zeros(1, np.int64)))
    except SchemaError as error:
        raise SchemaError(f"{array.label}: {error}") from None


def _is_stored_as(values: ArraySource, declared: ColumnType) -> bool:
    # Text is looked at on its way: a store holds no bytes that are not UTF-8.
    return declared.kind != "utf8" and declared.dtype == little_endian(values.header.dtype)
