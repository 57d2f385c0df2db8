"""Reading: stores, views and columns against plain NumPy arrays, for every way in which a column can lie on disk."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_selection import indices, model

import shardstore
from shardstore import mapping
from shardstore.readers import opening
from shardstore.table import Table

ROWS = 10_001  # of 4,096-row shards: two full ones and a short one that ends within a chunk


def make_arrays(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.integers(0, 50, (rows, 8)).astype(np.float32),
        "image": rng.integers(0, 255, (rows, 5, 5), np.uint8),  # 25 bytes a row: shards are whole pages
        "y": np.arange(rows, dtype=np.int64),
        "flag": rng.random(rows) < 0.5,
        "time": np.arange(rows).astype("M8[ns]"),
        "tag": np.array([b"%05d" % i for i in range(rows)], "S5"),
        "none": np.zeros((rows, 3, 0), np.int16),
    }


ARRAYS = make_arrays(ROWS)
KINDS = ("contiguous", "phantom", "streamed", "positional", "shardwise", "zstd", "blosc")


def write(path: Path, arrays: dict[str, np.ndarray], kind: str) -> shardstore.Store:
    codec = {"zstd": "zstd:1", "blosc": "blosc:lz4"}.get(kind, "raw")
    # 128 rows a shard are no whole pages for most columns; 4,096 are for all.
    shard_bytes = 512 * 8 if kind == "phantom" else 4096 * 32
    with shardstore.Writer(path, codec=codec, shard_bytes=shard_bytes, chunk_bytes=1024) as writer:
        writer.append(arrays)
    return shardstore.open(path, access="streaming" if kind == "streamed" else "auto")


def limit(kind: str, patch: pytest.MonkeyPatch) -> None:
    """Take from the process what a kind of reader does without."""
    if kind in ("positional", "shardwise"):
        patch.setattr(mapping, "max_map_count", lambda: 0)
    if kind == "shardwise":
        patch.setattr(opening, "CAN_READ_BY_POSITION", False)


@pytest.fixture(scope="module", params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[shardstore.Store]:
    path = tmp_path_factory.mktemp("table") / request.param
    write(path, ARRAYS, request.param)
    with pytest.MonkeyPatch.context() as patch:
        limit(request.param, patch)
        with shardstore.open(path, access="streaming" if request.param == "streamed" else "auto") as opened:
            for name in opened.columns:
                opened[name].take([0])
            yield opened


def same(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def test_what_went_in_comes_out(store: shardstore.Store) -> None:
    assert len(store) == store.num_rows == ROWS
    assert store.columns == tuple(ARRAYS)
    assert store.nbytes == sum(array.nbytes for array in ARRAYS.values())
    assert store.generation == 1
    for name, array in ARRAYS.items():
        column = store[name]
        assert (column.shape, column.dtype, column.ndim, column.nbytes, len(column)) == (
            *(array.shape, array.dtype, array.ndim, array.nbytes),
            len(array),
        )
        assert store.schema[name].dtype == array.dtype
        same(column, array)
        same(column[:], array)


@given(st.data())
def test_every_index_reads_what_numpy_reads(store: shardstore.Store, data: st.DataObject) -> None:
    table: Table = store
    expected = np.arange(ROWS)
    for _ in range(data.draw(st.integers(0, 2))):
        first = data.draw(st.integers(0, len(expected)))
        index = data.draw(st.sampled_from([slice(first, None, 2), slice(None, first, -1), expected % 3 == 0]))
        index = index[: len(expected)] if isinstance(index, np.ndarray) else index
        if isinstance(index, np.ndarray) and len(index) != len(expected):
            continue
        table, expected = table.rows(index), expected[index]
    near = st.integers(0, 3).map(lambda k: 4096 * k) | st.integers(0, len(expected))
    index = data.draw(indices(min(len(expected), 40)) | st.builds(slice, near, near, st.sampled_from([1, 3, -2])))
    if isinstance(index, np.ndarray) and index.dtype == bool:
        index = np.resize(index, len(expected)) if len(index) else np.zeros(len(expected), bool)
    if isinstance(index, list | np.ndarray) and len(expected) < 40 and np.asarray(index).dtype != bool:
        index = np.asarray(index, np.int64) % max(1, len(expected)) if len(expected) else []
    rows = model(expected, index)
    got = table[index]
    for name, array in ARRAYS.items():
        same(table[name][index], array[rows])
        same(got[name], array[rows])


@given(st.lists(st.integers(-ROWS, ROWS - 1), max_size=300))
def test_take_keeps_order_and_duplicates(store: shardstore.Store, rows: list[int]) -> None:
    rows += rows[:5]
    taken = store.take(rows)
    out = {name: np.empty((len(rows), *array.shape[1:]), array.dtype) for name, array in ARRAYS.items()}
    assert store.take(rows, out=out).keys() == out.keys()
    for name, array in ARRAYS.items():
        same(taken[name], array[rows])
        same(out[name], array[rows])
        assert taken[name].flags.writeable
        assert taken[name].flags.owndata or taken[name].base is not None
    assert list(store.take(rows, "y")) == ["y"]
    assert list(store.take(rows, ["y", "x"])) == ["y", "x"]


def test_single_rows(store: shardstore.Store) -> None:
    for row in (0, 4095, 4096, ROWS - 1, -1, -ROWS):
        got = store[row]
        for name, array in ARRAYS.items():
            same(got[name], array[row])
            same(store[name][row], array[row])
    assert isinstance(store[0]["y"], np.int64)


def test_rows_out_of_range_are_named(store: shardstore.Store) -> None:
    for read in (store["x"].__getitem__, store.__getitem__, store["x"].take, store.take, store.rows):
        with pytest.raises(IndexError, match=f"row {ROWS:,} is out of range for {ROWS:,} rows"):
            read([0, ROWS])
    with pytest.raises(IndexError, match="row -10,002"):
        store[-ROWS - 1]


def test_empty_selections_have_the_columns_dtype_and_shape(store: shardstore.Store) -> None:
    for empty in ([], slice(5, 5), np.zeros(ROWS, bool), np.array([], np.int32)):
        for name, array in ARRAYS.items():
            same(store[name][empty], array[:0])
        assert len(store.rows(empty)) == 0
        assert store.rows(empty)[:]["x"].shape == (0, 8)


def test_views_narrow_columns_and_rows(store: shardstore.Store) -> None:
    view = store.select("y", "x").rows(slice(100, 9000, 7)).rows([5, 1, 5])
    assert view.columns == ("y", "x")
    assert view["y"][:].tolist() == [135, 107, 135]
    assert len(view.rows(1)) == 1
    found = store.where(lambda block: block["y"] % 1000 == 7, "y")
    assert found["y"][:].tolist() == list(range(7, ROWS, 1000))
    assert found.where(lambda block: (block["y"] > 5000) & (block["x"][:, 0] >= 0), ["x", "y"]).num_rows == 5
    assert len(store.where(lambda block: np.zeros(len(block["y"]), bool), "y")) == 0
    for wrong in (lambda block: block["y"], lambda block: True, lambda block: block["flag"][:-1]):
        with pytest.raises(TypeError, match="one boolean per row"):
            store.where(wrong, ["y", "flag"])


def test_unknown_columns_are_named(store: shardstore.Store) -> None:
    for read in (store.select, store.__getitem__, lambda name: store.take([0], name)):
        with pytest.raises(KeyError, match="no column 'q'; the columns are x, image"):
            read("q")
    with pytest.raises(ValueError, match="different"):
        store.select("x", "x")
    with pytest.raises(ValueError, match="different"):
        store.select()


def test_out_must_fit(store: shardstore.Store) -> None:
    bad = [
        np.empty((3, 8), np.float32),
        np.empty((2, 8), np.float64),
        np.empty((2, 16), np.float32)[:, ::2],
        np.empty((2, 9), np.float32),
    ]
    for out in bad:
        with pytest.raises(ValueError, match="out for column 'x' must be"):
            store["x"].take([0, 1], out=out)
    with pytest.raises(ValueError, match="exactly the columns"):
        store.take([0], columns="x", out={})
    with pytest.raises(TypeError, match="slice"):
        store.take(slice(0, 3))


def test_array_protocol(store: shardstore.Store) -> None:
    column = store["x"]
    same(np.asarray(column), ARRAYS["x"])
    same(np.asarray(column, np.float64), ARRAYS["x"].astype(np.float64))
    copy = np.array(column)
    copy[:] = 0
    same(column[:], ARRAYS["x"])
    with pytest.raises(ValueError, match="needs a copy"):
        column.__array__(np.float64, copy=False)
    assert column[:].mean() == ARRAYS["x"].mean()


def test_pickles_hold_no_data(store: shardstore.Store) -> None:
    for table in (store, store.select("y"), store.rows(slice(10, 20)), store.rows([3, 1])):
        data = pickle.dumps(table)
        assert len(data) < 1000
        again = pickle.loads(data)
        same(again["y"][:], table["y"][:])
    same(pickle.loads(pickle.dumps(store["x"]))[:3], ARRAYS["x"][:3])


def test_a_pickle_does_not_open_another_store(tmp_path: Path) -> None:
    store = write(tmp_path / "s", make_arrays(3), "contiguous")
    data = pickle.dumps(store)
    with shardstore.Writer(tmp_path / "s", mode="overwrite") as writer:
        writer.append(make_arrays(3))
    with pytest.raises(shardstore.FormatError, match="replaced"):
        pickle.loads(data)["y"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 4095, 4096, 4097, 8192])
def test_sizes_that_hurt(tmp_path: Path, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(kind, monkeypatch)
    arrays = make_arrays(rows)
    with write(tmp_path / "s", arrays, kind) as store:
        assert len(store) == rows
        for name, array in arrays.items():
            same(store[name][:], array)
            same(store[name][::-1], array[::-1])
            same(store[name].take(np.arange(rows)), array)


def test_slices_of_raw_columns_are_views_that_nobody_can_write(tmp_path: Path) -> None:
    store = write(tmp_path / "s", ARRAYS, "contiguous")
    for name in ("x", "image", "y", "time", "tag"):
        base = store[name][:]
        view = store[name][4000:4200]  # across two shards
        assert np.shares_memory(base, view)
        assert np.shares_memory(base, store[name][::100])
        assert not view.flags.writeable
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            view[0] = view[1]
    assert np.shares_memory(store["x"][7], store["x"][:])


def test_reads_after_close_are_refused_and_arrays_stay_valid(tmp_path: Path) -> None:
    store = write(tmp_path / "s", ARRAYS, "contiguous")
    view = store["x"][10:20]
    with store:
        pass
    with pytest.raises(ValueError, match="closed"):
        store["x"][0]
    same(view, ARRAYS["x"][10:20])


def test_a_replaced_store_stays_readable_for_those_who_have_it_open(tmp_path: Path) -> None:
    store = write(tmp_path / "s", ARRAYS, "contiguous")
    before = store["x"][:]
    with shardstore.Writer(tmp_path / "s", mode="overwrite") as writer:
        writer.append({"z": np.zeros(3)})
    same(before, ARRAYS["x"])
    assert shardstore.open(tmp_path / "s").columns == ("z",)


def test_repr_says_what_it_is(store: shardstore.Store) -> None:
    assert repr(store).startswith("Store(10,001 rows of {x: float32[8], image: uint8[5×5], y: int64")
    assert repr(store.rows(slice(0, 2)).select("y")).startswith("View(2 rows of {y: int64}")
    assert repr(store["x"]) == "Column('x', shape=(10001, 8), dtype=float32)"


def test_a_view_keeps_its_rows_whatever_becomes_of_the_index(store: shardstore.Store) -> None:
    index = np.array([3, ROWS - 1])
    view = store.rows(index)
    index[:] = -5
    assert view["y"][:].tolist() == [3, ROWS - 1]
    with pytest.raises(ValueError, match="read-only"):
        view.selection.rows[0] = 10**9  # type: ignore[index]


def test_relative_paths_survive_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("s"), make_arrays(10), "contiguous")
    store = shardstore.open("s")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(store))["y"][:].tolist() == list(range(10))
    assert store.zarr()["y"].shape == (10,)


def test_a_column_may_be_named_by_a_string_and_looked_for(store: shardstore.Store) -> None:
    assert list(next(iter(store.batches(2, columns="image")))) == ["image"]
    assert "image" in store
    assert "q" not in store
    assert [row["y"] for row in store.rows(slice(3, 6))] == [3, 4, 5]
    assert list(store.rows(slice(3, 6))["y"]) == [3, 4, 5]


def test_slices_backwards_are_views_too(tmp_path: Path) -> None:
    store = write(tmp_path / "s", ARRAYS, "contiguous")
    assert np.shares_memory(store["x"][:], store["x"][::-3])
    assert np.shares_memory(store["x"][:], store.rows(slice(None, None, -1))["x"][5:9])
