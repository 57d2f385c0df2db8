"""The manifest: it reads back, and nothing damaged, foreign or newer passes for it."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import LOGICAL_DTYPES, STORED_DTYPES, edit_group, edit_manifest, manifest_crc32c, write_store

import shardstore
from shardstore.codecs import BLOSC_CNAMES, Codec
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import CorruptionError, FormatError, SchemaError, ShardStoreError
from shardstore.manifest import Manifest, encode_document, load_manifest
from shardstore.schema import ArrayLayout, Field, check_name
from shardstore.shardfile import ShardRecord, footer_nbytes


def is_name(text: str) -> bool:
    try:
        return check_name(text) == text
    except SchemaError:
        return False


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_\- ]{0,8}", fullmatch=True).filter(is_name)
codecs = st.sampled_from(["raw", "zstd", "zstd:9", *(f"blosc:{cname}" for cname in BLOSC_CNAMES), "blosc:zstd:1"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    shard_rows = 2 ** draw(st.integers(0, 8))
    rows = draw(st.integers(0, 20 * shard_rows))
    columns = {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique_by=str.lower)):
        dtype = np.dtype(draw(st.sampled_from((*STORED_DTYPES, *LOGICAL_DTYPES))))
        row_shape = draw(st.lists(st.integers(0, 4), max_size=3))
        chunk_rows = 2 ** draw(st.integers(0, shard_rows.bit_length() - 1))
        layout = ArrayLayout(Field.of(name, dtype, row_shape), Codec.parse(draw(codecs)), shard_rows, chunk_rows)
        columns[name] = entry_of(layout, rows, draw(st.integers(1, 99)), draw(st.integers(0, 2**32 - 1)))
    provenance = {"tool": draw(st.text()), "created": "2026-01-01T00:00:00+00:00", "sources": draw(json_values)}
    store_id = str(uuid.UUID(int=draw(st.integers(0, 2**128 - 1))))
    unknown = draw(st.dictionaries(st.text(min_size=1).map("later {}".format), json_values, max_size=2))
    return Manifest(store_id, 1, rows, shard_rows, columns, provenance, unknown)


def entry_of(layout: ArrayLayout, rows: int, chunk_nbytes: int = 10, checksum: int = 1) -> ColumnEntry:
    """Return an entry whose sizes fit: those of raw shards follow from the layout, others are made up."""
    nbytes = []
    for shard in range(layout.num_shards(rows)):
        chunks = layout.chunks_for(layout.rows_in_shard(shard, rows))
        each = layout.chunk_nbytes if layout.codec.is_raw else chunk_nbytes
        nbytes.append(chunks * each + footer_nbytes(layout.slots))
    entry = ArrayEntry(layout, rows, np.array(nbytes, np.int64), np.full(len(nbytes), checksum, np.int64))
    return ColumnEntry(layout.field, entry)


def read_back(manifest: Manifest) -> Manifest:
    return Manifest.from_document(json.loads(encode_document(manifest.group_document())), "here")


@given(manifests())
def test_a_manifest_reads_back(manifest: Manifest) -> None:
    found = read_back(manifest)
    assert found.group_document() == manifest.group_document()
    assert list(found.columns) == list(manifest.columns)
    assert (found.store_id, found.generation, found.rows) == (manifest.store_id, 1, manifest.rows)
    assert (found.shard_rows, found.provenance) == (manifest.shard_rows, manifest.provenance)
    for name, entry in manifest.columns.items():
        assert found.columns[name].data.layout == entry.data.layout
        assert found.columns[name].data.nbytes.tolist() == entry.data.nbytes.tolist()
        for shard in range(len(entry.data.nbytes)):
            record = ShardRecord(int(entry.data.nbytes[shard]), int(entry.data.footer_crc32c[shard]))
            assert found.columns[name].data.record(shard) == record


@given(manifests())
def test_the_checksum_is_that_of_the_canonical_form(manifest: Manifest) -> None:
    body = manifest.group_document()["attributes"]["shardstore"]
    assert body["crc32c"] == manifest_crc32c(body)


@given(manifests(), st.data())
def test_white_space_and_the_order_of_keys_are_free(manifest: Manifest, data: st.DataObject) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in data.draw(st.permutations(list(value)))}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    document = json.dumps(shuffled(manifest.group_document()), indent=3)
    assert Manifest.from_document(json.loads(document), "here").group_document() == manifest.group_document()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 10 rows in 2 shards, with columns of every codec and a logical type."""
    columns: dict[str, NDArray[Any]] = {
        "x": np.arange(20, dtype=np.float32).reshape(10, 2),
        "when": np.arange(10).astype("datetime64[ms]"),
        "tag": np.array([b"ab", b"c"] * 5, "S3"),
    }
    codecs = {"x": "raw", "when": "zstd", "tag": "blosc:lz4"}
    with shardstore.Writer(tmp_path / "store", codec=codecs, shard_bytes=64, chunk_bytes=16) as writer:
        writer.append(columns)
    load_manifest(tmp_path / "store")
    return tmp_path / "store"


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {"x": np.arange(10.0)}, shard_bytes=64, chunk_bytes=16)
    edit_manifest(store, lambda body: body["provenance"].update(sources={"names": ['é\u2028"𝄞.npy']}))
    path = store / "zarr.json"
    # Written with as little white space as the package does: between the values nothing is meaningless.
    data = encode_document(json.loads(path.read_bytes()))
    original = json.loads(data)
    unseen = []
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            load_manifest(store)
        except ShardStoreError:
            continue
        # What changes nothing is the case of a hexadecimal digit in an escaped character.
        if json.loads(damaged) != original:
            unseen.append(f"{bytes(damaged[max(0, bit // 8 - 20) : bit // 8 + 20])!r}, bit {bit % 8}")
    assert unseen == []


