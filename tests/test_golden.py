"""Stores that earlier releases wrote, kept in `tests/golden`: every way of reading gives what was written then.

`tools/make_golden.py` wrote them, and beside each what was given to the writer. They are never written again: who
breaks a test here has made stores unreadable that people have.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from dumps import tree
from stores import tensor_bytes
from test_format import read_store

import shardstore
from shardstore.column import Column
from shardstore.schema import EXTENDED_DTYPES, STORED_DTYPES
from tools import make_golden

NAMES = sorted(path.stem for path in make_golden.GOLDEN.glob("*.zip"))


@dataclass(frozen=True)
class Golden:
    """A golden store, unpacked, and what it must hold: the bytes of each row, by column, and the dtypes and shapes."""

    name: str
    path: Path
    rows: Mapping[str, list[bytes]]
    arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.rows.values())))

    def check(self, found: Mapping[str, Any], rows: Iterable[int]) -> None:
        """Check that what was read, by column, are these rows."""
        numbers = list(rows)
        with shardstore.open(self.path) as store:
            for name, values in self.rows.items():
                assert rows_of(store[name], found[name]) == [values[row] for row in numbers], (self.name, name)


def rows_of(column: Column, values: Any) -> list[bytes]:
    """Return the bytes of each row, of text and names of categories in UTF-8."""
    if isinstance(values, np.ndarray):
        if column.categories:
            return [column.categories[number].encode() for number in values.tolist()]
        return [values[i : i + 1].tobytes() for i in range(len(values))]  # an item of S5 would lose its zeros
    return [bytes_of(row) for row in values]


def bytes_of(row: Any) -> bytes:
    if isinstance(row, str):
        return row.encode()
    return row if isinstance(row, bytes) else bytes(row.tobytes())


def rows_of_tensors(column: Column, values: Any) -> list[bytes]:
    """Return the bytes of each row of a column in a batch of tensors."""
    if isinstance(values, list):
        return rows_of(column, values)
    if column.categories:
        return rows_of(column, values.numpy())
    offsets = getattr(values, "offsets", None)
    items, ends = (values, range(len(values) + 1)) if offsets is None else (values.values, offsets.tolist())
    return [tensor_bytes(items[start:stop]) for start, stop in pairwise(ends)]


def expected_rows(body: Any) -> list[bytes]:
    """Return the bytes of each row of a column as `tools/make_golden.py` describes it."""
    if isinstance(body, dict):
        data, rows = bytes.fromhex(body["bytes"]), body["shape"][0]
        size = len(data) // max(1, rows)
        return [data[i * size : (i + 1) * size] for i in range(rows)]
    return [
        row.encode() if isinstance(row, str) else bytes.fromhex(row["binary" if "binary" in row else "bytes"])
        for row in body
    ]


def expected_arrays(columns: Mapping[str, Any]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the dtype of each column of numbers, and the shape of its rows or items."""
    arrays = {}
    for name, body in columns.items():
        first = body if isinstance(body, dict) else body[0]
        if isinstance(first, dict) and "dtype" in first:
            dtype = first["dtype"]
            arrays[name] = (np.dtype(getattr(ml_dtypes, dtype, dtype)), tuple(first["shape"][1:]))
    return arrays


def unpacked(name: str, folder: Path) -> Golden:
    with zipfile.ZipFile(make_golden.GOLDEN / f"{name}.zip") as archive:
        archive.extractall(folder)
    columns = json.loads((make_golden.GOLDEN / f"{name}.json").read_bytes())
    rows = {column: expected_rows(body) for column, body in columns.items()}
    return Golden(name, folder / "store", rows, expected_arrays(columns))


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return unpacked(request.param, tmp_path_factory.mktemp(request.param))


def test_columns_are_what_they_were(golden: Golden) -> None:
    with shardstore.open(golden.path) as store:
        assert list(store.columns) == list(golden.rows)
        assert len(store) == golden.num_rows
        found = {name: (store.schema[name].dtype, store.schema[name].row_shape) for name in golden.arrays}
        assert found == dict(golden.arrays)


