"""Saving where a stream stands and going on from there, in the same shape or another: nothing twice, nothing lost."""

from __future__ import annotations

import itertools
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstore
from shardstore.order import ORDER_VERSION

ROWS = 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> shardstore.Store:
    path = tmp_path_factory.mktemp("resume") / "s"
    with shardstore.Writer(path, codec={"z": "zstd"}, shard_bytes=256 * 16, chunk_bytes=256) as writer:
        writer.append({"x": np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4), "z": np.arange(ROWS)})
    return shardstore.open(path)


def delivered(batch: dict[str, Any]) -> list[int]:
    """Return the rows of a batch that are no copies."""
    return batch["rows"][batch.get("mask", slice(None))].tolist()


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in delivered(batch)]


orders = st.sampled_from(
    [
        {"shuffle": False},
        {"shuffle": "full"},
        {"shuffle": "window", "window_bytes": 2048},
        {"shuffle": "window", "window_bytes": 4096, "lanes": 4},
    ]
)


@given(orders, st.integers(0, 3), st.integers(0, ROWS), st.data())
def test_any_number_of_saves_within_an_epoch(
    store: shardstore.Store, order: dict[str, Any], seed: int, count: int, data: Any
) -> None:
    """Guarantees 4 and 5: with other batch sizes and world sizes, what comes is the epoch, in order."""
    view = store.rows(slice(0, count))
    epoch = data.draw(st.integers(0, 2))
    plan = view.plan(1, seed=seed, **order)
    expected = plan.rows(epoch, 0, count).tolist()
    state: dict[str, Any] | None = None
    got: list[int] = []
    for _ in range(4):
        world_size = data.draw(st.sampled_from([1, 1, 2, 3, 4]))
        batch_size = data.draw(st.integers(1, 300))
        steps = data.draw(st.integers(0, 4))
        states, taken = [], []
        for rank in range(world_size):
            stream = view.batches(
                batch_size, seed=seed, rank=rank, world_size=world_size, remainder="pad", with_rows=True, **order
            )
            if state is None:
                stream.set_epoch(epoch)
            else:
                stream.load_state_dict(state)
            taken.append(list(itertools.islice(stream, steps)))
            states.append(stream.state_dict())
        assert states == [states[0]] * world_size, "the state is of no rank"
        assert len({len(batches) for batches in taken}) == 1
        for batches in zip(*taken, strict=True):
            step = sum((delivered(batch) for batch in batches), [])
            assert sorted(step) == sorted(expected[len(got) : len(got) + len(step)])
            got += step
        text = json.dumps(states[0])
        assert len(text) < 1000
        state = json.loads(text)
        if state["epoch"] != epoch:
            break
    if state["epoch"] == epoch:
        stream = view.batches(37, seed=seed, with_rows=True, **order)
        stream.load_state_dict(state)
        rest = rows_of(stream)
        assert rest == expected[len(got) :]
        got += rest
        assert rows_of(stream) == plan.rows(epoch + 1, 0, count).tolist(), "and then the next epoch"
    assert sorted(got) == list(range(count))


@pytest.mark.parametrize("epochs", [1, 2, None])
def test_a_pass_goes_on_to_its_end(store: shardstore.Store, epochs: int | None) -> None:
    def stream() -> shardstore.BatchStream:
        return store.batches(300, shuffle="full", epochs=epochs, with_rows=True)

    whole = [rows_of([batch]) for batch in itertools.islice(stream(), 8)]
    if epochs == 1:
        one = stream()
        whole = [rows_of([batch]) for _ in range(2) for batch in one]
    for cut in range(9):
        first = stream()
        got = []
        while len(got) < cut:
            got += [rows_of([batch]) for batch in itertools.islice(first, cut - len(got))]
        again = stream()
        again.load_state_dict(first.state_dict())
        while len(got) < 8:
            got += [rows_of([batch]) for batch in itertools.islice(again, 8 - len(got))]
        assert got == whole, cut


def test_the_last_batch_of_an_epoch(store: shardstore.Store) -> None:
    """Whoever takes exactly `len(stream)` batches has had the epoch; a state of that moment still belongs to it."""
    stream = store.batches(100, shuffle="full", with_rows=True)
    epochs = [rows_of(itertools.islice(stream, len(stream))) for _ in range(3)]
    assert len(stream) == 10
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    state = stream.state_dict()
    assert (state["epoch"], state["delivered"]) == (2, ROWS)
    other = store.batches(100, shuffle="full", with_rows=True)
    other.load_state_dict(state)
    assert rows_of(other) == [], "the rest of epoch 2"
    expected = store.batches(100, shuffle="full", with_rows=True)
    expected.set_epoch(3)
    assert rows_of(other) == rows_of(expected)