def test_every_truncation_is_found(store: Path) -> None:
    path = store / "zarr.json"
    data = path.read_bytes()
    for length in range(len(data) - 1):  # the last byte is a line feed
        path.write_bytes(data[:length])
        with pytest.raises(CorruptionError, match="not readable JSON"):
            load_manifest(store)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\0" * 100, b"not JSON", b'{"a": 1}{', b"\x1f\x8b" + bytes(50)])
def test_anything_but_json_is_damage(store: Path, data: bytes) -> None:
    (store / "zarr.json").write_bytes(data)
    with pytest.raises(CorruptionError, match=r"zarr\.json"):
        shardstore.open(store)


# Not a store


def test_what_is_not_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"absent: .*no such directory"):
        shardstore.open(tmp_path / "absent")


def test_an_empty_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no zarr\.json"):
        shardstore.open(tmp_path)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(FormatError, match=r"a\.npy: .*it is a file, expected a directory"):
        shardstore.open(tmp_path / "a.npy")


def test_a_folder_named_like_the_metadata_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").mkdir()
    with pytest.raises(FormatError):
        shardstore.open(tmp_path)


def test_other_zarr_data_is_no_store(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "group")
    group.create_array("x", shape=(3,), dtype="i4")
    for path in (tmp_path / "group", tmp_path / "group" / "x"):
        with pytest.raises(FormatError, match="not a shardstore store"):
            shardstore.open(path)


def test_an_array_of_a_store_is_no_store(store: Path) -> None:
    with pytest.raises(FormatError, match="not a shardstore store"):
        shardstore.open(store / "x")


@pytest.mark.parametrize(
    "document",
    [
        *(None, True, 1, "text", [], [1], {}),
        {"attributes": None},
        {"attributes": []},
        {"attributes": {}},
        *({"attributes": {"shardstore": value}} for value in (None, 1, "text", [], [1], {}, {"rows": 1})),
    ],
)
def test_other_json_is_no_store(store: Path, document: Any) -> None:
    (store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match="not a shardstore store"):
        shardstore.open(store)


# Newer stores


@pytest.mark.parametrize("version", [2, 99, "2.0", None, [1], 1.5])
def test_another_format_version_is_refused_before_anything_else_is_looked_at(store: Path, version: Any) -> None:
    def change(document: Any) -> None:
        document["attributes"] = {"shardstore": {"format_version": version, "what else": "nobody knows"}}

    edit_group(store, change)
    with pytest.raises(FormatError, match="format version"):
        shardstore.open(store)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "sparse"),
        ("logical", "bfloat32"),
        ("logical", "uuid"),
        ("codec", "gzip:5"),
        ("dtype", "float128"),
        ("dtype", "decimal"),
        ("dtype", "object"),
        ("logical", "datetime64"),
    ],
)
def test_what_a_later_release_may_bring_is_refused(store: Path, key: str, value: str) -> None:
    edit_manifest(store, lambda body: body["columns"][0].update({key: value}))
    with pytest.raises(FormatError, match=value):
        shardstore.open(store)


def test_a_later_format_version_is_refused_whatever_else_is_new(store: Path) -> None:
    edit_manifest(store, lambda body: body.update(format_version=2, later={"any": [1]}))
    with pytest.raises(FormatError, match=r"format version 2; this release reads 1: install a newer shardstore"):
        shardstore.open(store)


def test_keys_of_a_later_release_are_ignored(store: Path) -> None:
    def change(body: Any) -> None:
        body["new"] = body["provenance"]["new"] = body["columns"][0]["new"] = {"any": [1, None]}

    edit_manifest(store, change)
    edit_group(store, lambda document: document["attributes"].update(note="of the user"))
    with shardstore.open(store) as opened:
        assert opened["x"][:].tolist() == np.arange(20).reshape(10, 2).tolist()
        assert opened.verify(progress=False).ok


