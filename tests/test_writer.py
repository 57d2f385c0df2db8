"""A Writer: however rows are cut into appends, the store is the same; what is refused leaves no trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import (
    CHUNK_ROWS,
    CODECS,
    ROW_SHAPES,
    SHARD_ROWS,
    STORABLE,
    assert_holds,
    assert_refused,
    codecs,
    lengths,
    run_python,
    scratch,
    shard_files,
    small,
    tree,
    values,
    write_npy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from shardstore import DestinationError, SchemaError, Writer, ingest
from shardstore import open as open_store

Columns = dict[str, np.ndarray]
OPTIONS: Any = small(8)


def write(dest: Path, columns: Columns, cuts: list[int], **options: Any) -> None:
    """Write columns, cut into appends at these rows."""
    with Writer(dest, **options) as writer:
        for start, stop in zip([0, *cuts], [*cuts, None], strict=True):
            writer.append({name: array[start:stop] for name, array in columns.items()})


@settings(max_examples=40)
@given(st.data(), lengths, st.lists(st.sampled_from(STORABLE), min_size=1, max_size=3))
def test_any_cut_into_appends_writes_the_same_bytes(data: st.DataObject, rows: int, dtypes: list[str]) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    columns = {f"c{i}": values(d, (rows, *data.draw(st.sampled_from(ROW_SHAPES)))) for i, d in enumerate(dtypes)}
    options: Any = {"codec": {name: data.draw(codecs) for name in columns}}
    options |= small(max(array.itemsize * int(np.prod(array.shape[1:])) for array in columns.values()))
    with scratch() as folder:
        write(folder / "pieces", columns, cuts, **options)
        write(folder / "whole", columns, [], **options)
        assert shard_files(folder / "pieces") == shard_files(folder / "whole")
        assert sorted(path.name for path in folder.iterdir()) == ["pieces", "whole"]
        with open_store(folder / "pieces") as store:
            assert_holds(store, columns)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1, CHUNK_ROWS, CHUNK_ROWS + 1, SHARD_ROWS - 1, SHARD_ROWS, SHARD_ROWS + 1, 41])
def test_an_ingest_and_appends_of_any_size_write_the_same_bytes(tmp_path: Path, codec: str, size: int) -> None:
    array = values("<f4", (41, 2))
    ingest(write_npy(tmp_path / "part.npy", array), tmp_path / "ingested", codec=codec, **OPTIONS).close()
    write(tmp_path / "written", {"data": array}, list(range(size, 41, size)), codec=codec, **OPTIONS)
    assert shard_files(tmp_path / "written") == shard_files(tmp_path / "ingested")


@given(st.sampled_from(STORABLE), st.sampled_from(ROW_SHAPES), st.sampled_from("CF"), st.sampled_from("<>"))
@settings(max_examples=30)
def test_arrays_of_any_layout_in_memory(dtype: str, row_shape: tuple[int, ...], order: Any, endian: str) -> None:
    array = np.asarray(values(np.dtype(dtype).newbyteorder(endian), (20, *row_shape)), order=order)
    with scratch() as folder:
        with Writer(folder / "store", **small(array[:1].nbytes)) as writer:
            writer.append({"x": array[::-2]})
            writer.append({"x": array[3:5].astype(array.dtype.newbyteorder())})
            assert writer.num_rows == 12
        with open_store(folder / "store") as store:
            assert_holds(store, {"x": np.concatenate([array[::-2], array[3:5]])})


def test_plain_lists_and_any_order_of_columns(tmp_path: Path) -> None:
    with Writer(tmp_path / "store") as writer:
        writer.append({"x": [[1.5, 2], [3, 4]], "y": [True, False]})
        writer.append({"y": [], "x": np.zeros((0, 2))} | {"y": np.zeros(0, bool)})
        writer.append({"y": (True,), "x": [[5.0, 6.0]]})
    with open_store(tmp_path / "store") as store:
        assert_holds(store, {"x": np.array([[1.5, 2], [3, 4], [5, 6]]), "y": np.array([True, False, True])})


def test_what_is_appended_may_change_afterwards(tmp_path: Path) -> None:
    block = np.zeros((3, 2))
    with Writer(tmp_path / "store", codec="zstd", **small(16)) as writer:
        for i in range(5):
            block[:] = i
            writer.append({"x": block})
    with open_store(tmp_path / "store") as store:
        assert_holds(store, {"x": np.repeat(np.arange(5.0), 3)[:, None] * np.ones(2)})


@pytest.mark.parametrize("codec", CODECS)
def test_no_rows_make_a_store_of_no_rows(tmp_path: Path, codec: str) -> None:
    columns = {"x": np.zeros((0, 3), "f4"), "y": np.zeros(0, "M8[s]")}
    write(tmp_path / "store", columns, [], codec=codec)
    with open_store(tmp_path / "store") as store:
        assert_holds(store, columns)
    assert shard_files(tmp_path / "store") == {}


def test_nothing_appended_is_no_store(tmp_path: Path) -> None:
    def work() -> None:
        with Writer(tmp_path / "store"):
            pass

    assert_refused(SchemaError, work, tmp_path, "nothing was appended")


# Refusals

GOOD: Columns = {"x": np.arange(6, dtype="f4").reshape(3, 2), "y": np.arange(3)}
LATER: dict[str, tuple[dict[str, Any], str]] = {
    "another dtype": (GOOD | {"x": GOOD["x"].astype("f8")}, "column 'x' holds float32[2], but these rows are float64"),
    "a wider integer": (GOOD | {"y": GOOD["y"].astype("i4")}, "column 'y' holds int64, but these rows are int32"),
    "another row shape": (GOOD | {"x": np.zeros((3, 3), "f4")}, "float32[2], but these rows are float32[3]"),
    "a row shape that would broadcast": (GOOD | {"x": np.zeros((3, 1), "f4")}, "these rows are float32[1]"),
    "a missing axis": (GOOD | {"x": np.zeros(3, "f4")}, "these rows are float32"),
    "no rows, but another dtype": ({"x": GOOD["x"][:0], "y": np.zeros(0, "f8")}, "column 'y' holds int64"),
    "a column too few": ({"x": GOOD["x"]}, "expected the columns x, y, found x"),
    "a column too many": (GOOD | {"z": np.zeros(3)}, "expected the columns x, y, found x, y, z"),
    "other names": ({"x": GOOD["x"], "Y": GOOD["y"]}, "expected the columns x, y, found x, Y"),
    "no columns": ({}, "expected the columns x, y, found none"),
}
ALWAYS: dict[str, tuple[dict[str, Any], str]] = {
    "lengths that differ": (GOOD | {"y": np.arange(4)}, "same number of rows, but 'x' has 3, 'y' has 4"),
    "one row against many": (GOOD | {"y": np.arange(1)}, "same number of rows, but 'x' has 3, 'y' has 1"),
    "a single value": (GOOD | {"y": 5}, "column 'y' is a single value"),
    "objects": (GOOD | {"y": np.array([1, None, "a"], object)}, "column 'y' has dtype object"),
    "text": (GOOD | {"y": ["a", 2, "c"]}, 'its type is "utf8"'),
    "structured rows": (GOOD | {"y": np.zeros(3, "i4,f4")}, "column 'y' has dtype"),
}
FIRST: dict[str, tuple[dict[Any, Any], str]] = {
    "no columns": ({}, "at least one column"),
    "a slash": ({"a/b": [1]}, "bad column name 'a/b'"),
    "dots": ({"..": [1]}, "bad column name '..'"),
    "a dot": ({"zarr.json": [1]}, "bad column name 'zarr.json'"),
    "an empty name": ({"": [1]}, "bad column name ''"),
    "a reserved name": ({"rows": [1]}, "bad column name 'rows'"),
    "a name that is none": ({1: [1]}, "bad column name 1"),
    "names that differ in case only": ({"a": [1], "A": [1]}, "column 'A' is named twice"),
}


def cases(table: dict[str, tuple[Any, str]]) -> list[Any]:
    return [pytest.param(rows, reason, id=name) for name, (rows, reason) in table.items()]


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize(("rows", "reason"), cases(LATER | ALWAYS))
def test_of_a_refused_append_nothing_is_written(tmp_path: Path, rows: Any, reason: str, codec: str) -> None:
    with Writer(tmp_path / "store", codec=codec, **OPTIONS) as writer:
        for _ in range(4):
            writer.append(GOOD)
            assert_refused(SchemaError, lambda: writer.append(rows), tmp_path, reason)
        assert writer.num_rows == 12
    with open_store(tmp_path / "store") as store:
        assert_holds(store, {name: np.concatenate([array] * 4) for name, array in GOOD.items()})
    write(
        tmp_path / "calm",
        {name: np.concatenate([array] * 4) for name, array in GOOD.items()},
        [],
        codec=codec,
        **OPTIONS,
    )
    assert shard_files(tmp_path / "store") == shard_files(tmp_path / "calm")


@pytest.mark.parametrize(("rows", "reason"), cases(FIRST | ALWAYS))
def test_a_refused_first_append_settles_nothing(tmp_path: Path, rows: Any, reason: str) -> None:
    with Writer(tmp_path / "store", **OPTIONS) as writer:
        assert_refused(SchemaError, lambda: writer.append(rows), tmp_path, reason)
        writer.append({"other": np.arange(5)})
    with open_store(tmp_path / "store") as store:
        assert_holds(store, {"other": np.arange(5)})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"codec": "lz4"}, "unknown codec 'lz4'"),
        ({"codec": {"z": "raw"}}, "a codec is given for column 'z', but the columns are x, y"),
        ({"shard_bytes": 0}, "not a size in bytes: 0"),
        ({"chunk_bytes": "much"}, "not a size in bytes: 'much'"),
    ],
)
def test_options_that_fit_no_columns(tmp_path: Path, options: Any, reason: str) -> None:
    assert_refused(SchemaError, lambda: write(tmp_path / "store", GOOD, [], **options), tmp_path, reason)


# Leaving


class Stop(BaseException):
    """Something that no one handles."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("appends", [0, 1, 5])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_an_exception_leaves_nothing_new(
    tmp_path: Path, error: type[BaseException], appends: int, codec: str, mode: Any
) -> None:
    if mode == "overwrite":
        write(tmp_path / "store", GOOD, [])

    def work() -> None:
        with Writer(tmp_path / "store", codec=codec, mode=mode, **OPTIONS) as writer:
            for _ in range(appends):
                writer.append(GOOD)
            raise error("enough")

    before = tree(tmp_path)
    with pytest.raises(error, match="enough"):
        work()
    assert tree(tmp_path) == before


