"""The Zarr v3 metadata documents of a store's arrays and groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardstore.codecs import bytes_codec
from shardstore.entries import ArrayEntry, ColumnEntry


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
