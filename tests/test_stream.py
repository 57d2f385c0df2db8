"""Batches: every row of an epoch once, in an order that depends on nothing but store, seed and epoch."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstore

ROWS = 3000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> shardstore.Store:
    path = tmp_path_factory.mktemp("stream") / "s"
    with shardstore.Writer(path, codec={"z": "zstd"}, shard_bytes=512 * 16, chunk_bytes=1024) as writer:
        writer.append({"x": np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4), "z": np.arange(ROWS)})
    return shardstore.open(path)


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in batch["rows"].tolist()]


@given(
    count=st.integers(0, ROWS) | st.sampled_from([0, 1, 511, 512, 513]),
    batch_size=st.integers(1, 700) | st.sampled_from([1, ROWS, 10**9]),
    shuffle=st.sampled_from([False, True, "full", "window"]),
    seed=st.integers(),
    remainder=st.sampled_from(["keep", "drop"]),
    offset=st.integers(0, 5),
)
def test_every_row_comes_once_an_epoch(
    store: shardstore.Store, count: int, batch_size: int, shuffle: Any, seed: int, remainder: Any, offset: int
) -> None:
    start = min(offset, ROWS - count)
    if remainder == "drop" and 0 < count < batch_size:
        remainder = "keep"  # nothing would be left, which is an error
    view = store.rows(slice(start, start + count))
    stream = view.batches(batch_size, shuffle=shuffle, seed=seed, remainder=remainder, with_rows=True)
    for epoch in range(2):
        batches = list(stream)
        assert len(batches) == len(stream)
        sizes = [len(batch["rows"]) for batch in batches]
        whole, rest = divmod(count, batch_size)
        assert sizes == [batch_size] * whole + [rest] * (rest > 0 and remainder == "keep")
        order = stream.plan.rows(epoch, 0, count) + start
        assert sorted(order.tolist()) == list(range(start, start + count))
        assert rows_of(batches) == order[: sum(sizes)].tolist()
        for batch in batches:
            assert list(batch) == ["x", "z", "rows"]
            assert batch["z"].tolist() == batch["rows"].tolist()
            assert batch["x"].dtype == np.float32
            assert batch["x"].tolist() == (batch["rows"][:, None] * 4 + np.arange(4)).tolist()


def test_unshuffled_is_the_stores_order(store: shardstore.Store) -> None:
    assert rows_of(store.batches(7, with_rows=True)) == list(range(ROWS))


def test_each_pass_is_the_next_epoch(store: shardstore.Store) -> None:
    stream = store.batches(100, shuffle=True, with_rows=True)
    passes = [rows_of(stream) for _ in range(3)]
    assert len({tuple(p) for p in passes}) == 3
    again = store.batches(999, shuffle=True, with_rows=True)
    assert [rows_of(again) for _ in range(3)] == passes, "the order depends on the batch size"
    assert rows_of(store.batches(100, shuffle=True, seed=1, with_rows=True)) != passes[0]


def test_several_epochs_in_one_pass(store: shardstore.Store) -> None:
    one = store.batches(700, shuffle=True, with_rows=True)
    expected = [rows_of(one) for _ in range(4)]
    two = store.batches(700, shuffle=True, with_rows=True, epochs=2)
    assert len(two) == 5  # of one epoch
    assert rows_of(two) == expected[0] + expected[1]
    assert rows_of(two) == expected[2] + expected[3]
    endless = store.batches(700, shuffle=True, with_rows=True, epochs=None)
    assert rows_of(itertools.islice(endless, 20)) == sum(expected, [])


def test_a_pass_that_was_left_is_continued(store: shardstore.Store) -> None:
    whole = rows_of(store.batches(100, shuffle=True, with_rows=True))
    stream = store.batches(100, shuffle=True, with_rows=True)
    got = []
    for steps in (1, 0, 7, 13):
        got += list(itertools.islice(stream, steps))
    assert rows_of([*got, *stream]) == whole
    assert stream.epoch == 1
    assert rows_of(stream) != whole


def test_batches_are_the_consumers_own(store: shardstore.Store) -> None:
    for shuffle in (False, True):
        for batch in store.batches(100, shuffle=shuffle, with_rows=True):
            for array in batch.values():
                assert array.flags.writeable
                array[:] = 0  # must not be seen by any other batch
    assert rows_of(store.batches(100, with_rows=True)) == list(range(ROWS))
    batches = list(store.batches(100))
    assert not any(np.shares_memory(a["x"], b["x"]) for a, b in itertools.combinations(batches, 2))


def test_columns_and_transform(store: shardstore.Store) -> None:
    batch = next(iter(store.batches(10, columns=["z"])))
    assert list(batch) == ["z"]
    stream = store.batches(10, transform=lambda batch: (batch["x"].sum(1), batch["z"]))
    x, z = next(iter(stream))
    assert (x.shape, z.tolist()) == ((10,), list(range(10)))
    with pytest.raises(KeyError, match="no column 'q'"):
        store.batches(10, columns=["q"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": -1}, ValueError, "batch_size is -1"),
        ({"batch_size": 2.0}, TypeError, "batch_size is a float"),
        ({"batch_size": True}, TypeError, "batch_size is a bool"),
        ({"batch_size": 1, "shuffle": "windows"}, ValueError, "shuffle is 'windows'"),
        ({"batch_size": 1, "remainder": "fill"}, ValueError, "remainder is 'fill'"),
        ({"batch_size": 1, "epochs": 0}, ValueError, "epochs is 0"),
        ({"batch_size": 5000, "remainder": "drop"}, ValueError, "leaves nothing of 3,000 rows"),
    ],
)
def test_senseless_arguments(
    store: shardstore.Store, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store.batches(**arguments)


def test_an_empty_view_gives_no_batches(store: shardstore.Store) -> None:
    assert list(store.rows([]).batches(10, shuffle=True)) == []


def test_closing(store: shardstore.Store) -> None:
    with store.batches(10) as stream:
        iterator = iter(stream)
        next(iterator)
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    with pytest.raises(ValueError, match="closed"):
        next(iter(stream))


def test_streams_pickle_as_configuration_and_position(store: shardstore.Store) -> None:
    stream = store.batches(100, shuffle=True, with_rows=True)
    next(iter(stream))
    data = pickle.dumps(stream)
    assert len(data) < 1500
    assert rows_of(pickle.loads(data)) == rows_of(stream)


def test_the_order_takes_no_memory(tmp_path: Path) -> None:
    # 2**40 rows of no bytes: nothing on disk, but an order like any other.
    rows = 2**40
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"x": np.empty((rows, 0), np.uint8)})
    stream = shardstore.open(tmp_path / "s").batches(256, shuffle=True, with_rows=True)
    assert len(stream) == rows // 256
    batch = next(iter(stream))
    assert batch["x"].shape == (256, 0)
    assert len(set(batch["rows"].tolist())) == 256
    assert batch["rows"].max() > rows // 2


def test_only_the_latest_iterator_goes_on(store: shardstore.Store) -> None:
    stream = store.batches(1000, with_rows=True)
    left = iter(stream)
    first = next(left)
    assert rows_of([first, *stream]) == list(range(ROWS))
    with pytest.raises(RuntimeError, match="another pass over this stream has begun"):
        next(left)
    assert (stream.epoch, rows_of(stream)) == (1, list(range(ROWS)))
    with pytest.raises(RuntimeError, match="another pass"):
        list(zip(stream, stream, strict=True))


def test_a_transform_that_fails_loses_no_batch(store: shardstore.Store) -> None:
    failures = iter([False, True, False, False])

    def transform(batch: dict[str, Any]) -> Any:
        if next(failures):
            raise OSError("try again")
        return batch

    stream = store.batches(1000, with_rows=True, transform=transform)
    got = []
    with pytest.raises(OSError, match="try again"):
        got.extend(stream)  # a list keeps what it was given before the error
    assert rows_of([*got, *stream]) == list(range(ROWS))