def test_categories_of_rows_that_are_refused_are_none(tmp_path: Path) -> None:
    with Writer(tmp_path / "s", types={"k": "categorical"}) as writer:
        writer.append({"k": ["a"], "x": [1]})
        for bad in (["no number"], [1.5], [1, 2]):
            with pytest.raises(SchemaError):
                writer.append({"k": ["b"], "x": bad})
        writer.append({"k": ["c", "a"], "x": [2, 3]})
    store = open_store(tmp_path / "s")
    assert (store.schema["k"].categories, store["k"][:].tolist()) == (("a", "c"), [0, 1, 0])


def test_nothing_stands_at_the_destination_before_the_end(tmp_path: Path) -> None:
    with Writer(tmp_path / "store", **OPTIONS) as writer:
        writer.append(GOOD)
        assert not (tmp_path / "store").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_exists_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("keep me")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("keep me")
    write(tmp_path / "store", GOOD, [])
    for name in ("folder", "file", "link", "full", "store"):
        dest = tmp_path / name
        assert_refused(DestinationError, lambda dest=dest: write(dest, GOOD, []), tmp_path, dest, "exists already")
    for name in ("file", "link", "full"):
        dest = tmp_path / name
        assert_refused(DestinationError, lambda dest=dest: write(dest, GOOD, [], mode="overwrite"), tmp_path, dest)
    with pytest.raises(ValueError, match="mode is 'replace'"):
        write(tmp_path / "new", GOOD, [], mode="replace")