def unknown_keys(body: Any) -> dict[tuple[str, str], Any]:
    """Return what a manifest holds under the key "later", by column and part of it."""
    parts = {("", ""): body, ("", "provenance"): body["provenance"]}
    for column in body["columns"]:
        parts |= {(column["name"], part): column.get(part, {}) for part in ("ranges", "extra")}
        parts[column["name"], ""] = column
    return {where: part["later"] for where, part in parts.items() if "later" in part}


def test_keys_of_a_later_release_are_kept_through_every_change(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with shardstore.Writer(path, types={"texts": "utf8"}) as writer:
        writer.append({"x": np.arange(3), "texts": ["a", "", "bc"], "gone": np.arange(3)})

    def change(body: Any) -> None:
        body["later"] = {"any": [1, None, {"é": True}]}
        body["provenance"]["later"] = "who"
        for number, column in enumerate(body["columns"]):
            column["later"] = [column["name"], number]
            column.setdefault("extra", {})["later"] = number
        body["columns"][1]["ranges"]["later"] = {"": -(2**60)}

    def body() -> Any:
        return json.loads((path / "zarr.json").read_bytes())["attributes"]["shardstore"]

    edit_manifest(path, change)
    expected = unknown_keys(body())
    assert len(expected) == 9
    with shardstore.open(path) as store:
        store.add_column("sum", lambda batch: batch["x"] + 1, columns="x", fingerprint="1")
        assert unknown_keys(body()) == expected
        store.compute_stats()
        assert unknown_keys(body()) == expected
        for old, new in (("x", "y"), ("texts", "words")):
            store.rename_column(old, new)
            expected = {(new if name == old else name, part): later for (name, part), later in expected.items()}
            assert unknown_keys(body()) == expected
        store.drop_column("gone")
        expected = {where: later for where, later in expected.items() if where[0] != "gone"}
        assert unknown_keys(body()) == expected
    with shardstore.Writer(path, mode="append") as writer:
        writer.append({"y": [3], "words": ["d"], "sum": [4]})
    assert unknown_keys(body()) == expected
    with shardstore.open(path) as store:
        assert store.generation == 7
        assert store["words"][:].to_list() == ["a", "", "bc", "d"]
        assert store.verify(progress=False).ok


def test_keys_of_a_later_release_do_not_make_a_computed_column_stale(store: Path) -> None:
    with shardstore.open(store) as opened:
        opened.add_column("twice", lambda batch: batch["x"] * 2, columns="x", fingerprint="1")
    edit_manifest(store, lambda body: body["columns"][0].update(later=1))
    with shardstore.open(store) as opened:
        assert opened.stale_columns() == ()


# A manifest whose checksum fits, but whose parts do not


def first(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
    return lambda body: change(body["columns"][0])


def dropped(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda mapping: mapping.pop(key)


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda mapping: mapping.update({key: value})


INCONSISTENT: dict[str, Callable[[Any], Any]] = {
    **{f"no {key}": dropped(key) for key in ("store_id", "generation", "rows", "shard_rows", "columns", "provenance")},
    **{
        f"a column without {key}": first(dropped(key))
        for key in ("name", "kind", "dtype", "logical", "row_shape", "codec", "chunk_rows", "shard_nbytes")
    },
    "a column without footer_crc32c": first(dropped("footer_crc32c")),
    "more rows": changed("rows", 17),
    "fewer rows": changed("rows", 8),
    "other rows of the same number of shards": changed("rows", 11),
    "negative rows": changed("rows", -1),
    "rows in words": changed("rows", "ten"),
    "a fraction of rows": changed("rows", 10.5),
    "other shard_rows": changed("shard_rows", 16),
    "shard_rows of 0": changed("shard_rows", 0),
    "negative shard_rows": changed("shard_rows", -8),
    "no columns": changed("columns", []),
    "columns by name": changed("columns", {"x": 1}),
    "a column twice": lambda body: body["columns"].append(copy.deepcopy(body["columns"][0])),
    "a column that is null": lambda body: body["columns"].append(None),
    "a path for a name": first(changed("name", "../x")),
    "a number for a name": first(changed("name", 3)),
    "another name": first(changed("name", "other")),
    "another dtype": first(changed("dtype", "int32")),
    "another row shape": first(changed("row_shape", [3])),
    "a negative row shape": first(changed("row_shape", [-2])),
    "a number for a row shape": first(changed("row_shape", 2)),
    "another codec": first(changed("codec", "zstd")),
    "chunk_rows of 0": first(changed("chunk_rows", 0)),
    "chunk_rows that do not divide": first(changed("chunk_rows", 3)),
    "larger chunk_rows": first(changed("chunk_rows", 16)),
    "other chunk_rows": first(changed("chunk_rows", 1)),
    "a logical type over another dtype": first(changed("logical", "datetime64[ms]")),
    "bytes over another dtype": first(changed("logical", "bytes")),
    "bytes without an axis": lambda body: body["columns"][2].update(row_shape=[]),
    "bytes of length 0": lambda body: body["columns"][2].update(row_shape=[0]),
    "a shard less": first(lambda column: (column["shard_nbytes"].pop(), column["footer_crc32c"].pop())),
    "a shard more": first(lambda column: (column["shard_nbytes"].append(9), column["footer_crc32c"].append(9))),
    "a size less": first(lambda column: column["shard_nbytes"].pop()),
    "a checksum less": first(lambda column: column["footer_crc32c"].pop()),
    "sizes in words": first(changed("shard_nbytes", ["a", "b"])),
    "sizes in a table": first(lambda column: column.update(shard_nbytes=[column["shard_nbytes"]] * 2)),
    "a size beyond 64 bits": first(lambda column: column["shard_nbytes"].__setitem__(0, 2**70)),
    "a negative size": first(lambda column: column["shard_nbytes"].__setitem__(0, -1)),
    # Mapping the file by the number of rows would reach beyond its end.
    "a raw shard too small for its rows": first(lambda column: column["shard_nbytes"].__setitem__(0, 40)),
    "a raw shard too large for its rows": first(lambda column: column["shard_nbytes"].__setitem__(1, 4096)),
    "a compressed shard smaller than its footer": lambda body: body["columns"][1]["shard_nbytes"].__setitem__(0, 40),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in INCONSISTENT.items()])
def test_an_inconsistent_manifest_is_damage(store: Path, change: Callable[[Any], Any]) -> None:
    edit_manifest(store, change)
    with pytest.raises(CorruptionError, match=r"zarr\.json"):
        shardstore.open(store)


def test_shard_rows_that_are_no_power_of_two_are_damage(store: Path) -> None:
    """Everything fits but this: a reader that shifts row numbers would read other rows."""
    layouts = [entry.data.layout for entry in load_manifest(store)[1].columns.values()]
    columns = {layout.field.name: entry_of(ArrayLayout(layout.field, layout.codec, 6, 2), 10) for layout in layouts}
    odd = Manifest(str(uuid.uuid4()), 1, 10, 6, columns, {})
    with pytest.raises(CorruptionError, match=r"shard_rows|power of two"):
        read_back(odd)


GROUP_CHANGES: dict[str, Callable[[Any], Any]] = {
    "another zarr_format": changed("zarr_format", 2),
    "no zarr_format": dropped("zarr_format"),
    "another node_type": changed("node_type", "array"),
    "no node_type": dropped("node_type"),
    "no consolidated metadata": dropped("consolidated_metadata"),
    **{f"consolidated metadata {value!r}": changed("consolidated_metadata", value) for value in (None, [], 1, {})},
    "another kind": lambda document: document["consolidated_metadata"].update(kind="outline"),
    "must_understand": lambda document: document["consolidated_metadata"].update(must_understand=True),
    "an array less": lambda document: document["consolidated_metadata"]["metadata"].pop("x"),
    "an array more": lambda document: document["consolidated_metadata"]["metadata"].update(y={}),
    "another shape": lambda document: document["consolidated_metadata"]["metadata"]["x"].update(shape=[11, 2]),
    "another fill value": lambda document: document["consolidated_metadata"]["metadata"]["x"].update(fill_value=0),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in GROUP_CHANGES.items()])
def test_a_group_document_that_does_not_follow_from_the_manifest_is_damage(
    store: Path, change: Callable[[Any], Any]
) -> None:
    edit_group(store, change)
    with pytest.raises(CorruptionError, match=r"zarr\.json"):
        shardstore.open(store)


def test_a_change_without_a_new_checksum_is_damage(store: Path) -> None:
    edit_group(store, lambda document: document["attributes"]["shardstore"]["provenance"].update(tool="other"))
    with pytest.raises(CorruptionError, match="checksum"):
        shardstore.open(store)
    edit_group(store, lambda document: document["attributes"]["shardstore"].pop("crc32c"))
    with pytest.raises(CorruptionError, match="checksum"):
        shardstore.open(store)


def test_every_new_store_has_its_own_id(tmp_path: Path) -> None:
    ids = {load_manifest(write_store(tmp_path / str(i), {"x": np.arange(3)}))[1].store_id for i in range(3)}
    assert len(ids) == 3
    assert {uuid.UUID(store_id).version for store_id in ids} == {4}