def test_set_epoch(store: shardstore.Store) -> None:
    stream = store.batches(300, shuffle="full", with_rows=True)
    epochs = [rows_of(stream) for _ in range(3)]
    stream.set_epoch(0)
    assert rows_of(stream) == epochs[0]
    # At the top of a loop, also of the epoch that is being resumed.
    stream.set_epoch(1)
    first = list(itertools.islice(stream, 2))
    stream.load_state_dict(stream.state_dict())
    stream.set_epoch(1)
    assert rows_of([*first, *stream]) == epochs[1]
    # What was left by a break, or ended without a word, begins again.
    for taken in (2, len(stream)):
        stream.set_epoch(2)
        list(itertools.islice(stream, taken))
        stream.set_epoch(2)
        assert rows_of(stream) == epochs[2]
    iterator = iter(stream)
    next(iterator)
    stream.set_epoch(0)
    with pytest.raises(RuntimeError, match="another pass"):
        next(iterator)
    assert rows_of(stream) == epochs[0]
    with pytest.raises(ValueError, match="epoch is -1"):
        stream.set_epoch(-1)
    with pytest.raises(TypeError, match="epoch is a float"):
        stream.set_epoch(1.0)  # type: ignore[arg-type]


def test_numbers_may_be_numpys(store: shardstore.Store) -> None:
    numbers = {"rank": np.uint8(1), "world_size": np.int64(2), "seed": np.int32(3), "lanes": np.int16(2)}
    stream = store.batches(np.int16(50), shuffle="window", window_bytes=4096, remainder="pad", **numbers)
    list(itertools.islice(stream, 3))
    other = store.batches(50, shuffle="window", window_bytes=4096, remainder="pad", lanes=2, seed=3)
    other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert other.state_dict()["delivered"] == 300
    big = store.batches(np.uint16(40_000), remainder="pad")
    assert len(big) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2**9000}, "seed has 9,001 bits; expected at most 512"),
        ({"batch_size": 2**70}, "batch_size is .*; expected at most"),
        ({"world_size": 2**70, "remainder": "pad"}, "world_size is .*; expected at most"),
        ({"shuffle": "window", "lanes": 2**70}, "lanes is .*; expected at most"),
    ],
)
def test_numbers_beyond_all_use(store: shardstore.Store, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.batches(**{"batch_size": 10, **arguments})


def test_remainders_other_than_the_saved_one(store: shardstore.Store) -> None:
    stream = store.batches(64, shuffle="full", remainder="drop", with_rows=True)
    got = rows_of(itertools.islice(stream, 3))
    state = stream.state_dict()
    for remainder, rest in (("keep", 808), ("pad", 808), ("drop", 800)):
        other = store.batches(100, shuffle="full", remainder=remainder, with_rows=True)
        other.load_state_dict(state)
        batches = list(other)
        assert len(batches) == (9 if remainder != "drop" else 8)
        assert len(rows_of(batches)) == rest
        assert set(rows_of(batches)).isdisjoint(got)


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {**state, **changes}


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(seed=1), "saved with seed=1, this stream has seed=0"),
        (edited(order_version=99), f"saved with order_version=99, this stream has order_version={ORDER_VERSION}"),
        (edited(store="another"), "saved with store='another', this stream has store='"),
        (edited(shuffle="none"), "saved with shuffle='none', this stream has shuffle='full'"),
        (edited(rows=7), "saved with rows=7, this stream has rows=1000"),
        (edited(epoch=-1), "epoch=-1; expected a whole number"),
        (edited(epoch="1"), "epoch='1'; expected a whole number"),
        (edited(delivered=1.0), r"delivered=1\.0; expected a whole number"),
        (edited(delivered=True), "delivered=True; expected a whole number"),
        (edited(delivered=ROWS + 1), "delivered=1,001, but an epoch has 1,000 rows"),
        (edited(pass_start=5), "pass_start=5, behind its epoch=0"),
        *((without(name), f"no '{name}'") for name in ("order_version", "store", "seed", "epoch", "delivered", "rows")),
        (lambda state: {}, "no 'order_version'"),
        (lambda state: None, "found a NoneType"),
        (lambda state: [1], "found a list"),
    ],
)
def test_states_that_do_not_fit(store: shardstore.Store, edit: Any, message: str) -> None:
    stream = store.batches(100, shuffle="full", with_rows=True)
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(shardstore.StateError, match=message):
        stream.load_state_dict(edit(state))
    assert stream.state_dict() == state, "and nothing has changed"


