"""A manifest made again from the metadata of the arrays and the shard files, where it is lost.

What follows from these is complete, and what can be checked has to be right: each array's metadata must be that of a
store, each footer that of its shard, and each chunk must fit its checksum. What is not in them is lost.
"""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shardstore.changes.commits import REPLACING
from shardstore.codecs import Codec
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import CorruptionError, SchemaError
from shardstore.files import Directory, UnfitFileError
from shardstore.journals import JOURNAL_FILE
from shardstore.manifest import METADATA_FILE, Manifest
from shardstore.schema import ArrayLayout, Field, check_name
from shardstore.shardfile import (
    DamagedChunk,
    Footer,
    ShardRecord,
    check_chunks,
    footer_checksum,
    footer_nbytes,
    read_at,
)
from shardstore.version import __version__
from shardstore.zarr_documents import column_documents

LOST = (
    "the order of the columns, what the numbers of dates, texts, categories and the like stand for, where the rows "
    "came from, and statistics; that each file is its column's, and the newest, is taken on trust"
)


def rebuilt_manifest(store: Path) -> Manifest:
    """Return a manifest that fits the arrays in a store's directory.

    Raises:
        CorruptionError: if there is no array, or a file of one is damaged or missing.
    """
    directory = Directory(store)
    columns = {name: _column(directory, name) for name in _column_names(store)}
    if not columns:
        raise CorruptionError(f"{store}: there are no columns in it to make a manifest for")
    arrays = {name: entry.ranges or entry.data for name, entry in columns.items()}
    sizes = {(array.rows, array.layout.shard_rows) for array in arrays.values()}
    if len(sizes) > 1:
        counts = ", ".join(f"{name} has {array.rows:,}" for name, array in arrays.items())
        raise CorruptionError(f"{store}: the columns are not those of one store: of rows, {counts}")
    ((rows, shard_rows),) = sizes
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    origin = {"tool": f"shardstore {__version__}", "created": now, "sources": {}}
    return Manifest(str(uuid.uuid4()), 1, rows, shard_rows, columns, origin)


def _column_names(store: Path) -> Iterator[str]:
    for folder in sorted(store.iterdir()):
        is_column = (folder / METADATA_FILE).exists() and not (folder / JOURNAL_FILE).exists()
        if is_column and not folder.name.startswith((".", REPLACING)):
            yield folder.name


def _column(directory: Directory, name: str) -> ColumnEntry:
    check_name(name)
    documents = {name: _document(directory, name)}
    try:
        if documents[name]["node_type"] == "group":
            documents |= {path: _document(directory, path) for path in (f"{name}/values", f"{name}/ranges")}
            data, ranges = (_array(directory, path, documents[path]) for path in (f"{name}/values", f"{name}/ranges"))
            items = data.layout.field
            entry = ColumnEntry(Field.of(name, items.dtype, items.row_shape, "ragged"), data, ranges)
        else:
            data = _array(directory, name, documents[name])
            entry = ColumnEntry(Field.of(name, data.layout.field.dtype, data.layout.field.row_shape), data)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, SchemaError) as error:
        raise CorruptionError(
            f"{directory.path / name / METADATA_FILE}: not the metadata of a column: {error}"
        ) from None
    for path, document in column_documents(name, entry).items():
        if document != documents[path]:
            raise CorruptionError(
                f"{directory.path / path / METADATA_FILE}: not the metadata of a column as stores have"
            )
    return entry


def _document(directory: Directory, path: str) -> Any:
    try:
        return json.loads(directory.read(f"{path}/{METADATA_FILE}"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptionError(f"{directory.path / path / METADATA_FILE}: cannot be read: {error}") from None


def _array(directory: Directory, path: str, document: Any) -> ArrayEntry:
    sharding = document["codecs"][0]["configuration"]
    rows, *row_shape = document["shape"]
    field = Field(path, np.dtype(document["data_type"]), tuple(row_shape))
    layout = ArrayLayout(
        field,
        _codec(sharding["codecs"]),
        document["chunk_grid"]["configuration"]["chunk_shape"][0],
        sharding["chunk_shape"][0],
    )
    _check_newest(directory.path / path / "c", layout.num_shards(rows))
    records = [_record(directory, layout, shard, rows) for shard in range(layout.num_shards(rows))]
    return ArrayEntry(
        layout,
        rows,
        np.array([record.nbytes for record in records], np.int64),
        np.array([record.footer_crc32c for record in records], np.int64),
    )


def _check_newest(folder: Path, shards: int) -> None:
    """Raise `CorruptionError` if rows were appended of which the array's metadata does not know."""
    others = [path for path in folder.glob("*") if path.name.isdecimal() and int(path.name) >= shards]
    if others := sorted([*others, *folder.rglob(".*.tail-*")]):
        raise CorruptionError(
            f"{others[0]}: of rows that were being appended, which the metadata of its array does not have. If they "
            "were not committed, move such files away and try again"
        )


def _codec(chain: Any) -> Codec:
    for codec in chain:
        options = codec.get("configuration", {})
        if codec["name"] == "zstd":
            return Codec.parse(f"zstd:{options['level']}")
        if codec["name"] == "blosc":
            return Codec.parse(f"blosc:{options['cname']}:{options['clevel']}")
    return Codec.parse("raw")


def _record(directory: Directory, layout: ArrayLayout, shard: int, rows: int) -> ShardRecord:
    """Check a shard file by its own footer, and return what the manifest keeps of it."""
    key = layout.shard_key(shard)
    path = directory.path / key
    (status,) = directory.stats((key,))
    if status is None:
        raise CorruptionError(f"{path}: the shard file is missing")
    size, count = footer_nbytes(layout.slots), layout.rows_in_shard(shard, rows)
    if status.st_size <= size:
        raise CorruptionError(f"{path}: {status.st_size:,} bytes are too few for a shard file")
    try:
        descriptor = directory.open(key)
    except UnfitFileError as error:
        raise CorruptionError(f"{path}: {error}, expected a shard file") from None
    try:
        data = read_at(descriptor, size, status.st_size - size)
        footer = Footer.from_bytes(data, layout.slots, layout.chunks_for(count), str(path))
        if int(footer.bounds[-1]) + size != status.st_size:
            raise CorruptionError(f"{path}: the chunks do not fill the file up to its footer")
        for problem in check_chunks(descriptor, layout, footer, count):
            if isinstance(problem, DamagedChunk):
                raise CorruptionError(f"{path}, chunk {problem.chunk}: {problem.reason}")
    finally:
        os.close(descriptor)
    return ShardRecord(status.st_size, footer_checksum(data))
