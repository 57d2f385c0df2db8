"""What a row holds (`Field`) and how a column of it is cut into shards and chunks (`ColumnLayout`).

Pure, frozen values: nothing here touches a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from shardstore.codecs import Codec
from shardstore.errors import SchemaError

STORED_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
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


@dataclass(frozen=True)
class Field:
    """One column's part of a row.

    Attributes:
        name: the column's name.
        dtype: the little-endian NumPy dtype that readers get. Beside the stored dtypes these are
            `datetime64` and `timedelta64` (stored as int64) and fixed-width bytes `S<n>` (stored as uint8).
        row_shape: the shape of one row; `()` for a column of scalars.
    """

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, dtype: np.dtype[Any], row_shape: Iterable[int]) -> Field:
        """Check a column's name and dtype; raise `SchemaError` if they cannot be stored."""
        dtype = np.dtype(dtype).newbyteorder("<")
        if not _is_storable(dtype):
            hint = ""
            if dtype.kind == "O":
                hint = "; an object array is a pickle, which shardstore never loads: convert it to a numeric dtype"
            elif dtype.kind == "U":
                hint = "; encode the strings as fixed-width bytes (dtype 'S')"
            raise SchemaError(f"column {name!r} has dtype {dtype}, which cannot be stored{hint}")
        return cls(check_name(name), dtype, tuple(int(n) for n in row_shape))

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * prod(self.row_shape)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The Zarr data type that carries `dtype`."""
        if self.dtype.kind in "mM":
            return np.dtype("<i8")
        return np.dtype("u1") if self.dtype.kind == "S" else self.dtype

    @property
    def stored_row_shape(self) -> tuple[int, ...]:
        """`row_shape` in items of the stored dtype: fixed-width bytes add an axis."""
        return (*self.row_shape, self.dtype.itemsize) if self.dtype.kind == "S" else self.row_shape

    def __str__(self) -> str:
        shape = "×".join(map(str, self.row_shape))
        return f"{self.dtype}[{shape}]" if self.row_shape else str(self.dtype)


@dataclass(frozen=True)
class ColumnLayout:
    """How one column is cut: shard *i* holds rows `[i·shard_rows, (i+1)·shard_rows)`, in chunks of `chunk_rows`.

    Attributes:
        field: what one row holds.
        codec: how a chunk is stored.
        shard_rows: rows of every shard but the last, the same for all fixed columns of a store.
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
        """Return how many of a column's `rows` rows lie in one shard."""
        return min(self.shard_rows, rows - shard * self.shard_rows)

    def chunks_for(self, shard_rows: int) -> int:
        """Return how many chunks the first `shard_rows` rows of a shard take."""
        return -(-shard_rows // self.chunk_rows)

    def shard_keys(self, rows: int) -> list[str]:
        """Return the paths of all shard files of a column of `rows` rows, in order."""
        before, after = f"{self.field.name}/c/", "/0" * len(self.field.stored_row_shape)
        return [f"{before}{shard}{after}" for shard in range(self.num_shards(rows))]

    def shard_key(self, shard: int) -> str:
        """Return a shard file's path within the store, in Zarr's default key encoding."""
        return f"{self.field.name}/c/{shard}" + "/0" * len(self.field.stored_row_shape)


def plan_layouts(
    fields: Iterable[Field],
    codecs: str | Mapping[str, str],
    shard_bytes: int | str = DEFAULT_SHARD_BYTES,
    chunk_bytes: int | str | None = None,
) -> dict[str, ColumnLayout]:
    """Choose the layout of every column of a new store.

    Args:
        fields: the columns, in order.
        codecs: one codec for all, or one per column (columns that are not named are raw).
        shard_bytes: target size of the widest column's shards.
        chunk_bytes: target size of a decoded chunk; by default 256 KiB raw and 64 KiB compressed, and less for narrow
            compressed columns beside wide ones.

    Raises:
        SchemaError: if there is no column, a name comes twice, or a codec is unknown or for no column.
    """
    fields = list(fields)
    names = [field.name for field in fields]
    if not names:
        raise SchemaError("a store needs at least one column")
    # Folder names must differ on file systems that fold case, too.
    repeated = [name for i, name in enumerate(names) if name.lower() in [n.lower() for n in names[:i]]]
    if repeated:
        raise SchemaError(f"column {repeated[0]!r} is named twice (names that differ only in case count as one)")
    by_name = dict.fromkeys(names, codecs) if isinstance(codecs, str) else dict(codecs)
    for name in by_name:
        if name not in names:
            raise SchemaError(f"a codec is given for column {name!r}, but the columns are {', '.join(names)}")
    shard_rows = choose_shard_rows(max(field.row_nbytes for field in fields), parse_bytes(shard_bytes))

    parsed = {name: Codec.parse(by_name.get(name, "raw")) for name in names}
    widest = max((field.row_nbytes for field in fields if not parsed[field.name].is_raw), default=0)

    def rows_of(nbytes: int, row_nbytes: int) -> int:
        return min(shard_rows, _power_of_two_at_most(nbytes // max(1, row_nbytes)))

    def chunk_rows(field: Field) -> int:
        if chunk_bytes is not None:
            return rows_of(parse_bytes(chunk_bytes), field.row_nbytes)
        if parsed[field.name].is_raw:
            return rows_of(RAW_CHUNK_BYTES, field.row_nbytes)
        # What a row needs of all columns is decoded together: chunks of very different lengths would waste most of it.
        alike = NARROW_CHUNK_FACTOR * rows_of(COMPRESSED_CHUNK_BYTES, widest)
        least = rows_of(LEAST_CHUNK_BYTES, field.row_nbytes)
        return min(rows_of(COMPRESSED_CHUNK_BYTES, field.row_nbytes), max(alike, least))

    return {field.name: ColumnLayout(field, parsed[field.name], shard_rows, chunk_rows(field)) for field in fields}


def choose_shard_rows(widest_row_nbytes: int, shard_bytes: int) -> int:
    """Return the power of two that brings the widest column's shards near `shard_bytes`.

    At least 4,096 where that keeps a shard below four times the target, so that shards are whole pages.
    """
    row_nbytes = max(1, widest_row_nbytes)
    rows = _power_of_two_at_most(shard_bytes // row_nbytes)
    if rows < PAGE_ALIGNED_ROWS and PAGE_ALIGNED_ROWS * row_nbytes <= 4 * shard_bytes:
        return PAGE_ALIGNED_ROWS
    return rows


def _is_storable(dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "mM":
        return np.datetime_data(dtype)[0] != "generic"
    if dtype.kind == "S":
        return dtype.itemsize > 0
    return dtype.name in STORED_DTYPES


def _power_of_two_at_most(value: int) -> int:
    return 1 << (max(1, value).bit_length() - 1)
