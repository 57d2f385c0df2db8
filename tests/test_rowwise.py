"""A Rowwise transform gives what the function gives row by row, however it is called and whatever is kept."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import Rowwise

ROWS = 700


@pytest.fixture(scope="module", params=["raw", "zstd"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rowwise") / "s"
    with shardstore.Writer(path, codec=request.param, shard_bytes=4096, chunk_bytes=512) as writer:
        writer.append(
            {
                "x": np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4),
                "y": np.arange(ROWS),
                "text": [np.arange(i % 5) for i in range(ROWS)],
            }
        )
    return path


def squared(calls: list[int] | None = None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def function(rows: dict[str, Any]) -> dict[str, Any]:
        if calls is not None:
            calls.append(len(rows["y"]))
        return {"z": rows["x"].astype(np.float64) ** 2, "y": rows["y"], "n": rows["text"].lengths}

    return function


def expected(y: Any) -> dict[str, Any]:
    x = np.arange(ROWS * 4, dtype=np.float64).reshape(ROWS, 4)
    return {"z": x[y] ** 2, "y": y, "n": y % 5}


@given(
    batch_size=st.integers(1, 300), shuffle=st.sampled_from([False, "full", "window"]),
    cache=st.sampled_from([0, 60, 5000, "1MiB"]), prefetch=st.sampled_from([0, 2]), part=st.booleans(),
)  # fmt: skip
@settings(max_examples=25)
def test_every_row_is_transformed(
    path: Path, batch_size: int, shuffle: Any, cache: Any, prefetch: int, part: bool
) -> None:
    with shardstore.open(path) as store:
        table = store.rows(slice(600, 100, -1)) if part else store
        transform = Rowwise(squared(), cache=cache)
        stream = table.batches(
            batch_size, shuffle=shuffle, transform=transform, prefetch=prefetch, window_bytes=2000, with_rows=True
        )
        for _ in range(3):
            found = list(stream)
            assert [len(batch["y"]) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
            rows = np.concatenate([batch["rows"] for batch in found])
            assert np.array_equal(np.sort(rows), np.sort(table.selection.resolve(np.arange(len(table)))))
            for batch in found:
                assert set(batch) == {"z", "y", "n", "rows"}
                for name, values in expected(batch["rows"]).items():
                    assert batch[name].dtype == values.dtype
                    assert np.array_equal(batch[name], values)
        if cache:
            assert 0 < transform.cached_nbytes <= (1 << 20 if cache == "1MiB" else cache)


def test_what_is_kept_is_not_computed_again(path: Path) -> None:
    calls: list[int] = []
    with shardstore.open(path) as store:
        transform = Rowwise(squared(calls), cache="1MiB")
        stream = store.batches(50, shuffle="full", transform=transform)
        list(stream)
        assert sum(calls) == ROWS
        assert max(calls) > 50  # rows of several batches at once
        list(stream)
        list(store.batches(64, transform=transform))
        assert sum(calls) == ROWS
        decoded = store.chunks_decoded
        list(stream)
        assert store.chunks_decoded == decoded  # nor is what it would be computed from read


def test_as_much_is_kept_as_fits(path: Path) -> None:
    calls: list[int] = []
    with shardstore.open(path) as store:
        transform = Rowwise(squared(calls), cache=100 * (4 * 8 + 8 + 8 + 1))
        for _ in store.batches(50, shuffle="full", transform=transform, epochs=3):
            pass
        assert sum(calls) == ROWS + 2 * (ROWS - 100)
        assert transform.cached_nbytes <= 4900


def test_each_table_has_results_of_its_own(path: Path) -> None:
    with shardstore.open(path) as store:
        transform = Rowwise(lambda rows: {"y": rows["y"]}, cache=ROWS * 9 * 2)
        parts = store.split(train=0.5, val=0.5)
        for _ in range(2):
            for part in (*parts.values(), store.rows(slice(5, 10))):
                found = np.concatenate([batch["y"] for batch in part.batches(30, transform=transform)])
                assert np.array_equal(found, part["y"][:])


def test_a_mixture_keeps_results_of_each_source(path: Path) -> None:
    with shardstore.open(path) as store:
        calls: list[int] = []
        mixture = shardstore.mix({store.rows(slice(0, 300)): 1, store.rows(slice(300, ROWS)): 2}, stop="all")
        transform = Rowwise(squared(calls), cache="1MiB")
        for _ in range(2):
            for batch in mixture.batches(64, shuffle=True, transform=transform, with_rows=True):
                assert np.array_equal(batch["y"], batch["rows"])
                assert np.array_equal(batch["z"], expected(batch["rows"])["z"])
        assert sum(calls) < 2 * ROWS


def test_datasets_and_loaders_take_it(path: Path) -> None:
    torch = pytest.importorskip("torch")
    from shardstore.torch import StoreIterableDataset, StoreLoader

    for make in (StoreLoader, StoreIterableDataset):
        calls: list[int] = []
        loader = make(path, 10, shuffle="full", transform=Rowwise(squared(calls), cache="1MiB"))
        for _ in range(2):
            rows = []
            for batch in loader:
                assert isinstance(batch["z"], torch.Tensor)
                assert np.array_equal(batch["z"], expected(batch["y"].numpy())["z"])
                rows += batch["y"].tolist()
            assert sorted(rows) == list(range(ROWS))
        assert sum(calls) == ROWS
    single = StoreIterableDataset(path, transform=Rowwise(lambda rows: {"y": rows["y"] + 1}))
    assert [int(row["y"]) for row in single] == list(range(1, ROWS + 1))


def test_it_pickles_without_what_it_keeps(path: Path) -> None:
    transform = Rowwise(_same, cache="1MiB")
    with shardstore.open(path) as store:
        list(store.batches(50, columns="y", transform=transform))
    assert transform.cached_nbytes
    assert len(pickle.dumps(transform)) < 1000
    assert pickle.loads(pickle.dumps(transform)).cached_nbytes == 0


def _same(rows: dict[str, Any]) -> dict[str, Any]:
    return rows


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda rows: [1], TypeError, "returned a list; expected a dict of arrays"),
        (lambda rows: {"y": rows["y"][1:]}, ValueError, r"returned \d+ rows of 'y' for \d+ rows"),
        (lambda rows: {"y": 3}, ValueError, "returned one value as 'y'"),
    ],
)
def test_what_a_function_must_return(path: Path, function: Any, error: type[Exception], message: str) -> None:
    with shardstore.open(path) as store, pytest.raises(error, match=message):
        list(store.batches(10, transform=Rowwise(function)))


def test_what_cannot_be_kept(path: Path) -> None:
    with shardstore.open(path) as store:
        ragged = Rowwise(lambda rows: {"text": rows["text"]}, cache="1MiB")
        with pytest.raises(TypeError, match="results are kept as arrays of one row shape, but 'text' is a Ragged"):
            list(store.batches(10, transform=ragged))
        assert len(next(iter(store.batches(10, transform=Rowwise(_same))))["text"]) == 10

        def other(rows: dict[str, Any]) -> dict[str, Any]:
            return {"y": rows["y"].astype(np.int64 if 0 in rows["y"] else np.float64)}

        with pytest.raises(ValueError, match="must have the same columns, dtypes and row shapes"):
            list(store.batches(10, transform=Rowwise(other, cache="1MiB")))
    with pytest.raises(TypeError, match="function is a int"):
        Rowwise(5)  # type: ignore[arg-type]
    for cache in (-1, "much"):
        with pytest.raises(shardstore.SchemaError, match="not a size"):
            Rowwise(_same, cache=cache)


def test_results_of_a_column_that_was_replaced_are_not_those_of_the_new_one(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"x": np.arange(10), "z": np.ones(10)})
    store = shardstore.open(tmp_path / "s")
    transform = Rowwise(lambda rows: {"w": rows["z"] + rows["x"]}, cache="1MiB")
    assert np.array_equal(next(iter(store.batches(10, transform=transform)))["w"], np.arange(10) + 1)
    store.add_column("z", np.full(10, 100.0), replace=True)
    assert np.array_equal(next(iter(store.batches(10, transform=transform)))["w"], np.arange(10) + 100)


@pytest.mark.parametrize("name", ["rows", "mask"])
def test_a_result_cannot_be_named_as_what_a_stream_adds(path: Path, name: str) -> None:
    with shardstore.open(path) as store:
        transform = Rowwise(lambda rows: {name: rows["y"]})
        stream = store.batches(64, columns="y", transform=transform, with_rows=True, remainder="pad")
        with pytest.raises(ValueError, match=f"returned a column '{name}', which the stream adds itself"):
            list(stream)
