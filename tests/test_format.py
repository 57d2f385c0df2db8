"""A second reader and writer, made from docs/format.md alone, against what shardstore writes and reads."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numcodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import CODECS, LOGICAL_DTYPES, STORED_DTYPES, manifest_crc32c, random_array, same_bytes

import shardstore

SPECIFICATION = Path(__file__).parents[1] / "docs" / "format.md"
ABSENT = 2**64 - 1


# The second reader. It knows only what the specification says, and shares no code with the package.


class RefusedError(Exception):
    """A check of the specification failed."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedError(what)


def read_store(store: Path) -> dict[str, NDArray[Any]]:
    """Read all of a store, with every check that a full verification does."""
    group = json.loads((store / "zarr.json").read_bytes())
    manifest = group["attributes"]["shardstore"]
    require(manifest["format_version"] == 1, "version")
    require(manifest["crc32c"] == manifest_crc32c(manifest), "manifest checksum")
    documents = all_documents(manifest)
    before = documents_before(manifest)
    require((group["zarr_format"], group["node_type"]) == (3, "group"), "group")
    expected = {"kind": "inline", "must_understand": False, "metadata": documents}
    require(group["consolidated_metadata"] == expected, "consolidated metadata")
    for name, document in documents.items():
        found = json.loads((store / name / "zarr.json").read_bytes())
        require(found in (document, before.get(name)), f"metadata of {name}")
    return {c["name"]: read_column(store, c, manifest["rows"], manifest["shard_rows"]) for c in manifest["columns"]}


def all_documents(manifest: dict[str, Any]) -> dict[str, Any]:
    documents: dict[str, Any] = {}
    for column in manifest["columns"]:
        if column["kind"] == "ragged":
            documents[column["name"]] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        for array, rows, shard_rows in arrays_of(column, manifest["rows"], manifest["shard_rows"]):
            documents[array["name"]] = array_document(array, rows, shard_rows)
    return documents


