"""Joined tables against NumPy: every way to read them, in every order, whatever rows stand side by side."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import assert_refused, scratch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstore
from shardstore.table import Table

Array = NDArray[Any]
ROWS = 150


def write(path: Path, name: str, rows: int, codec: str) -> shardstore.Store:
    """Write a store of numbers, `NAME-n`, of pairs, and of strings, which tell the store and the row."""
    numbers = np.arange(rows) + 1000 * ord(name)
    options: dict[str, Any] = {"codec": codec, "shard_bytes": 32 * 16, "chunk_bytes": 8 * 16}
    with shardstore.Writer(path / name, types={f"{name}-s": "utf8"}, **options) as writer:
        columns = {"n": numbers, "p": np.stack([numbers, -numbers], axis=1), "s": [str(n) * (n % 3) for n in numbers]}
        writer.append({f"{name}-{key}": column for key, column in columns.items()})
    return shardstore.open(path / name)


def part(data: st.DataObject, store: shardstore.Store, count: int) -> tuple[Table, Array]:
    """Draw a view of `count` rows of a store, and the numbers of these rows."""
    rows = len(store)
    kind = data.draw(st.sampled_from(["first", "later", "back", "listed", "sample", "split", "joined"]))
    if kind == "first" and count == rows:
        return store, np.arange(rows)
    if kind == "back":
        return store.rows(slice(None, None, -1)).rows(slice(0, count)), np.arange(rows)[::-1][:count]
    if kind == "listed":
        index = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=count, max_size=count)), np.int64)
        return store.rows(index), index
    if kind == "split":
        view = store.split(seed=3, a=count, b=rows - count)["a"]
        return view, view.selection.resolve(np.arange(count))
    if kind == "sample":
        view = store.sample(count, seed=5)
        return view, view.selection.resolve(np.arange(count))
    start = data.draw(st.integers(0, rows - count))
    view = store.rows(slice(start, start + count))
    if kind == "joined":
        name = store.columns[0]
        return view.select(name).join(view.select(*store.columns[1:])), np.arange(start, start + count)
    return view, np.arange(start, start + count)


def expected(name: str, rows: Array) -> dict[str, Any]:
    numbers = rows + 1000 * ord(name)
    return {
        f"{name}-n": numbers.tolist(),
        f"{name}-p": np.stack([numbers, -numbers], axis=1).tolist(),
        f"{name}-s": [str(n) * (n % 3) for n in numbers],
    }


def lists(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: column.to_list() if isinstance(column, shardstore.Ragged) else column.tolist()
        for name, column in batch.items()
    }


def picked(columns: dict[str, Any], index: Any) -> dict[str, Any]:
    rows = np.arange(len(next(iter(columns.values()))))[index].tolist()
    return {name: [column[row] for row in rows] for name, column in columns.items()}


@settings(max_examples=40)
@given(
    count=st.sampled_from([0, 1, 8, 31, 64, 100]),
    codecs=st.tuples(*[st.sampled_from(["raw", "zstd"])] * 2),
    data=st.data(),
)
def test_a_join_is_its_columns_side_by_side(count: int, codecs: tuple[str, str], data: st.DataObject) -> None:
    with scratch() as folder:
        rows = [data.draw(st.sampled_from([max(1, count), ROWS])) for _ in codecs]
        stores = [write(folder, name, n, codec) for name, n, codec in zip("ab", rows, codecs, strict=True)]
        (left, left_rows), (right, right_rows) = (part(data, store, min(count, len(store))) for store in stores)
        joined = left.join(right)
        model = expected("a", left_rows) | expected("b", right_rows)
        assert len(joined) == count
        assert joined.columns == left.columns + right.columns
        assert joined.schema == left.schema | right.schema
        assert lists(joined[:]) == model
        bound = st.integers(-count - 1, count + 1) | st.none()
        index = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 3, -1])))
        some = data.draw(st.lists(st.integers(0, count - 1), max_size=9)) if count else []
        assert lists(joined[index]) == lists(joined.rows(index)[:]) == picked(model, index)
        assert lists(joined.take(some)) == picked(model, np.array(some, np.int64))
        for name in ("a-s", "b-s"):
            assert joined[name].lengths.tolist() == [len(text) for text in model[name]]
        copy = pickle.loads(pickle.dumps(joined))
        for shuffle in (False, "full", "window"):
            options: dict[str, Any] = {"shuffle": shuffle, "seed": 2, "window_bytes": 2048, "with_rows": True}
            seen = []
            batches = zip(joined.batches(7, **options), copy.batches(7, **options), strict=True)
            for batch, same in batches:
                numbers = batch.pop("rows")
                assert lists(batch) == picked(model, numbers)
                assert {name: column for name, column in lists(same).items() if name != "rows"} == lists(batch)
                seen.append(numbers)
            assert sorted(np.concatenate([*seen, np.empty(0, np.int64)]).tolist()) == list(range(count))
        for name, view in joined.split(seed=1, u=count // 3, v=count - count // 3).items():
            assert len(view) == {"u": count // 3, "v": count - count // 3}[name]
            own = view.selection.resolve(np.arange(len(view)))
            assert lists(view[:]) == picked(model, own)


def test_slices_of_raw_columns_are_not_copied(tmp_path: Path) -> None:
    a, b = (write(tmp_path, name, ROWS, "raw") for name in "ab")
    joined = a.rows(slice(10, 110)).join(b.rows(slice(40, 140)))
    assert np.shares_memory(joined["a-n"][5:20], a["a-n"][15:30])
    assert np.shares_memory(joined["b-p"][5:20], b["b-p"][45:60])
    assert not joined["b-n"][:].flags.writeable
    c, d = (write(tmp_path, name, 30, "raw") for name in "cd")  # of one shard, so that any step is a view
    backwards = c.rows(slice(None, None, -2)).join(d.rows(slice(0, 15)))
    assert backwards["c-n"][3:9:2].tolist() == c["c-n"][::-2][3:9:2].tolist()
    assert np.shares_memory(backwards["c-n"][3:9:2], c["c-n"][:])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a", 20, "raw"), write(tmp_path, "b", 21, "raw")
    assert_refused(shardstore.SchemaError, lambda: a.join(b), tmp_path, "20", "21", a.path, b.path)
    assert_refused(shardstore.SchemaError, lambda: a.join(a.select("a-p")), tmp_path, "'a-p'", "rename", "select")
    assert_refused(TypeError, lambda: a.join({"x": np.zeros(20)}), tmp_path, "dict")  # type: ignore[arg-type]
    assert_refused(KeyError, lambda: a.select("a-p").join(b.rows(slice(20)))["a-n"], tmp_path, "a-n")
    assert a.select("a-p").join(a.select("a-n")).columns == ("a-p", "a-n")


def test_states_are_those_of_this_join(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path, name, ROWS, "zstd") for name in "abc")

    def resumed(table: Table, state: Any) -> list[int]:
        stream = table.batches(8, shuffle=True, seed=4, with_rows=True)
        stream.load_state_dict(state)
        return np.concatenate([batch["rows"] for batch in stream]).tolist()

    stream = a.join(b).batches(8, shuffle=True, seed=4, with_rows=True)
    first = [batch["rows"].tolist() for _, batch in zip(range(4), stream, strict=False)]
    state = json.loads(json.dumps(stream.state_dict()))
    rest = resumed(shardstore.open(a.path).join(shardstore.open(b.path)), state)
    assert sorted(sum(first, []) + rest) == list(range(ROWS))
    b.add_column("new", np.arange(ROWS))
    assert resumed(a.join(b.select("b-n", "b-p", "b-s")), state) == rest
    for other in (a, b, b.join(a), a.join(c), a.rows(slice(None, None, -1)).join(b), a.join(b.sample(ROWS))):
        with pytest.raises(shardstore.StateError, match="store"):
            resumed(other, state)


def decoded(store: shardstore.Store) -> int:
    return store.chunks_decoded


@pytest.mark.parametrize("starts", [(0, 0), (96, 40), (13, 13), (5, 77), (13, 96)])
def test_windows_decode_each_chunk_once(tmp_path: Path, starts: tuple[int, int]) -> None:
    rows = 1024
    stores = [write(tmp_path, name, rows, "zstd") for name in "ab"]
    count = rows - 128
    views = [
        store.select(f"{name}-p").rows(slice(start, start + count))
        for store, name, start in zip(stores, "ab", starts, strict=True)
    ]
    joined = views[0].join(views[1])
    before = sum(map(decoded, stores))
    stream = joined.batches(16, shuffle="window", window_bytes=8192, seed=1)
    assert sum(len(batch["a-p"]) for batch in stream) == count
    found = sum(map(decoded, stores)) - before
    least = sum(-(-(start + count) // 8) - start // 8 for start in starts)
    if starts[0] % 8 == starts[1] % 8:
        assert found == least
    else:  # sections begin with a chunk of one; the other's are cut by some
        sections = -(-count // 8) + 1
        assert found <= least + sections


def test_scattered_rows_leave_the_other_tables_chunks_whole(tmp_path: Path) -> None:
    a, b = (write(tmp_path, name, 1024, "zstd") for name in "ab")
    joined = a.select("a-p").join(b.select("b-p").sample(1024, seed=1))
    before = decoded(a)
    stream = joined.batches(16, shuffle="window", window_bytes=8192, seed=1)
    assert sorted(np.concatenate([batch["a-p"][:, 0] for batch in stream]).tolist()) == a["a-n"][:].tolist()
    assert decoded(a) - before == 128 + 64  # and those of the column that it is compared with


@pytest.mark.parametrize("part", ["all", "later", "one", "back", "sample"])
def test_one_store_joins_as_itself(tmp_path: Path, part: str) -> None:
    """The order of a join of a view's own columns is that of the view, whose sections begin where its chunks do."""
    store = write(tmp_path, "a", 1024, "zstd")
    index = {"later": slice(13, 900), "one": slice(13, 14), "back": slice(None, None, -1)}.get(part, slice(None))
    view = store.sample(1000, seed=1) if part == "sample" else store.rows(index)
    joined = view.select("a-n").join(view.select("a-p", "a-s"))
    for shuffle in (False, "full", "window"):
        for window_bytes in (4096, 1 << 20):
            options: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "window_bytes": window_bytes}
            assert joined.plan(8, **options) == view.plan(8, **options)
    assert lists(joined[:]) == lists(view[:])