def test_a_destination_that_came_to_be_in_the_meantime(tmp_path: Path) -> None:
    def work() -> None:
        with Writer(tmp_path / "store") as late:
            late.append({"y": np.zeros(5)})
            write(tmp_path / "store", GOOD, [])

    with pytest.raises(DestinationError, match="exists already"):
        work()
    with open_store(tmp_path / "store") as store:
        assert_holds(store, GOOD)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_overwriting(tmp_path: Path) -> None:
    write(tmp_path / "store", GOOD, [])
    write(tmp_path / "store", {"z": np.arange(20)}, [7], mode="overwrite", **OPTIONS)
    with open_store(tmp_path / "store") as store:
        assert_holds(store, {"z": np.arange(20)})
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_writer_is_for_one_with_statement(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store", mode="overwrite")
    with pytest.raises(ValueError, match="with statement"):
        writer.append(GOOD)
    with writer:
        writer.append(GOOD)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="with statement"):
        writer.append(GOOD)
    with pytest.raises(ValueError, match="Writer"), writer:
        writer.append(GOOD)
    assert tree(tmp_path) == before


FAIL = """
import resource, sys
import numpy as np
import shardstore

dest, mode = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
good = {"x": np.arange(10, dtype="i1"), "y": np.zeros((10, 8))}
try:
    with shardstore.Writer(dest, codec={"y": mode}) as writer:
        writer.append(good)
        try:
            writer.append({"x": np.zeros(10**5, "i1"), "y": np.random.default_rng(0).random((10**5, 8))})
        except shardstore.DestinationError as error:
            print(error)
        writer.append(good)
except (shardstore.ShardStoreError, ValueError) as error:
    print("no store:", error)
else:
    print("a store")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_after_a_failed_write_there_is_no_store_of_half_an_append(tmp_path: Path, codec: str) -> None:
    out = run_python(FAIL, tmp_path / "store", codec)
    first, last = out.splitlines()
    assert str(tmp_path / "store") in first
    assert last.startswith("no store: ")
    assert list(tmp_path.iterdir()) == []