def documents_before(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata that arrays still have if the last commit was an append that was not finished."""
    history = manifest.get("history", [])
    if not history or history[-1]["until"] != manifest["generation"] - 1:
        return {}
    last = history[-1]
    columns = [
        column | {"items": last["items"][column["name"]]} if column["kind"] == "ragged" else column
        for column in manifest["columns"]
    ]
    return all_documents(manifest | {"rows": last["rows"], "columns": columns})


def arrays_of(column: dict[str, Any], rows: int, shard_rows: int) -> list[tuple[dict[str, Any], int, int]]:
    """Return what describes each array of a column as if it were a fixed one, with its rows and those of a shard."""
    if column["kind"] == "fixed":
        return [(column, rows, shard_rows)]
    name = column["name"]
    ranges = {"name": f"{name}/ranges", "dtype": "int64", "logical": None, "row_shape": [2], "codec": "raw"}
    return [
        (column | {"name": f"{name}/values"}, column["items"], column["shard_items"]),
        (ranges | column["ranges"], rows, shard_rows),
    ]


def read_column(store: Path, column: dict[str, Any], rows: int, shard_rows: int) -> Any:
    arrays = [read_array(store, *array) for array in arrays_of(column, rows, shard_rows)]
    if column["kind"] == "fixed":
        return arrays[0]
    values, ranges = arrays
    ends = [0, *ranges[:, 1].tolist()]
    require(ranges[:, 0].tolist() == ends[:-1] and ends[-1] == len(values) and sorted(ends) == ends, "end to end")
    items = [values[start:stop] for start, stop in ranges.tolist()]
    if column["logical"] == "utf8":
        return [row.tobytes().decode() for row in items]
    return [row.tobytes() for row in items] if column["logical"] == "binary" else items


def read_array(store: Path, column: dict[str, Any], rows: int, shard_rows: int) -> NDArray[Any]:
    shape, chunk_rows = tuple(column["row_shape"]), column["chunk_rows"]
    require(shard_rows.bit_count() == chunk_rows.bit_count() == 1 and chunk_rows <= shard_rows, "powers of two")
    shards = -(-rows // shard_rows) if prod(shape) else 0
    require(len(column["shard_nbytes"]) == len(column["footer_crc32c"]) == shards, "number of shards")
    require((store / column["name"] / "c").exists() == bool(shards), "shard folder")
    dtype = np.dtype(column["dtype"]).newbyteorder("<")
    array = np.zeros((rows, *shape), dtype)
    for shard in range(shards):
        path = store.joinpath(column["name"], "c", str(shard), *("0" for _ in shape))
        if "successor" in column and column["successor"][0] == shard:
            successor = path.with_name(f".{path.name}.tail-{column['successor'][1]}")
            path = successor if successor.exists() else path
        part = array[shard * shard_rows : (shard + 1) * shard_rows]
        read_shard(path.read_bytes(), column, shard, shard_rows // chunk_rows, part)
    if column["logical"] in (None, "utf8", "binary", "categorical"):
        return array
    if column["logical"] == "bytes":
        return np.frombuffer(array.tobytes(), f"S{shape[-1]}").reshape(rows, *shape[:-1])
    return array.view(dtype_named(column["logical"]))


def dtype_named(logical: str) -> np.dtype[Any]:
    extended = logical == "bfloat16" or logical.startswith("float8")
    return np.dtype(getattr(ml_dtypes, logical)) if extended else np.dtype(logical)


def read_shard(data: bytes, column: dict[str, Any], shard: int, slots: int, out: NDArray[Any]) -> None:
    require(len(data) == column["shard_nbytes"][shard], "file size")
    footer = data[-(20 * slots + 4) :]
    require(google_crc32c.value(footer[:-4]) == column["footer_crc32c"][shard], "footer checksum")
    checksums = struct.unpack_from(f"<{slots}I", footer)
    index = footer[4 * slots : 20 * slots]
    require(google_crc32c.value(index) == struct.unpack("<I", footer[-4:])[0], "index checksum")
    entries = list(struct.iter_unpack("<QQ", index))
    chunk_rows = column["chunk_rows"]
    chunks = -(-len(out) // chunk_rows)
    end = 0
    for k, (offset, nbytes) in enumerate(entries[:chunks]):
        require(offset == end, "chunks back to back")
        end += nbytes
        stored = data[offset:end]
        require(chunk_checksum(stored, column["codec"]) == checksums[k], f"checksum of chunk {k}")
        decoded = decode(stored, column["codec"])
        values = np.frombuffer(decoded, out.dtype).reshape(chunk_rows, *out.shape[1:])
        part = out[k * chunk_rows : (k + 1) * chunk_rows]
        part[:] = values[: len(part)]
        require(not any(values[len(part) :].tobytes()), "padding")
    require(end + len(footer) == len(data), "footer after the last chunk")
    require(set(entries[chunks:]) <= {(ABSENT, ABSENT)}, "absent chunks")
    require(not any(checksums[chunks:]), "checksums of absent chunks")


def chunk_checksum(stored: bytes, codec: str) -> int:
    return int(google_crc32c.value(stored[:-4] if codec.startswith("blosc") else stored))


def decode(stored: bytes, codec: str) -> bytes:
    kind = codec.split(":")[0]
    if kind == "raw":
        return stored
    if kind == "zstd":
        require(bool(stored[4] & 4), "content checksum of the Zstandard frame")
        return bytes(numcodecs.Zstd().decode(stored))
    require(struct.pack("<I", google_crc32c.value(stored[:-4])) == stored[-4:], "CRC32C behind the Blosc buffer")
    return bytes(numcodecs.Blosc().decode(stored[:-4]))


def array_document(column: dict[str, Any], rows: int, shard_rows: int) -> dict[str, Any]:
    dtype = np.dtype(column["dtype"])
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    kind, *options = column["codec"].split(":")
    codecs: list[dict[str, Any]] = [little if dtype.itemsize > 1 else {"name": "bytes"}]
    if kind == "zstd":
        level = int(options[0]) if options else 3
        codecs.append({"name": "zstd", "configuration": {"level": level, "checksum": True}})
    if kind == "blosc":
        level = int(options[1]) if len(options) > 1 else 5
        blosc = {"cname": options[0], "clevel": level, "shuffle": "shuffle", "typesize": dtype.itemsize, "blocksize": 0}
        codecs += [{"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]
    fill = {"b": True, "f": "NaN", "c": ["NaN", "NaN"]}.get(dtype.kind)
    row_chunk = [max(1, n) for n in column["row_shape"]]
    sharding = {
        "chunk_shape": [column["chunk_rows"], *row_chunk],
        "codecs": codecs,
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *column["row_shape"]],
        "data_type": column["dtype"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *row_chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": int(np.iinfo(dtype).max) if dtype.kind in "iu" else fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": [
            "item" if column["name"].endswith("/values") else "row",
            *(f"{column['name'].replace('/', '_')}_{axis + 1}" for axis in range(len(row_chunk))),
        ],
        "attributes": {},
    }


# The second writer.


def write_store(store: Path, column: dict[str, Any], arrays: list[NDArray[Any]], shard_rows: int) -> None:
    """Write a store of one column, whose stored numbers are given (of a ragged one, values and ranges).

    `column` lacks only sizes and checksums.
    """
    rows = len(arrays[-1])
    for array, part in zip(arrays, arrays_of(column, rows, shard_rows), strict=True):
        sizes = write_array(store, array, part[0], part[2])
        if column["kind"] == "ragged" and part[0]["name"].endswith("/ranges"):
            column = column | {"ranges": column["ranges"] | sizes}
        else:
            column = column | sizes
    manifest: dict[str, Any] = {
        "format_version": 1,
        "store_id": "fc9e22b8-4960-4def-be24-07f9f1818830",
        "generation": 1,
        "rows": rows,
        "shard_rows": shard_rows,
        "columns": [column],
        "provenance": {"tool": "another writer", "created": "2026-11-23T04:24:44+00:00", "sources": {}},
    }
    manifest["crc32c"] = manifest_crc32c(manifest)
    documents = all_documents(manifest)
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"shardstore": manifest},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": documents},
    }
    for name, document in documents.items():
        (store / name).mkdir(parents=True, exist_ok=True)
        (store / name / "zarr.json").write_text(json.dumps(document, indent=1))
    (store / "zarr.json").write_text(json.dumps(group, indent=1))


def write_array(store: Path, array: NDArray[Any], column: dict[str, Any], shard_rows: int) -> dict[str, Any]:
    """Write the shard files of an array; return their sizes and the checksums of their footers."""
    slots = shard_rows // column["chunk_rows"]
    starts = range(0, len(array), shard_rows) if prod(array.shape[1:]) else ()
    files = [shard_bytes(array[start : start + shard_rows], column, slots) for start in starts]
    for i, file in enumerate(files):
        path = store.joinpath(column["name"], "c", str(i), *("0" for _ in column["row_shape"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    footers = [google_crc32c.value(file[-(20 * slots + 4) : -4]) for file in files]
    return {"shard_nbytes": [len(file) for file in files], "footer_crc32c": footers}


def shard_bytes(rows: NDArray[Any], column: dict[str, Any], slots: int) -> bytes:
    chunk_rows = column["chunk_rows"]
    whole = np.zeros((-(-len(rows) // chunk_rows) * chunk_rows, *rows.shape[1:]), rows.dtype)
    whole[: len(rows)] = rows
    chunks = [encode(whole[i : i + chunk_rows], column["codec"]) for i in range(0, len(whole), chunk_rows)]
    checksums = [chunk_checksum(chunk, column["codec"]) for chunk in chunks] + [0] * (slots - len(chunks))
    entries, end = [], 0
    for chunk in chunks:
        entries += [end, len(chunk)]
        end += len(chunk)
    entries += [ABSENT] * (2 * slots - len(entries))
    index = struct.pack(f"<{2 * slots}Q", *entries)
    footer = struct.pack(f"<{slots}I", *checksums) + index + struct.pack("<I", google_crc32c.value(index))
    return b"".join(chunks) + footer


def encode(chunk: NDArray[Any], codec: str) -> bytes:
    if codec == "raw":
        return chunk.tobytes()
    if codec == "zstd":
        return bytes(numcodecs.Zstd(level=3, checksum=True).encode(chunk.tobytes()))
    buffer = bytes(numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE).encode(chunk))
    return buffer + struct.pack("<I", google_crc32c.value(buffer))


# Tests.


def check_second_reader(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    found = read_store(path)
    assert list(found) == list(columns)
    for name, expected in columns.items():
        assert same_bytes(found[name], expected), name


@pytest.mark.parametrize("codec", [*CODECS, "zstd:19", "blosc:zstd:9", "blosc:lz4hc", "blosc:blosclz:1", "blosc:zlib"])
def test_a_second_reader_reads_every_dtype(tmp_path: Path, codec: str) -> None:
    dtypes = (*STORED_DTYPES, *LOGICAL_DTYPES)
    columns = {f"column_{i}": random_array(dtype, (11, 2), i) for i, dtype in enumerate(dtypes)}
    with shardstore.Writer(tmp_path / "store", codec=codec, shard_bytes=256, chunk_bytes=64) as writer:
        writer.append(columns)
    check_second_reader(tmp_path / "store", columns)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 50])
def test_a_second_reader_reads_every_size_and_row_shape(tmp_path: Path, codec: str, rows: int) -> None:
    # Rows of 2, 6 and 12 bytes: 16 rows a shard, and 8, 4 and 2 rows a chunk.
    shapes: list[tuple[int, ...]] = [(), (3,), (2, 1, 3), (0,), (2, 0, 3)]
    columns = {f"column_{i}": random_array("int16", (rows, *shape), i) for i, shape in enumerate(shapes)}
    with shardstore.Writer(tmp_path / "store", codec=codec, shard_bytes=192, chunk_bytes=24) as writer:
        writer.append(columns)
    layouts = [entry.data.layout for entry in writer_manifest(tmp_path / "store").columns.values()]
    assert [layout.shard_rows for layout in layouts] == [16] * 5
    assert [layout.chunk_rows for layout in layouts[:3]] == [8, 4, 2]
    check_second_reader(tmp_path / "store", columns)


def writer_manifest(path: Path) -> Any:
    with shardstore.open(path) as store:
        return store.manifest


row_shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(
    dtype=st.sampled_from((*STORED_DTYPES, *LOGICAL_DTYPES)),
    row_shape=row_shapes,
    appends=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    codec=st.sampled_from(CODECS),
    shard_bytes=st.integers(1, 2000),
    chunk_bytes=st.integers(1, 300),
)
def test_a_second_reader_reads_whatever_was_appended(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    row_shape: tuple[int, ...],
    appends: list[int],
    codec: str,
    shard_bytes: int,
    chunk_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("appended") / "store"
    array = random_array(dtype, (sum(appends), *row_shape))
    with shardstore.Writer(path, codec=codec, shard_bytes=max(shard_bytes, 40), chunk_bytes=chunk_bytes) as writer:
        for part in np.split(array, np.cumsum(appends)[:-1]):
            writer.append({"x": part})
    check_second_reader(path, {"x": array})


@given(
    dtype=st.sampled_from(STORED_DTYPES),
    row_shape=row_shapes,
    rows=st.integers(0, 40),
    codec=st.sampled_from(CODECS),
    shard_exponent=st.integers(0, 4),
    chunk_exponent=st.integers(0, 4),
)
def test_shardstore_reads_a_second_writer(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    row_shape: tuple[int, ...],
    rows: int,
    codec: str,
    shard_exponent: int,
    chunk_exponent: int,
) -> None:
    path = tmp_path_factory.mktemp("second-writer")
    array = random_array(dtype, (rows, *row_shape))
    column = {
        "name": "x",
        "kind": "fixed",
        "dtype": dtype,
        "logical": None,
        "row_shape": list(row_shape),
        "codec": codec,
        "chunk_rows": 2 ** min(chunk_exponent, shard_exponent),
        "a key of a later release": {"that": ["means", "nothing"]},
    }
    write_store(path, column, [array], 2**shard_exponent)
    with shardstore.open(path) as store:
        assert store.verify(progress=False).damages == ()
        assert same_bytes(np.asarray(store["x"]), array)
        order = np.random.default_rng(1).integers(0, rows, 20) if rows else np.arange(0)
        assert same_bytes(store["x"][order], array[order])


counts = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 30]), max_size=20)
RAGGED_DTYPES = (*STORED_DTYPES, *LOGICAL_DTYPES, "bfloat16", "float8_e5m2", "float8_e4m3fn")


@given(
    counts=counts,
    dtype=st.sampled_from(RAGGED_DTYPES),
    item_shape=st.sampled_from([(), (2,), (0,)]),
    codec=st.sampled_from(CODECS),
    shard_bytes=st.integers(1, 200),
    chunk_bytes=st.integers(1, 60),
)
def test_a_second_reader_reads_ragged_columns(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    dtype: str,
    item_shape: tuple[int, ...],
    codec: str,
    shard_bytes: int,
    chunk_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("ragged") / "store"
    values = random_array(f"V{dtype_named(dtype).itemsize}", (sum(counts), *item_shape)).view(dtype_named(dtype))
    rows = np.split(values, np.cumsum(counts)[:-1]) if counts else []
    strings = ["aé\0" * count for count in counts]
    given = {"r": shardstore.Ragged.from_lengths(values, counts), "n": np.arange(len(counts))}
    texts = {"t": strings, "b": [string.encode() for string in strings], "c": strings}
    types = {"t": "utf8", "b": "binary", "c": "categorical"}
    options: Any = {"codec": {"r": codec, "t": codec, "n": codec}, "shard_bytes": max(32, shard_bytes)}
    with shardstore.Writer(path, types=types, chunk_bytes=chunk_bytes, **options) as writer:
        writer.append(given | texts)
    found = read_store(path)
    assert all(same_bytes(a, b) for a, b in zip(found["r"], rows, strict=True))
    assert found["t"] == strings
    assert found["b"] == texts["b"]
    categories = {column["name"]: column.get("categories") for column in stored_columns(path)}["c"]
    assert [categories[code] for code in found["c"]] == strings


def stored_columns(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_bytes())["attributes"]["shardstore"]["columns"]


@given(
    counts=counts,
    codec=st.sampled_from(CODECS),
    exponents=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
)
def test_shardstore_reads_ragged_columns_of_a_second_writer(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    codec: str,
    exponents: tuple[int, int, int, int],
) -> None:
    path = tmp_path_factory.mktemp("second-writer")
    values = random_array("int16", (sum(counts),))
    ends = np.cumsum(counts, dtype=np.int64)
    ranges = np.stack([ends - counts, ends], axis=1).astype(np.int64).reshape(-1, 2)
    shard, chunk, shard_items, chunk_items = exponents
    column = {
        "name": "r",
        "kind": "ragged",
        "dtype": "int16",
        "logical": None,
        "row_shape": [],
        "codec": codec,
        "chunk_rows": 2 ** min(chunk_items, shard_items),
        "items": len(values),
        "shard_items": 2**shard_items,
        "ranges": {"chunk_rows": 2 ** min(chunk, shard)},
    }
    write_store(path, column, [values, ranges], 2**shard)
    expected = [values[start:stop] for start, stop in ranges.tolist()]
    with shardstore.open(path) as store:
        assert store.verify(progress=False).damages == ()
        for found in (store["r"][:], store["r"].take(np.arange(len(counts)))):
            assert all(same_bytes(a, b) for a, b in zip(found, expected, strict=True))
        for batch in store.batches(3, shuffle=True, with_rows=True):
            assert all(same_bytes(a, expected[i]) for a, i in zip(batch["r"], batch["rows"], strict=True))


@pytest.mark.parametrize("ranges", [[[0, 2], [3, 5]], [[1, 2], [2, 5]], [[0, 2], [2, 4]], [[0, 3], [2, 5]]])
def test_ranges_that_do_not_lie_end_to_end_are_damage(tmp_path: Path, ranges: list[list[int]]) -> None:
    column = {
        **{"name": "r", "kind": "ragged", "dtype": "int16", "logical": None, "row_shape": [], "codec": "raw"},
        **{"chunk_rows": 1, "items": 5, "shard_items": 2, "ranges": {"chunk_rows": 1}},
    }
    write_store(tmp_path, column, [np.arange(5, dtype=np.int16), np.array(ranges)], 1)
    with shardstore.open(tmp_path) as store:
        found = [str(damage) for damage in store.verify(progress=False).damages]
    assert len(found) == 1
    assert "r/ranges" in found[0]
    assert "end to end" in found[0]


def test_both_writers_write_the_same_shard_files(tmp_path: Path) -> None:
    array = random_array("float32", (37, 3))
    for codec in CODECS:
        ours, theirs = tmp_path / f"ours {codec}", tmp_path / f"theirs {codec}"
        with shardstore.Writer(ours, codec=codec, shard_bytes=100, chunk_bytes=24) as writer:
            writer.append({"x": array})
        manifest = json.loads((ours / "zarr.json").read_bytes())["attributes"]["shardstore"]
        write_store(theirs, manifest["columns"][0], [array], manifest["shard_rows"])
        files = [path.relative_to(theirs) for path in sorted(theirs.glob("x/c/*/*"))]
        assert len(files) == 5
        assert files == [path.relative_to(ours) for path in sorted(ours.glob("x/c/*/*"))]
        for file in files:
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file


@pytest.mark.parametrize("dtype", [*STORED_DTYPES, *LOGICAL_DTYPES])
@pytest.mark.parametrize("row_shape", [(), (3,), (2, 2)])
def test_a_raw_shard_file_is_a_plain_array_from_byte_0(tmp_path: Path, dtype: str, row_shape: tuple[int, ...]) -> None:
    array = random_array(dtype, (21, *row_shape))
    row_nbytes = array[0].nbytes
    with shardstore.Writer(tmp_path / "store", shard_bytes=8 * row_nbytes, chunk_bytes=4 * row_nbytes) as writer:
        writer.append({"x": array})
    tail = ["0"] * (len(row_shape) + (np.dtype(dtype).kind == "S"))
    for shard in range(3):
        expected = array[8 * shard : 8 * shard + 8]
        file = tmp_path.joinpath("store", "x", "c", str(shard), *tail)
        assert same_bytes(np.asarray(np.memmap(file, dtype, "r", shape=expected.shape)), expected)


def test_the_examples_of_the_specification_are_what_is_written(tmp_path: Path) -> None:
    text = SPECIFICATION.read_text(encoding="utf-8")
    dumps = [
        bytes.fromhex("".join(line[:19] for line in block.splitlines()))
        for block in re.findall(r"```hexdump\n(.*?)```", text, re.DOTALL)
    ]
    documents = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    array, zstd, blosc, ragged_group, group, manifest = documents
    with shardstore.Writer(tmp_path / "store", shard_bytes=32, chunk_bytes=8) as writer:
        days = np.arange("2013-01-01", "2013-01-06", dtype="datetime64[D]")
        writer.append({"x": np.arange(10, dtype=np.int16).reshape(5, 2), "when": days})

    assert [(tmp_path / f"store/x/c/{shard}/0").read_bytes() for shard in (0, 1)] == dumps
    assert json.loads((tmp_path / "store/x/zarr.json").read_bytes()) == array
    with shardstore.Writer(tmp_path / "ragged") as writer:
        writer.append({"z": [[1], [2, 3]]})
    assert json.loads((tmp_path / "ragged/z/zarr.json").read_bytes()) == ragged_group
    found = json.loads((tmp_path / "store/zarr.json").read_bytes())
    body = found["attributes"]["shardstore"]
    assert set(body["provenance"]) == {"tool", "created", "sources"}
    # What differs from store to store.
    body |= {"store_id": manifest["store_id"], "provenance": manifest["provenance"]}
    assert body | {"crc32c": manifest_crc32c(body)} == manifest
    assert set(found) == set(group)
    assert set(found["consolidated_metadata"]) == set(group["consolidated_metadata"])
    column = {"dtype": "float64", "row_shape": [], "chunk_rows": 1, "name": "x"}
    chains = {
        codec: array_document(column | {"codec": codec}, 1, 1)["codecs"][0]["configuration"]["codecs"][1:]
        for codec in ("zstd", "blosc:lz4")
    }
    assert chains == {"zstd": [zstd], "blosc:lz4": blosc}


def test_the_specified_names_of_sources(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a é.npy", np.zeros((3, 2), ">f4"))
    np.savez(tmp_path / "in" / "b.npz", data=np.zeros((1, 2), "<f4"))
    sources = [tmp_path / "in" / "a é.npy", tmp_path / "in" / "b.npz"]
    with shardstore.ingest(sources, tmp_path / "store", progress=False):
        pass
    manifest = json.loads((tmp_path / "store/zarr.json").read_bytes())["attributes"]["shardstore"]
    assert manifest["provenance"]["sources"] == {
        "names": ["a é.npy", "b.npz[data]"],
        "sizes": [source.stat().st_size for source in sources],
        "shapes": [[3, 2], [1, 2]],
        "dtypes": [">f4", "<f4"],
    }
    assert read_store(tmp_path / "store")["data"].shape == (4, 2)