def test_a_loader_of_torch_reads_a_join(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    from torch.utils.data import DataLoader

    from shardstore.torch import StoreIterableDataset, StoreLoader

    a, b = (write(tmp_path, name, ROWS, "zstd").select(f"{name}-n") for name in "ab")
    joined = a.join(b.rows(slice(None, None, -1)))
    loaded = [
        StoreLoader(joined, 16, shuffle=True, seed=1),
        DataLoader(StoreIterableDataset(joined, batch_size=16, shuffle=True, seed=1), batch_size=None, num_workers=2),
    ]
    expected = [batch["a-n"].tolist() for batch in joined.batches(16, shuffle=True, seed=1)]
    for loader in loaded:
        batches = list(loader)
        assert [batch["a-n"].tolist() for batch in batches] == expected
        for batch in batches:
            assert ((batch["a-n"] - 97_000) + (batch["b-n"] - 98_000)).tolist() == [ROWS - 1] * len(batch["a-n"])


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_windows_over_joined_documents_follow_the_join(tmp_path: Path, codec: str) -> None:
    """Rows of a side that is a view do not follow one another in its store."""
    documents = [list(range(100 * i, 100 * i + i)) for i in range(20)]
    with shardstore.Writer(tmp_path / "a", codec=codec) as writer:
        writer.append({"tokens": documents})
    with shardstore.Writer(tmp_path / "b") as writer:
        writer.append({"y": np.arange(10)})
    order = np.random.default_rng(0).permutation(20)[:10]
    joined = shardstore.open(tmp_path / "b").join(shardstore.open(tmp_path / "a").rows(order))
    views = [(joined, order), (joined.rows(slice(None, None, -2)), order[::-2]), (joined.rows([3, 1]), order[[3, 1]])]
    for view, rows in views:
        flat = [token for row in rows for token in documents[row]]
        windows = view.windows("tokens", 3, documents=True)
        assert windows["tokens"][:].reshape(-1).tolist() == flat[: len(flat) // 3 * 3]
        names = [i for i, row in enumerate(rows) for _ in documents[row]]
        assert windows["document"][:].reshape(-1).tolist() == names[: len(flat) // 3 * 3]