@pytest.mark.parametrize(
    "arguments",
    [
        {"shuffle": "window", "window_bytes": 4096},
        {"shuffle": "window", "window_bytes": 2048, "lanes": 2},
        {"shuffle": "window", "window_bytes": 2048, "seed": 5},
        {"shuffle": "full"},
    ],
)
def test_another_window_or_lanes_is_another_order(store: shardstore.Store, arguments: dict[str, Any]) -> None:
    state = store.batches(10, shuffle="window", window_bytes=2048).state_dict()
    with pytest.raises(shardstore.StateError, match="the state was saved with"):
        store.batches(10, **arguments).load_state_dict(state)


def test_another_view_is_another_store(store: shardstore.Store) -> None:
    state = store.rows(slice(0, 500)).batches(10, shuffle="full").state_dict()
    with pytest.raises(shardstore.StateError, match="saved with store="):
        store.rows(slice(500, 1000)).batches(10, shuffle="full").load_state_dict(state)
    # Columns are no part of it.
    store.rows(slice(0, 500)).select("z").batches(10, shuffle="full").load_state_dict(state)


def test_the_same_data_in_another_store_is_another_store(store: shardstore.Store, tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append(store[:])
    state = store.batches(10).state_dict()
    with pytest.raises(shardstore.StateError, match="saved with store="):
        shardstore.open(tmp_path / "s").batches(10).load_state_dict(state)


def test_streams_pickle_with_their_position(store: shardstore.Store) -> None:
    stream = store.batches(100, shuffle="window", with_rows=True)
    got = rows_of(itertools.islice(stream, 3))
    copy = pickle.loads(pickle.dumps(stream))
    assert sorted(got + rows_of(copy)) == list(range(ROWS))


@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_resuming_replays_nothing(tmp_path: Path, shuffle: Any) -> None:
    # Rows of no bytes: an epoch of 10**12 of them would take a day to replay, and a terabyte to remember.
    rows = 10**12
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"x": np.empty((rows, 0), np.uint8)})
    store = shardstore.open(tmp_path / "s")
    stream = store.batches(256, shuffle=shuffle, with_rows=True)
    state = {**stream.state_dict(), "epoch": 3, "delivered": rows * 9 // 10}
    stream.load_state_dict(state)
    begin = time.process_time()
    batch = next(iter(stream))
    assert time.process_time() - begin < 10  # against days
    assert len(set(batch["rows"].tolist())) == 256
    again = store.batches(256, shuffle=shuffle, with_rows=True)
    again.load_state_dict({**state, "delivered": rows - 100})
    last = next(iter(again))["rows"]
    assert len(last) == 100
    assert not set(last.tolist()) & set(batch["rows"].tolist())


def test_a_state_within_a_window_decodes_one_window(store: shardstore.Store) -> None:
    chunks = -(-ROWS // store.files.chunking("z").chunk_rows)
    stream = store.batches(10, shuffle="window", window_bytes=2048, with_rows=True)
    window = stream.plan.order.window  # type: ignore[attr-defined]
    assert chunks / window > 3
    stream.load_state_dict({**stream.state_dict(), "delivered": 500})
    with shardstore.open(store.path) as fresh:
        other = fresh.batches(10, shuffle="window", window_bytes=2048, with_rows=True)
        other.load_state_dict(stream.state_dict())
        next(iter(other))
        assert 0 < fresh.chunks_decoded <= window


def test_a_loop_that_is_killed_and_resumed_many_times(store: shardstore.Store) -> None:
    """Save, throw away, restore after every batch: the same as never having stopped."""

    def make() -> shardstore.BatchStream:
        return store.batches(170, shuffle="window", window_bytes=2048, with_rows=True)

    whole = make()
    expected = [rows_of([batch]) for _ in range(2) for batch in whole]
    state, got = make().state_dict(), []
    while len(got) < len(expected):
        stream = make()
        stream.load_state_dict(json.loads(json.dumps(state)))
        for batch in stream:
            got.append(rows_of([batch]))
            break
        state = stream.state_dict()
    assert got == expected
