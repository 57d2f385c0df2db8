"""A column's entry as JSON values in the manifest, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.codecs import MOST_EXPANSION, Codec
from shardstore.entries import ArrayEntry, ColumnEntry, Successor
from shardstore.errors import FormatError, SchemaError
from shardstore.schema import (
    EXTENDED_DTYPES,
    STORED_DTYPES,
    ArrayLayout,
    Field,
    Kind,
    check_layout,
    dtype_named,
    nonzero_nbytes,
)
from shardstore.shardfile import footer_nbytes

# Kinds of columns that are a logical type of the kind that carries them.
LOGICAL_KINDS = ("utf8", "binary", "categorical")
# All other keys are kept as they are: a later release put them there.
_ARRAY_KEYS = frozenset(("chunk_rows", "shard_nbytes", "footer_crc32c", "successor"))
_COLUMN_KEYS = _ARRAY_KEYS | {
    *("name", "kind", "dtype", "logical", "row_shape", "codec", "categories"),
    *("items", "shard_items", "ranges", "extra"),
}
# Integers below this mean the same to every reader of JSON, and their products with a row's bytes do not overflow.
_MOST = 1 << 53
_MOST_AXES = 63  # NumPy's arrays have 64, and the rows are one of them


def column_body(entry: ColumnEntry) -> dict[str, Any]:
    """Return what the manifest says of a column, as plain JSON values without floats."""
    layout, spec = entry.data.layout, entry.field
    body = {
        **entry.unknown,
        "name": spec.name,
        "kind": "ragged" if spec.is_ragged else "fixed",
        "dtype": spec.stored_dtype.name,
        "logical": _logical(spec),
        "row_shape": list(spec.stored_row_shape),
        "codec": str(layout.codec),
        **_array_body(entry.data),
    }
    if spec.kind == "categorical":
        body["categories"] = list(spec.categories)
    if entry.ranges is not None:
        body["items"], body["shard_items"] = entry.data.rows, layout.shard_rows
        body["ranges"] = {**entry.unknown.get("ranges", {}), **_array_body(entry.ranges)}
    if entry.extra:
        body["extra"] = dict(entry.extra)
    return body


def _array_body(entry: ArrayEntry) -> dict[str, Any]:
    body = {
        "chunk_rows": entry.layout.chunk_rows,
        "shard_nbytes": entry.nbytes.tolist(),
        "footer_crc32c": entry.footer_crc32c.tolist(),
    }
    return body if entry.successor is None else {**body, "successor": list(entry.successor)}


def _logical(spec: Field) -> str | None:
    """Return what a column's stored numbers stand for, in the manifest's words."""
    if spec.kind in LOGICAL_KINDS:
        return spec.kind
    if spec.dtype.kind == "S":
        return "bytes"
    return str(spec.dtype) if spec.dtype.kind in "mM" or spec.dtype.name in EXTENDED_DTYPES else None


def read_column(body: Mapping[str, Any], rows: int, shard_rows: int) -> ColumnEntry:
    """Read what the manifest says of a column of so many rows.

    Raises:
        FormatError: if it is one that this release cannot read.
        TypeError, KeyError, ValueError, OverflowError, SchemaError: if it is incomplete or wrong.
    """
    for key, known in _KNOWN.items():
        if not known(body[key]):
            raise FormatError(
                f"column {shown(body['name'])} has the {key} {shown(body[key])}, which this release cannot read"
            )
    spec = _read_field(body)
    codec = Codec.parse(body["codec"])
    extra = MappingProxyType(dict(body.get("extra", {})))
    unknown = {key: value for key, value in body.items() if key not in _COLUMN_KEYS}
    if not spec.is_ragged:
        data = _read_array(body, spec.plain, codec, shard_rows, rows)
        return ColumnEntry(spec, data, None, extra, MappingProxyType(unknown))
    data = _read_array(body, spec.values, codec, power_of_two(body, "shard_items"), integer(body, "items", 0))
    ranges = _read_array(body["ranges"], spec.ranges, Codec.parse("raw"), shard_rows, rows)
    if data.rows and not rows:
        raise ValueError(f"{data.rows:,} items of no rows")
    unknown["ranges"] = {key: value for key, value in body["ranges"].items() if key not in _ARRAY_KEYS}
    return ColumnEntry(spec, data, ranges, extra, MappingProxyType(unknown))


def _read_field(body: Mapping[str, Any]) -> Field:
    logical, row_shape = body["logical"], _read_row_shape(body)
    dtype: np.dtype[Any] = np.dtype(body["dtype"])
    kind: Kind = body["kind"]
    if logical == "bytes":
        dtype, row_shape = np.dtype(("S", row_shape[-1])), row_shape[:-1]
    elif logical in LOGICAL_KINDS:
        kind = logical
    elif logical is not None:
        dtype = dtype_named(logical)
    categories = body["categories"] if logical == "categorical" else ()
    are_strings = isinstance(categories, list | tuple) and all(isinstance(category, str) for category in categories)
    if not are_strings or len(set(categories)) != len(categories):
        raise ValueError("categories must be different strings")
    spec = Field.of(body["name"], dtype, row_shape, kind, categories)
    is_right = spec.dtype == np.uint8 and not row_shape if kind in ("utf8", "binary") else True
    if kind == "categorical":
        is_right = spec.dtype.kind in "iu"
    if spec.stored_dtype.name != body["dtype"] or not is_right or spec.is_ragged != (body["kind"] == "ragged"):
        raise ValueError(f"{logical} is not stored as {body['kind']} {body['dtype']}")
    return spec


def _read_row_shape(body: Mapping[str, Any]) -> tuple[int, ...]:
    row_shape = tuple(body["row_shape"])
    if len(row_shape) > _MOST_AXES or not all(type(length) is int and length >= 0 for length in row_shape):
        raise ValueError(f"row_shape is {shown(row_shape)}, expected at most {_MOST_AXES} integers from 0 on")
    return row_shape


def _read_array(body: Mapping[str, Any], spec: Field, codec: Codec, shard_rows: int, rows: int) -> ArrayEntry:
    layout = ArrayLayout(spec, codec, shard_rows, integer(body, "chunk_rows", 1))
    if shard_rows % layout.chunk_rows:
        raise ValueError(f"chunks of {layout.chunk_rows} rows do not divide shards of {shard_rows}")
    check_layout(layout)
    if rows * nonzero_nbytes(spec.dtype, spec.row_shape) >= 1 << 63:
        raise ValueError(f"{rows:,} rows of shape {spec.row_shape} are more than an array can have")
    nbytes, checksums = _integers(body, "shard_nbytes", _MOST), _integers(body, "footer_crc32c", 1 << 32)
    entry = ArrayEntry(layout, rows, nbytes, checksums, _read_successor(body, len(nbytes)))
    _check_sizes(entry)
    return entry


def _read_successor(body: Mapping[str, Any], shards: int) -> Successor | None:
    if "successor" not in body:
        return None
    shard, generation = body["successor"]
    if type(shard) is not int or type(generation) is not int or not 0 <= shard < shards or generation < 2:
        raise ValueError(f"successor is {body['successor']!r}, expected a shard's number and a generation")
    return Successor(shard, generation)


def _check_sizes(entry: ArrayEntry) -> None:
    """Raise `ValueError` unless the sizes of the shard files fit the rows.

    Raw files are mapped by them, and no compressed file can hold more than its codec's best ratio makes of it.
    """
    layout, rows = entry.layout, entry.rows
    shards = layout.num_shards(rows)
    if not len(entry.nbytes) == len(entry.footer_crc32c) == shards:
        raise ValueError(f"{rows:,} rows need {shards} shards, but the manifest lists {len(entry.nbytes)}")
    if not shards:
        return
    footer, last_chunks = footer_nbytes(layout.slots), layout.chunks_for(layout.rows_in_shard(shards - 1, rows))
    # In Python's integers, which do not overflow.
    for sizes, chunks in ((entry.nbytes[:-1], layout.slots), (entry.nbytes[-1:], last_chunks)):
        if not len(sizes):
            continue
        least, most = int(sizes.min()) - footer, int(sizes.max()) - footer
        expected = chunks * layout.chunk_nbytes
        if layout.codec.is_raw:
            if (least, most) != (expected, expected):
                raise ValueError(f"the sizes of the shard files of {layout.field.name!r} do not fit its rows")
        elif least <= 0:
            raise ValueError(f"a shard file of {layout.field.name!r} is smaller than its footer")
        elif least * MOST_EXPANSION < expected:
            raise ValueError(f"a shard file of {layout.field.name!r} is too small for its rows, however compressed")


def _integers(body: Mapping[str, Any], key: str, end: int) -> NDArray[np.int64]:
    """Return an array of integers from 0 on and below `end`; raise `ValueError` if it is none."""
    values = body[key]
    if type(values) is not list or not all(type(value) is int for value in values):
        raise ValueError(f"{key} is not an array of integers")
    if values and not 0 <= min(values) <= max(values) < end:
        raise ValueError(f"{key} has a number that is below 0 or not below {end}")
    return np.array(values, np.int64)


def integer(body: Mapping[str, Any], key: str, least: int) -> int:
    """Return an integer of a JSON object; raise `ValueError` if it is none, below `least`, or 2^53 or above."""
    value = body[key]
    if type(value) is not int or not least <= value < _MOST:
        raise ValueError(f"{key} is {shown(value)}, expected an integer of at least {least} and below 2^53")
    return value


def power_of_two(body: Mapping[str, Any], key: str) -> int:
    """Return a power of two of a JSON object; raise `ValueError` if it is none."""
    value = integer(body, key, 1)
    if value & (value - 1):
        raise ValueError(f"{key} is {value}, expected a power of two")
    return value


def shown(value: Any, most: int = 100) -> str:
    """Return a value that was found as messages show it: a hostile one may be megabytes long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _is_codec(text: Any) -> bool:
    try:
        Codec.parse(text)
    except SchemaError:
        return False
    return True


_TIME = re.compile(r"(datetime64|timedelta64)\[([1-9][0-9]*)?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]")
# What a later release may add to: to meet more is no damage.
_KNOWN: Mapping[str, Callable[[Any], bool]] = {
    "kind": lambda kind: kind in ("fixed", "ragged"),
    "dtype": lambda dtype: dtype in STORED_DTYPES,
    "logical": lambda logical: (
        logical in (None, "bytes", *LOGICAL_KINDS, *EXTENDED_DTYPES) or _TIME.fullmatch(logical) is not None
    ),
    "codec": _is_codec,
}
