"""The manifest, and the Zarr v3 metadata documents that carry it.

A store's group `zarr.json` holds the manifest in `attributes["shardstore"]` and the metadata of every array in
`consolidated_metadata`. Both follow from one `Manifest`: the documents are written from it, and what is read is
checked against it, so that no part of them can be damaged unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.checksum import crc32c
from shardstore.codecs import Codec, bytes_codec
from shardstore.errors import CorruptionError, FormatError, SchemaError
from shardstore.files import Directory
from shardstore.schema import (
    EXTENDED_DTYPES,
    STORED_DTYPES,
    ArrayLayout,
    Chunking,
    Field,
    Kind,
    dtype_named,
    power_of_two_at_most,
)
from shardstore.shardfile import ShardRecord, footer_nbytes

FORMAT_VERSION = 1
METADATA_FILE = "zarr.json"
_ATTRIBUTE = "shardstore"
# Kinds of columns that are a logical type of the kind that carries them.
LOGICAL_KINDS = ("utf8", "binary", "categorical")
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
    """

    field: Field
    data: ArrayEntry
    ranges: ArrayEntry | None = None
    extra: Mapping[str, Any] = dataclass_field(default_factory=dict)

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


@dataclass(frozen=True)
class Manifest:
    """All that a reader knows of a store before it opens a shard file.

    Attributes:
        store_id: a UUID4, given once when the store is created.
        generation: 1 for a new store; every commit counts it up.
        rows: rows of the store.
        shard_rows: rows of every shard but the last.
        columns: by name, in order.
        provenance: where the rows came from, as plain JSON values.
    """

    store_id: str
    generation: int
    rows: int
    shard_rows: int
    columns: Mapping[str, ColumnEntry]
    provenance: Mapping[str, Any] = dataclass_field(default_factory=dict)

    def group_document(self) -> dict[str, Any]:
        """Return the group's `zarr.json`."""
        body = self._body()
        return {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {_ATTRIBUTE: {**body, "crc32c": manifest_checksum(body)}},
            "consolidated_metadata": self._consolidated_metadata(),
        }

    def _consolidated_metadata(self) -> dict[str, Any]:
        return {"kind": "inline", "must_understand": False, "metadata": self.documents()}

    @property
    def arrays(self) -> list[ArrayEntry]:
        """All arrays of all columns, in order."""
        return [array for column in self.columns.values() for array in column.arrays]

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return the `zarr.json` of every array, and of every ragged column's group, by its path within the store."""
        documents: dict[str, dict[str, Any]] = {}
        for name, column in self.columns.items():
            documents |= column_documents(name, column)
        return documents

    def _body(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "store_id": self.store_id,
            "generation": self.generation,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "columns": [column_body(entry) for entry in self.columns.values()],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_document(cls, document: Any, where: str) -> Manifest:
        """Read a group's `zarr.json` and check all of it.

        Raises:
            FormatError: if it is not a store's, or one of a later format version.
            CorruptionError: if it was damaged after it was written.
        """
        try:
            body = dict(document["attributes"][_ATTRIBUTE])
            version = body["format_version"]
        except (TypeError, KeyError, ValueError):
            raise FormatError(f"{where}: a Zarr group, but not a shardstore store: it has no manifest") from None
        if version != FORMAT_VERSION:
            raise FormatError(
                f"{where}: the store has format version {version!r}; this release reads {FORMAT_VERSION}: "
                "install a newer shardstore"
            )
        if body.pop("crc32c", None) != manifest_checksum(body):
            raise CorruptionError(f"{where}: the manifest does not match its checksum; {_RESTORE}")
        try:
            manifest = cls._read(body)
        except FormatError as error:
            raise FormatError(f"{where}: {error}; install a newer shardstore") from None
        except (TypeError, KeyError, IndexError, ValueError, OverflowError, SchemaError) as error:
            raise CorruptionError(f"{where}: the manifest is incomplete or wrong ({error!r}); {_RESTORE}") from error
        manifest._check_group(document, where)
        return manifest

    @classmethod
    def _read(cls, body: Mapping[str, Any]) -> Manifest:
        rows, shard_rows = _integer(body, "rows", 0), _power_of_two(body, "shard_rows")
        entries = [read_column(column, rows, shard_rows) for column in body["columns"]]
        columns = {entry.field.name: entry for entry in entries}
        if len(columns) != len(entries) or not columns:
            raise ValueError("expected at least one column, and different names")
        return cls(
            store_id=str(body["store_id"]),
            generation=_integer(body, "generation", 1),
            rows=rows,
            shard_rows=shard_rows,
            columns=MappingProxyType(columns),
            provenance=dict(body["provenance"]),
        )

    def _check_group(self, document: Mapping[str, Any], where: str) -> None:
        expected = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": self._consolidated_metadata()}
        for key, value in expected.items():
            if document.get(key) != value:
                raise CorruptionError(f"{where}: its {key} does not match the manifest; {_RESTORE}")


_RESTORE = "restore zarr.json from a copy or ingest again"


def load_manifest(store: Path) -> tuple[Directory, Manifest]:
    """Open the directory of a store and read its manifest.

    Raises:
        FormatError: if there is no store there, or one of a later format version.
        CorruptionError: if its `zarr.json` is damaged.
    """
    directory = open_directory(store)
    return directory, read_manifest(directory)


def open_directory(store: Path) -> Directory:
    """Open the directory of a store; raise `FormatError` if there is none."""
    try:
        return Directory(store)
    except FileNotFoundError:
        raise FormatError(f"{store}: not a shardstore store: no such directory") from None
    except NotADirectoryError:
        raise FormatError(f"{store}: not a shardstore store: it is a file, expected a directory") from None


def read_manifest(directory: Directory) -> Manifest:
    """Read the manifest in the open directory of a store; raise as `load_manifest` does."""
    store = directory.path
    try:
        data = directory.read(METADATA_FILE)
    except FileNotFoundError:
        raise FormatError(
            f"{store}: not a shardstore store: no zarr.json in it; expected a directory made by an ingest"
        ) from None
    except IsADirectoryError:
        raise FormatError(f"{store}: not a shardstore store: its zarr.json is a directory") from None
    where = str(store / METADATA_FILE)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{where}: the manifest is not readable JSON ({error}); {_RESTORE}") from None
    return Manifest.from_document(document, where)


def manifest_checksum(body: Mapping[str, Any]) -> int:
    """Return the CRC32C of plain JSON values without floats in the manifest's canonical form."""
    # Keys sorted, no white space, everything beyond ASCII escaped.
    return crc32c(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Return a metadata document as the bytes of its file."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def column_body(entry: ColumnEntry) -> dict[str, Any]:
    """Return what the manifest says of a column, as plain JSON values without floats."""
    layout, spec = entry.data.layout, entry.field
    body = {
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
        body["ranges"] = _array_body(entry.ranges)
    if entry.extra:
        body["extra"] = dict(entry.extra)
    return body


def _array_body(entry: ArrayEntry) -> dict[str, Any]:
    return {
        "chunk_rows": entry.layout.chunk_rows,
        "shard_nbytes": entry.nbytes.tolist(),
        "footer_crc32c": entry.footer_crc32c.tolist(),
    }


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
            raise FormatError(f"column {body['name']!r} has the {key} {body[key]!r}, which this release cannot read")
    spec = _read_field(body)
    codec = Codec.parse(body["codec"])
    extra = MappingProxyType(dict(body.get("extra", {})))
    if not spec.is_ragged:
        return ColumnEntry(spec, _read_array(body, spec.plain, codec, shard_rows, rows), None, extra)
    data = _read_array(body, spec.values, codec, _power_of_two(body, "shard_items"), _integer(body, "items", 0))
    ranges = _read_array(body["ranges"], spec.ranges, Codec.parse("raw"), shard_rows, rows)
    if data.rows and not rows:
        raise ValueError(f"{data.rows:,} items of no rows")
    return ColumnEntry(spec, data, ranges, extra)


def _read_field(body: Mapping[str, Any]) -> Field:
    logical, row_shape = body["logical"], tuple(body["row_shape"])
    if min(row_shape, default=0) < 0:
        raise ValueError(f"row_shape is {row_shape}")
    dtype: np.dtype[Any] = np.dtype(body["dtype"])
    kind: Kind = body["kind"]
    if logical == "bytes":
        dtype, row_shape = np.dtype(("S", row_shape[-1])), row_shape[:-1]
    elif logical in LOGICAL_KINDS:
        kind = logical
    elif logical is not None:
        dtype = dtype_named(logical)
    categories = body["categories"] if logical == "categorical" else ()
    if not all(isinstance(category, str) for category in categories) or len(set(categories)) != len(categories):
        raise ValueError("categories must be different strings")
    spec = Field.of(body["name"], dtype, row_shape, kind, categories)
    is_right = spec.dtype == np.uint8 and not row_shape if kind in ("utf8", "binary") else True
    if kind == "categorical":
        is_right = spec.dtype.kind in "iu"
    if spec.stored_dtype.name != body["dtype"] or not is_right or spec.is_ragged != (body["kind"] == "ragged"):
        raise ValueError(f"{logical} is not stored as {body['kind']} {body['dtype']}")
    return spec


def _read_array(body: Mapping[str, Any], spec: Field, codec: Codec, shard_rows: int, rows: int) -> ArrayEntry:
    layout = ArrayLayout(spec, codec, shard_rows, _integer(body, "chunk_rows", 1))
    if shard_rows % layout.chunk_rows:
        raise ValueError(f"chunks of {layout.chunk_rows} rows do not divide shards of {shard_rows}")
    nbytes, checksums = np.array(body["shard_nbytes"], np.int64), np.array(body["footer_crc32c"], np.int64)
    entry = ArrayEntry(layout, rows, nbytes, checksums)
    _check_sizes(entry)
    return entry


def _check_sizes(entry: ArrayEntry) -> None:
    """Raise `ValueError` unless the sizes of the shard files fit the rows: raw files are mapped by them."""
    layout, rows = entry.layout, entry.rows
    shards = layout.num_shards(rows)
    if not entry.nbytes.shape == entry.footer_crc32c.shape == (shards,):
        raise ValueError(f"{rows:,} rows need {shards} shards, but the manifest lists {len(entry.nbytes)}")
    if not shards:
        return
    data_nbytes = entry.nbytes - footer_nbytes(layout.slots)
    if layout.codec.is_raw:
        chunks = np.full(shards, layout.slots, np.int64)
        chunks[-1] = layout.chunks_for(layout.rows_in_shard(shards - 1, rows))
        if (data_nbytes != chunks * layout.chunk_nbytes).any():
            raise ValueError(f"the sizes of the shard files of {layout.field.name!r} do not fit its rows")
    elif (data_nbytes <= 0).any():
        raise ValueError(f"a shard file of {layout.field.name!r} is smaller than its footer")


def _integer(body: Mapping[str, Any], key: str, least: int) -> int:
    value = body[key]
    if type(value) is not int or value < least:
        raise ValueError(f"{key} is {value!r}, expected an integer of at least {least}")
    return value


def _power_of_two(body: Mapping[str, Any], key: str) -> int:
    value = _integer(body, key, 1)
    if value & (value - 1):
        raise ValueError(f"{key} is {value}, expected a power of two")
    return value


def _is_codec(text: str) -> bool:
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


def column_documents(name: str, entry: ColumnEntry) -> dict[str, dict[str, Any]]:
    """Return the `zarr.json` of a column's arrays, and of a ragged column's group, by their paths in the store."""
    documents = {array.layout.field.name: _array_document(array) for array in entry.arrays}
    return documents if entry.ranges is None else {name: dict(_COLUMN_GROUP), **documents}


_COLUMN_GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}


def _array_document(entry: ArrayEntry) -> dict[str, Any]:
    layout, spec = entry.layout, entry.layout.field
    # Zarr wants chunk dimensions of at least 1, also where the array has none.
    row_chunk = [max(1, n) for n in spec.stored_row_shape]
    dimension = "item" if spec.name.endswith("/values") else "row"
    axes = spec.name.replace("/", "_")
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [entry.rows, *spec.stored_row_shape],
        "data_type": spec.stored_dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.shard_rows, *row_chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill_value(spec.stored_dtype),
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [layout.chunk_rows, *row_chunk],
                    "codecs": layout.codec.zarr_codecs(spec.stored_dtype.itemsize),
                    "index_codecs": [bytes_codec(8), {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": [dimension, *(f"{axes}_{axis}" for axis in range(1, len(row_chunk) + 1))],
        "attributes": {},
    }


def _fill_value(dtype: np.dtype[Any]) -> Any:
    # Chosen so that a foreign reader shows damage: a chunk that Zarr does not find reads as this value.
    if dtype.kind == "b":
        return True
    if dtype.kind == "f":
        return "NaN"
    if dtype.kind == "c":
        return ["NaN", "NaN"]
    return int(np.iinfo(dtype).max)