def test_every_row_is_read_in_every_way(golden: Golden) -> None:
    count = golden.num_rows
    with shardstore.open(golden.path) as store:
        golden.check(store[:], range(count))
        golden.check({name: store[name][:] for name in store.columns}, range(count))
        for cut in (slice(1, 7), slice(3, None, 3), slice(None, None, -1), slice(5, 5)):
            golden.check(store[cut], range(count)[cut])
        if not count:
            return
        rows = [count - 1, 0, count // 2, count // 2, -1, 1]
        golden.check(store.take(rows), [row % count for row in rows])
        golden.check(store.rows([2, 0])[:], [2, 0])
        for row in range(count):
            for name, value in store[row].items():
                found = store[name].categories[value] if store[name].categories else value
                # The zeros at the end of fixed-width bytes are no part of the value.
                expected = golden.rows[name][row]
                assert bytes_of(found).rstrip(b"\0") == expected.rstrip(b"\0"), (name, row)


@pytest.mark.parametrize("shuffle", [False, True, "window"])
def test_every_row_is_streamed(golden: Golden, shuffle: Any) -> None:
    with shardstore.open(golden.path) as store:
        seen = []
        for batch in store.batches(3, shuffle=shuffle, seed=7, with_rows=True):
            seen += batch["rows"].tolist()
            golden.check(batch, batch["rows"].tolist())
    assert sorted(seen) == list(range(golden.num_rows))


def test_every_row_is_read_into_tensors(golden: Golden) -> None:
    loader = pytest.importorskip("shardstore.torch").StoreLoader
    with shardstore.open(golden.path) as store:
        for batch in loader(golden.path, 4, with_rows=True):
            for name in store.columns:
                found = rows_of_tensors(store[name], batch[name])
                assert found == [golden.rows[name][row] for row in batch["rows"].tolist()], name


def test_its_checksums_fit(golden: Golden) -> None:
    with shardstore.open(golden.path) as store:
        report = store.verify(progress=False)
    assert report.ok, report.damages


def test_nothing_of_its_manifest_is_unknown(golden: Golden) -> None:
    """What is unknown is kept without being looked at; what a release wrote itself has to be known for ever."""
    with shardstore.open(golden.path) as store:
        assert dict(store.manifest.unknown) == {}
        for name, entry in store.manifest.columns.items():
            assert [key for key, value in entry.unknown.items() if key != "ranges" or value] == [], name


def test_a_second_reader_reads_it(golden: Golden) -> None:
    """The reader that was made from docs/format.md: the page has not changed its meaning either."""
    golden.check(read_store(golden.path), range(golden.num_rows))


def test_zarr_reads_it(golden: Golden, tmp_path: Path) -> None:
    path = golden.path
    if golden.name == "pending":  # Zarr does not know where the last shard is, until the next writer gives it its name
        path = shutil.copytree(path, tmp_path / "copy")
        with shardstore.open(path) as store:
            store.compute_stats(["raw"])
    group = zarr.open_group(path, mode="r")
    found: dict[str, Any] = {}
    for name in golden.rows:
        node = group[name]
        if isinstance(node, zarr.Array):
            found[name] = np.asarray(node[...])
        else:
            items: Any = node["values"]
            ranges: Any = node["ranges"]
            found[name] = [np.asarray(items[start:stop]) for start, stop in np.asarray(ranges[...]).tolist()]
    golden.check(found, range(golden.num_rows))


def test_it_can_be_changed(golden: Golden, tmp_path: Path) -> None:
    """A release that reads a store goes on with it, and what was there stays."""
    path = shutil.copytree(golden.path, tmp_path / "copy")
    first = next(iter(golden.rows))
    with shardstore.open(path) as store:
        before = store.generation
        store.add_column("new one", np.arange(len(store)))
        store.rename_column(first, "other")
        store.drop_column("new one")
        store.compute_stats(["other"])
    with shardstore.open(path) as store:
        assert store.generation == before + 4
        assert store.verify(progress=False).ok
        found = store[:]
    golden.check({**found, first: found["other"]}, range(golden.num_rows))


def test_what_is_kept_beside_the_rows_is_understood(tmp_path: Path) -> None:
    golden = unpacked("changed", tmp_path)
    with shardstore.open(golden.path) as store:
        kept = store.kept_stats
        assert list(kept) == ["x", "sum", "text"]
        for name in ("x", "sum"):
            dtype, shape = golden.arrays[name]
            given = np.frombuffer(b"".join(golden.rows[name]), dtype).reshape(-1, *shape)
            assert (kept[name].count, kept[name].minimum, kept[name].maximum) == (len(given), given.min(), given.max())
        # "twice" was made of a column that is gone, "sum" of one that is as it was.
        assert store.stale_columns() == ("twice",)
        before = store.generation
        store.add_column("sum", lambda batch: 1 / 0, columns="x", fingerprint="sum 1")  # there already
        assert store.generation == before
    with shardstore.open(unpacked("ingested", tmp_path / "other").path) as store:
        sources = store.manifest.provenance["sources"]
        assert sources["names"] == ["part-0.npy", "part-1.npy", "part-2.npy"]
        assert sources["shapes"] == [[4, 3], [1, 3], [6, 3]]


@pytest.mark.parametrize("name", ["grown", "pending"])
def test_earlier_generations_are_the_first_rows(name: str, tmp_path: Path) -> None:
    golden = unpacked(name, tmp_path)
    ends = (5, 6, 8, 11, 12)[: 4 + (name == "pending")]
    for generation, rows in enumerate(ends, 1):
        with shardstore.open(golden.path, generation=generation) as store:
            golden.check(store[:], range(rows))
    with shardstore.Writer(golden.path, mode="append") as writer:
        writer.append(shardstore.open(golden.path).take([0, 1, 2, 3, 4]))
    with shardstore.open(golden.path) as store:
        assert store.verify(progress=False).ok
        golden.check(store[:], [*range(ends[-1]), 0, 1, 2, 3, 4])
    assert list(golden.path.rglob(".*.tail-*")) == []


def test_what_was_interrupted_is_gone_on_with_or_goes(tmp_path: Path) -> None:
    golden = unpacked("interrupted", tmp_path)
    (left,) = tmp_path.glob("store.partial-*")
    batches = []

    def twice(batch: dict[str, Any]) -> Any:
        batches.append(len(batch["int8"]))
        return batch["int8"] * 2

    with shardstore.open(golden.path) as store:
        store.add_column("later", twice, columns="int8", fingerprint="twice", batch_size=4)
        assert batches == [3]  # of 11 rows, in shards of 4
        assert np.array_equal(store["later"][:], store["int8"][:] * 2)
        assert store.verify(progress=False).ok
    with shardstore.Writer(golden.path, mode="overwrite") as writer:
        assert not left.exists()
        writer.append({"x": np.arange(3)})


# All of the format


def test_there_is_a_golden_store_of_everything() -> None:
    assert set(NAMES) == set(make_golden.STORES)
    kinds, codecs = set(), set()
    for name in NAMES:
        with zipfile.ZipFile(make_golden.GOLDEN / f"{name}.zip") as archive:
            manifest = json.loads(archive.read("store/zarr.json"))["attributes"]["shardstore"]
        for column in manifest["columns"]:
            kinds.add(column["logical"] or column["dtype"])
            codecs.add(column["codec"].partition(":")[0])
    units = {f"{kind}[{unit}]" for kind in ("datetime64", "timedelta64") for unit in make_golden.UNITS}
    assert kinds == {*STORED_DTYPES, *EXTENDED_DTYPES, *units, "bytes", "utf8", "binary", "categorical"}
    assert codecs == {"raw", "zstd", "blosc"}
    assert sum(path.stat().st_size for path in make_golden.GOLDEN.iterdir()) < 300_000


def test_golden_stores_are_not_written_again(tmp_path: Path) -> None:
    make_golden.main(["zero-rows", "--to", str(tmp_path)])
    written = tree(tmp_path)
    assert set(written) == {"zero-rows.zip", "zero-rows.json"}
    with pytest.raises(SystemExit):
        make_golden.main(["zero-rows", "--to", str(tmp_path)])
    assert tree(tmp_path) == written
    make_golden.main(["zero-rows", "--to", str(tmp_path), "--overwrite"])
    assert tree(tmp_path) != written
