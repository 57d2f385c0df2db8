"""What a row holds (`Field`), and how a column of it is cut into shards and chunks (`ColumnLayout`, `ArrayLayout`).

Pure, frozen values: nothing here touches a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from shardstore.codecs import Codec
from shardstore.errors import SchemaError
from shardstore.locks import without_forks

STORED_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
# What ml_dtypes adds to NumPy, by the dtype that carries it; torch has these, too.
EXTENDED_DTYPES = {
    "bfloat16": "uint16",
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"),
}
# Keys that a batch has beside its columns.
RESERVED_NAMES = ("rows", "mask")
DEFAULT_SHARD_BYTES = "256MiB"
# Chunks are the unit of checksums and of decoding. Raw ones are never decoded, so they may be larger.
RAW_CHUNK_BYTES = 256 * 1024
COMPRESSED_CHUNK_BYTES = 64 * 1024
# A compressed column has at most so many times the rows in a chunk that the widest one has, but chunks of some size.
NARROW_CHUNK_FACTOR = 8
LEAST_CHUNK_BYTES = 4 << 10
# A multiple of 4,096 rows makes every shard whole 4 KiB pages, whatever the width of a row.
PAGE_ALIGNED_ROWS = 4096
# Who reads a chunk holds all of it in memory, and so it is with the footer, which says 20 bytes of each chunk: a file
# that claims more is not believed. Nor are shards beyond what numbers are exact for in every program.
MOST_CHUNK_BYTES = 1 << 30
MOST_SLOTS = 1 << 24
MOST_SHARD_BYTES = 1 << 50

_NAME = re.compile(r"(?!__)[A-Za-z0-9_]([A-Za-z0-9_\- ]*[A-Za-z0-9_\-])?")
# Zarr keeps names that begin with two underscores to itself, and Windows takes these for devices, whatever the folder.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: int | str) -> int:
    """Return a positive number of bytes from `4096` or `"256MiB"` (B, KB, MB, GB, KiB, MiB, GiB)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise SchemaError(f'not a size in bytes: {size!r}; expected a positive number such as 4096 or "256MiB"')
    return max(1, int(float(match[1]) * _UNITS[match[2].upper()]))


def check_name(name: str) -> str:
    """Return a column's name, or raise `SchemaError` if it cannot be a folder's name everywhere."""
    ok = isinstance(name, str) and _NAME.fullmatch(name) is not None
    if not ok or name in RESERVED_NAMES or name.lower() in _DEVICES:
        raise SchemaError(
            f"bad column name {name!r}: use letters, digits, '_', '-' and spaces (no slash, no dot), starting "
            "with a letter, digit or a single '_'; 'rows' and 'mask' are reserved for batches"
        )
    return name


Kind = Literal["fixed", "ragged", "utf8", "binary", "categorical"]
RAGGED_KINDS: tuple[Kind, ...] = ("ragged", "utf8", "binary")


@dataclass(frozen=True)
class Field:
    """One column's part of a row.

    Attributes:
        name: the column's name.
        dtype: the little-endian NumPy dtype that readers get. Beside the stored dtypes these are
            `datetime64` and `timedelta64` (stored as int64), fixed-width bytes `S<n>` (stored as uint8), and
            bfloat16 and the float8 types of `ml_dtypes` (stored as uint16 and uint8).
        row_shape: the shape of one row, `()` for a column of scalars; of a ragged column, the shape of one item.
        kind: `"fixed"`: all rows have one shape. `"ragged"`: a row is any number of items. `"utf8"`, `"binary"`: a row
            is a string or bytes, a ragged row of uint8. `"categorical"`: a fixed row of numbers of categories.
        categories: the names that a categorical column's numbers stand for, in their order; else empty.
    """

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    kind: Kind = "fixed"
    categories: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        dtype: np.dtype[Any],
        row_shape: Iterable[int],
        kind: Kind = "fixed",
        categories: Iterable[str] = (),
    ) -> Field:
        """Check a column's name and dtype; raise `SchemaError` if they cannot be stored."""
        dtype = np.dtype(dtype).newbyteorder("<")
        if not _is_storable(dtype):
            hint = ""
            if dtype.kind == "O":
                hint = "; an object array is a pickle, which shardstore never loads: convert it to a numeric dtype"
            elif dtype.kind == "U":
                hint = '; strings are kept as text: its type is "utf8"'
            raise SchemaError(f"column {name!r} has dtype {dtype}, which cannot be stored{hint}")
        return cls(check_name(name), dtype, tuple(int(n) for n in row_shape), kind, tuple(categories))

    @property
    def is_ragged(self) -> bool:
        """Whether rows differ in length."""
        return self.kind in RAGGED_KINDS

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row; of a ragged column, of one item."""
        return self.dtype.itemsize * prod(self.row_shape)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The Zarr data type that carries `dtype`."""
        if self.dtype.kind in "mM":
            return np.dtype("<i8")
        if self.dtype.name in EXTENDED_DTYPES:
            return np.dtype(EXTENDED_DTYPES[self.dtype.name]).newbyteorder("<")
        return np.dtype("u1") if self.dtype.kind == "S" else self.dtype

    @property
    def stored_row_shape(self) -> tuple[int, ...]:
        """`row_shape` in items of the stored dtype: fixed-width bytes add an axis."""
        return (*self.row_shape, self.dtype.itemsize) if self.dtype.kind == "S" else self.row_shape

    @property
    def plain(self) -> Field:
        """The same as a row of an array that knows nothing of kinds."""
        return Field(self.name, self.dtype, self.row_shape)

    @property
    def values(self) -> Field:
        """What an item of a ragged column's values is, as a row of an array of its own."""
        return Field(f"{self.name}/values", self.dtype, self.row_shape)

    @property
    def ranges(self) -> Field:
        """Where a row of a ragged column begins and ends in its values, as a row of an array of its own."""
        return Field(f"{self.name}/ranges", np.dtype("<i8"), (2,))

    def __str__(self) -> str:
        shape = "×".join(map(str, self.row_shape))
        items = f"{self.dtype}[{shape}]" if self.row_shape else str(self.dtype)
        if self.kind == "categorical":
            return f"categorical of {len(self.categories):,}"
        return {"fixed": items, "ragged": f"ragged {items}"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class ArrayLayout:
    """How one array is cut: shard *i* holds rows `[i·shard_rows, (i+1)·shard_rows)`, in chunks of `chunk_rows`.

    A fixed column is one array. A ragged one is two: its values, whose rows are items, and its ranges.

    Attributes:
        field: what one row holds; its name is the array's path in the store.
        codec: how a chunk is stored.
        shard_rows: rows of every shard but the last.
        chunk_rows: rows of a chunk; divides `shard_rows`.
    """

    field: Field
    codec: Codec
    shard_rows: int
    chunk_rows: int

    @property
    def slots(self) -> int:
        """Chunks of a full shard, which is the number of entries in every shard's index."""
        return self.shard_rows // self.chunk_rows

    @property
    def chunk_nbytes(self) -> int:
        """Decoded bytes of one chunk."""
        return self.chunk_rows * self.field.row_nbytes

    @property
    def shard_nbytes(self) -> int:
        """Decoded bytes of the rows of a full shard."""
        return self.shard_rows * self.field.row_nbytes

    def num_shards(self, rows: int) -> int:
        """Return how many shard files `rows` rows take; a row without bytes takes none."""
        return -(-rows // self.shard_rows) if self.field.row_nbytes else 0

    def rows_in_shard(self, shard: int, rows: int) -> int:
        """Return how many of an array's `rows` rows lie in one shard."""
        return min(self.shard_rows, rows - shard * self.shard_rows)

    def chunks_for(self, shard_rows: int) -> int:
        """Return how many chunks the first `shard_rows` rows of a shard take."""
        return -(-shard_rows // self.chunk_rows)

    def shard_keys(self, rows: int) -> list[str]:
        """Return the paths of all shard files of an array of `rows` rows, in order."""
        before, after = f"{self.field.name}/c/", "/0" * len(self.field.stored_row_shape)
        return [f"{before}{shard}{after}" for shard in range(self.num_shards(rows))]

    def shard_key(self, shard: int) -> str:
        """Return a shard file's path within the store, in Zarr's default key encoding."""
        return f"{self.field.name}/c/{shard}" + "/0" * len(self.field.stored_row_shape)


def check_layout(layout: ArrayLayout) -> None:
    """Raise `SchemaError` if reading an array that is cut so would take more memory than any reader has to spare."""
    name = layout.field.name
    if layout.chunk_rows > 1 and layout.chunk_nbytes > MOST_CHUNK_BYTES:
        raise SchemaError(f"chunks of {name!r} have {layout.chunk_nbytes:,} bytes, at most {MOST_CHUNK_BYTES:,} may be")
    if layout.slots > MOST_SLOTS:
        raise SchemaError(f"shards of {name!r} have {layout.slots:,} chunks, at most {MOST_SLOTS:,} may be")


@dataclass(frozen=True)
class ColumnLayout:
    """How one column is cut.

    Attributes:
        field: what a row holds.
        data: the array of the rows; of a ragged column, that of its values.
        ranges: of a ragged column, the array of each row's first item and one past its last; else None.
    """

    field: Field
    data: ArrayLayout
    ranges: ArrayLayout | None = None


@dataclass(frozen=True)
class Chunking:
    """What it takes to read rows of a column.

    Attributes:
        row_nbytes: decoded bytes of a row; of a ragged column, their mean, rounded up.
        chunk_rows: how many rows from a multiple of it on are best read together: those of a chunk; of a ragged column,
            about those of some chunks.
        decoded: whether chunks have to be decoded.
        phase: how many rows of the store lie before row 0; None if rows that follow each other are scattered there.
    """

    row_nbytes: int
    chunk_rows: int
    decoded: bool
    phase: int | None = 0


def plan_layouts(
    fields: Iterable[Field],
    codecs: str | Mapping[str, str],
    shard_bytes: int | str = DEFAULT_SHARD_BYTES,
    chunk_bytes: int | str | None = None,
    shard_rows: int | None = None,
) -> dict[str, ColumnLayout]:
    """Choose the layout of every column of a new store.

    Args:
        fields: the columns, in order.
        codecs: one codec for all, or one per column (columns that are not named are raw). Ranges are always raw.
        shard_bytes: target size of the widest column's shards, and of the shards of ragged columns' values.
        chunk_bytes: target size of a decoded chunk; by default 256 KiB raw and 64 KiB compressed, and less for narrow
            compressed columns beside wide ones.
        shard_rows: rows of a shard where the store has them already; else chosen.

    Raises:
        SchemaError: if there is no column, a name comes twice, or a codec is unknown or for no column.
    """
    fields = list(fields)
    names = [field.name for field in fields]
    if not names:
        raise SchemaError("a store needs at least one column")
    check_different(names)
    by_name = dict.fromkeys(names, codecs) if isinstance(codecs, str) else dict(codecs)
    for name in by_name:
        if name not in names:
            raise SchemaError(f"a codec is given for column {name!r}, but the columns are {', '.join(names)}")
    target = min(MOST_SHARD_BYTES, parse_bytes(shard_bytes))
    if shard_rows is None:
        shard_rows = choose_shard_rows(max(_row_array(field).row_nbytes for field in fields), target)
    sizes = _ChunkSizes(
        None if chunk_bytes is None else parse_bytes(chunk_bytes),
        shard_rows,
        {field: Codec.parse(by_name.get(field.name, "raw")) for field in fields},
    )
    layouts = {}
    for field, codec in sizes.codecs.items():
        if not field.is_ragged:
            layouts[field.name] = ColumnLayout(field, ArrayLayout(field.plain, codec, shard_rows, sizes.of_rows(field)))
            continue
        items = choose_shard_rows(field.row_nbytes, target)
        data = ArrayLayout(field.values, codec, items, sizes.of_items(field, items))
        ranges = ArrayLayout(field.ranges, Codec.parse("raw"), shard_rows, sizes.of_rows(field))
        layouts[field.name] = ColumnLayout(field, data, ranges)
    return layouts


def check_different(names: Sequence[str]) -> None:
    """Raise `SchemaError` if two columns would have one folder: file systems that fold case count, too."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise SchemaError(f"column {name!r} is named twice (names that differ only in case count as one)")
        seen.add(name.lower())


def _row_array(field: Field) -> Field:
    """Return the array that has an entry for each row of a column."""
    return field.ranges if field.is_ragged else field


@dataclass(frozen=True)
class _ChunkSizes:
    """How many rows or items the chunks of each column of a new store have."""

    chunk_nbytes: int | None
    shard_rows: int
    codecs: Mapping[Field, Codec]

    def of_rows(self, field: Field) -> int:
        """Return the rows of a chunk of the array that has an entry for each row."""
        row_nbytes = _row_array(field).row_nbytes
        if self.chunk_nbytes is not None:
            return self._fitting(self.chunk_nbytes, row_nbytes)
        if field.is_ragged or self.codecs[field].is_raw:
            return self._fitting(RAW_CHUNK_BYTES, row_nbytes)
        # What a row needs of all columns is decoded together: chunks of very different lengths would waste most of it.
        compressed = [f.row_nbytes for f, codec in self.codecs.items() if not codec.is_raw and not f.is_ragged]
        alike = NARROW_CHUNK_FACTOR * self._fitting(COMPRESSED_CHUNK_BYTES, max(compressed))
        least = self._fitting(LEAST_CHUNK_BYTES, row_nbytes)
        return min(self._fitting(COMPRESSED_CHUNK_BYTES, row_nbytes), max(alike, least))

    def of_items(self, field: Field, shard_items: int) -> int:
        """Return the items of a chunk of a ragged column's values."""
        default = RAW_CHUNK_BYTES if self.codecs[field].is_raw else COMPRESSED_CHUNK_BYTES
        return _chunk_rows(self.chunk_nbytes or default, field.row_nbytes, shard_items)

    def _fitting(self, nbytes: int, row_nbytes: int) -> int:
        return _chunk_rows(nbytes, row_nbytes, self.shard_rows)


def _chunk_rows(nbytes: int, row_nbytes: int, shard_rows: int) -> int:
    rows = power_of_two_at_most(min(nbytes, MOST_CHUNK_BYTES) // max(1, row_nbytes))
    return min(shard_rows, max(rows, shard_rows // MOST_SLOTS))


def choose_shard_rows(widest_row_nbytes: int, shard_bytes: int) -> int:
    """Return the power of two that brings the widest column's shards near `shard_bytes`.

    At least 4,096 where that keeps a shard below four times the target, so that shards are whole pages.
    """
    row_nbytes = max(1, widest_row_nbytes)
    rows = power_of_two_at_most(shard_bytes // row_nbytes)
    if rows < PAGE_ALIGNED_ROWS and PAGE_ALIGNED_ROWS * row_nbytes <= 4 * shard_bytes:
        return PAGE_ALIGNED_ROWS
    return rows


def _is_storable(dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "mM":
        return np.datetime_data(dtype)[0] != "generic"
    if dtype.kind == "S":
        return dtype.itemsize > 0
    return dtype.name in STORED_DTYPES or dtype.name in EXTENDED_DTYPES


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name such as `"float32"`, `"datetime64[ns]"` or `"bfloat16"`.

    Raises:
        TypeError: if there is none.
    """
    if name in EXTENDED_DTYPES:
        with without_forks:
            import ml_dtypes  # noqa: F401, gives NumPy these dtypes; only columns of them pay for it
    return np.dtype(name)


def nonzero_nbytes(dtype: np.dtype[Any], shape: Iterable[int]) -> int:
    """Return the bytes of an array as if axes of length 0 had length 1: NumPy's limit is on these."""
    return dtype.itemsize * prod(max(1, length) for length in shape)


def power_of_two_at_most(value: int) -> int:
    """Return the largest power of two that is not above `value`, at least 1."""
    return 1 << (max(1, value).bit_length() - 1)
