"""The window shuffle: every row once, chunk by chunk, and each chunk decoded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstore
from shardstore.order import Sections, WindowShuffle

ROWS = 5000
CHUNK = 64


@st.composite
def orders(draw: st.DrawFn) -> WindowShuffle:
    size = draw(st.sampled_from([1, 2, 3, 64]) | st.integers(1, 100))
    missing = draw(st.just(0) | st.integers(0, size - 1))
    # Exactly some sections, one row more or less, none, one.
    count = max(0, draw(st.integers(0, 12)) * size - missing + draw(st.sampled_from([0, 0, 1, -1])))
    count = draw(st.just(count) | st.integers(0, 2000))
    lanes = draw(st.sampled_from([1, 1, 2, 3, 4, 8]))
    return WindowShuffle(Sections(count, size, missing), draw(st.integers(1, 20)), draw(st.integers()), lanes)


@given(orders(), st.integers(0, 10**6))
def test_an_epoch_is_a_bijection(order: WindowShuffle, epoch: int) -> None:
    rows = order.rows(epoch, np.arange(order.count))
    assert sorted(rows.tolist()) == list(range(order.count))


def test_an_epoch_is_a_bijection_for_every_small_count() -> None:
    for count in range(400):
        for size, window, lanes in ((1, 3, 1), (7, 2, 1), (16, 4, 2), (64, 1, 4)):
            rows = WindowShuffle(Sections(count, size, count % size), window, 0, lanes).rows(0, np.arange(count))
            assert np.array_equal(np.sort(rows), np.arange(count)), (count, size)


@given(orders(), st.data())
def test_any_positions_in_any_order_give_the_same_rows(order: WindowShuffle, data: st.DataObject) -> None:
    if not order.count:
        return
    positions = np.array(data.draw(st.lists(st.integers(0, order.count - 1), max_size=50)), np.int64)
    whole = order.rows(3, np.arange(order.count))
    assert order.rows(3, positions).tolist() == whole[positions].tolist()


@given(orders(), st.integers(0, 3))
def test_windows_are_runs_of_whole_sections(order: WindowShuffle, epoch: int) -> None:
    positions = np.arange(order.count)
    rows = order.rows(epoch, positions)
    sections, lane_windows = Counter[int](), Counter[tuple[int, int]]()
    for window, where, places in order.windows(epoch, positions):
        starts, stops = window.runs()
        staged = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        assert len(staged) == len(window) == len(places)
        assert len(starts) <= order.window
        assert staged[places].tolist() == rows[where].tolist() == window.rows(places).tolist()
        assert sorted(places.tolist()) == list(range(len(window)))
        sections.update(((starts + order.sections.missing) // order.sections.size).tolist())
        _, lane, number = window.name
        lane_windows[lane, number] += 1
        # Position p belongs to lane p mod lanes.
        assert set((positions[where] % order.lanes).tolist()) == {lane}
    assert set(lane_windows.values()) <= {1}
    # Each section is needed by one window, but for those in which a lane ends.
    assert set(sections) == set(range(len(order.sections)))
    assert sum(sections.values()) <= len(order.sections) + order.lanes - 1


@given(orders())
def test_a_lane_comes_window_by_window(order: WindowShuffle) -> None:
    positions = np.arange(order.count)
    number = np.empty(order.count, np.int64)
    for window, where, _ in order.windows(0, positions):
        number[where] = window.name[2]
    for lane in range(order.lanes):
        assert (np.diff(number[lane :: order.lanes]) >= 0).all()


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return WindowShuffle(Sections(1000, 10), 5, seed).rows(epoch, np.arange(1000)).tolist()

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_short_sections_come_anywhere() -> None:
    # The first and the last section are short: over many epochs each has every place.
    places = {0: set[int](), 9: set[int]()}
    for epoch in range(300):
        rows = WindowShuffle(Sections(96, 10, 2), 1, 0).rows(epoch, np.arange(96))
        sections = list(dict.fromkeys(((rows + 2) // 10).tolist()))
        for section, seen in places.items():
            seen.add(sections.index(section))
    assert places == {0: set(range(10)), 9: set(range(10))}


# Orders are promises. If these change, ORDER_VERSION must change, and the old version must stay readable.
GOLDEN = {
    WindowShuffle(Sections(1, 64), 1, 0): [0],
    WindowShuffle(Sections(1000, 64), 4, 0): [232, 763, 10, 336, 662, 665, 909, 961],
    WindowShuffle(Sections(1000, 64, 10), 4, 7): [763, 792, 670, 667, 718, 897, 547, 594],
    WindowShuffle(Sections(1000, 64, 10), 4, 7, 4): [70, 338, 278, 69, 372, 883, 763, 41],
    WindowShuffle(Sections(10**9, 1024), 126, 0, 8): [
        57371650,
        727467707,
        530650629,
        609903948,
        896316455,
        583494257,
        110653268,
        445390115,
    ],
}


def sample(order: WindowShuffle) -> list[int]:
    count = min(order.count, 8)
    positions = np.array([i * (order.count - 1) // max(1, count - 1) for i in range(count)], np.int64)
    return order.rows(1, positions).tolist()


def test_golden_values() -> None:
    for order, expected in GOLDEN.items():
        assert sample(order) == expected, order


@pytest.fixture(scope="module", params=["zstd", "blosc:lz4"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "s"
    # Rows of 16 bytes in chunks of 64 rows, of 4 bytes in chunks of 256, and a raw column.
    codecs = {"x": request.param, "z": request.param}
    with shardstore.Writer(path, codec=codecs, shard_bytes=1024 * 16, chunk_bytes=1024) as writer:
        x = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
        writer.append({"x": x, "z": np.arange(ROWS, dtype=np.int32), "raw": np.arange(ROWS)})
    return path


def chunks(store: shardstore.Store, *columns: str) -> int:
    """Return how many compressed chunks the columns have."""
    chunkings = [store.files.chunking(name) for name in columns]
    return sum(-(-ROWS // chunking.chunk_rows) for chunking in chunkings if chunking.decoded)


def check(batches: list[dict[str, Any]]) -> list[int]:
    """Check that columns and row numbers belong together; return the rows."""
    rows = [row for batch in batches for row in batch["rows"].tolist()]
    for batch in batches:
        assert batch["x"].tolist() == (batch["rows"][:, None] * 4 + np.arange(4)).tolist()
        assert batch["z"].tolist() == batch["raw"].tolist() == batch["rows"].tolist()
        assert all(array.flags.writeable for array in batch.values())
    return rows


@pytest.mark.parametrize("window_bytes", [1, "20KB", "100KB", "64MiB"])
@pytest.mark.parametrize("batch_size", [1, 100, 256, ROWS])
def test_each_chunk_is_decoded_once_an_epoch(
    path: Path, window_bytes: int | str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window_bytes == "100KB":
        # All chunks fit a section: nothing needs the cache.
        monkeypatch.setattr("shardstore.access.CHUNK_CACHE_NBYTES", 0)
        with shardstore.open(path) as store:
            for rows in np.random.default_rng(0).permutation(ROWS)[:500].reshape(-1, 1):
                store.take(rows, columns="x")
            assert store.chunks_decoded > 400 > chunks(store, "x"), "what rows by themselves would cost"
    with shardstore.open(path) as store:
        stream = store.batches(batch_size, shuffle=True, window_bytes=window_bytes, with_rows=True)
        assert stream.plan.order.describe()["shuffle"] == "window"
        assert store.chunks_decoded == 0
        rows = check(list(stream))
        assert sorted(rows) == list(range(ROWS))
        assert store.chunks_decoded == chunks(store, "x", "z")


def test_the_counter_counts(path: Path) -> None:
    with shardstore.open(path) as store:
        store.take([0, 1, 63, 64], columns="x")
        assert store.chunks_decoded == 2
        store.files._shared.chunks.clear()
        store.take([0], columns=["x", "raw"])
        assert store.chunks_decoded == 3


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("lanes", [1, 8])
def test_lanes_deal_chunks_to_ranks(path: Path, world_size: int, lanes: int) -> None:
    steps: list[list[int]] = [[] for _ in range(ROWS // (64 * 8))]
    decoded = 0
    for rank in range(world_size):
        with shardstore.open(path) as store:
            stream = store.batches(
                64 * 8 // world_size,
                shuffle="window",
                window_bytes="100KB",  # enough for sections as long as the longest chunks
                lanes=lanes,
                remainder="drop",
                rank=rank,
                world_size=world_size,
                with_rows=True,
            )
            batches = list(stream)
            assert len(batches) == len(stream) == len(steps)
            check(batches)
            for step, batch in zip(steps, batches, strict=True):
                step += batch["rows"].tolist()
            decoded += store.chunks_decoded
            total = chunks(store, "x", "z")
            order = stream.plan
    # The same rows in every global step for every world size.
    assert [sorted(step) for step in steps] == [
        sorted(order.rows(0, t * 512, t * 512 + 512).tolist()) for t in range(len(steps))
    ]
    if lanes == 8:
        # A chunk in which a lane ends is needed by two ranks, for each of the two columns.
        assert decoded <= total + 2 * (lanes - 1)
    elif world_size > 1:
        assert decoded > total * world_size * 0.9


@pytest.mark.parametrize(
    "selection",
    [slice(0, 0), slice(17, 18), slice(10, 4000), slice(64, 640), slice(None, None, 3), slice(4000, 100, -1)],
)
def test_views_shuffle_by_windows_too(path: Path, selection: slice) -> None:
    with shardstore.open(path) as store:
        view = store.rows(selection)
        rows = check(list(view.batches(50, shuffle=True, window_bytes="20KB", with_rows=True)))
        assert sorted(rows) == sorted(range(ROWS)[selection])
        if view.selection.is_contiguous and len(view):
            first, last = min(rows), max(rows)
            sizes = [store.files.chunking(name).chunk_rows for name in ("x", "z")]
            assert store.chunks_decoded == sum(last // size - first // size + 1 for size in sizes)


def test_parts_of_a_split_decode_little_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardstore.access.CHUNK_CACHE_NBYTES", 0)
    rows = 40_000
    with shardstore.Writer(tmp_path / "s", codec="zstd", chunk_bytes=4096) as writer:
        writer.append({"x": np.arange(rows * 8).reshape(rows, 8)})  # 64 rows in a chunk
    with shardstore.open(tmp_path / "s") as store:
        total = -(-rows // store.files.chunking("x").chunk_rows)
        part = store.split(train=0.9, val=0.1)["train"]
        got = [row for b in part.batches(100, shuffle=True, window_bytes="1MB", with_rows=True) for row in b["rows"]]
        assert sorted(got) == sorted(part.selection.resolve(np.arange(len(part))).tolist())
        assert total <= store.chunks_decoded < 1.6 * total


def test_views_of_row_numbers(path: Path) -> None:
    store = shardstore.open(path)
    chosen = np.random.default_rng(0).choice(ROWS, 700)  # with repetitions
    rows = check(list(store.rows(chosen).batches(50, shuffle=True, window_bytes="20KB", with_rows=True)))
    assert sorted(rows) == sorted(chosen.tolist())


def test_the_columns_read_do_not_change_the_order(path: Path) -> None:
    store = shardstore.open(path)
    expected = [batch["rows"].tolist() for batch in store.batches(300, shuffle=True, with_rows=True)]
    for columns in ("raw", "z", ["x", "raw"]):
        stream = store.batches(300, shuffle=True, with_rows=True, columns=columns)
        assert [batch["rows"].tolist() for batch in stream] == expected


def test_raw_stores_shuffle_by_windows_where_asked(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", chunk_bytes=256) as writer:
        writer.append({"x": np.arange(1024)})
    store = shardstore.open(tmp_path / "s")
    assert store.plan(10, shuffle=True).order.describe()["shuffle"] == "full"
    stream = store.batches(10, shuffle="window", window_bytes=2048)
    got = [row for batch in stream for row in batch["x"].tolist()]
    assert sorted(got) == list(range(1024))
    assert len({row // 32 for row in got[:256]}) == 8  # eight chunks in a window


def test_narrow_columns_do_not_stretch_a_window(tmp_path: Path) -> None:
    rows = 300
    with shardstore.Writer(tmp_path / "s", codec="zstd") as writer:
        writer.append({"image": np.zeros((rows, 100_000), np.uint8), "label": np.arange(rows)})
    with shardstore.open(tmp_path / "s") as store:
        order = store.plan(10, shuffle=True, window_bytes="8MB").order
        assert isinstance(order, WindowShuffle)
        assert order.window >= 16
        assert order.window * order.sections.size * 100_008 <= 8_000_000
        got = [row for batch in store.batches(10, shuffle=True, window_bytes="8MB") for row in batch["label"].tolist()]
        assert sorted(got) == list(range(rows))
        labels = -(-rows // store.files.chunking("label").chunk_rows)
        assert store.chunks_decoded == rows + labels  # the label's chunk serves many sections, from the cache


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shuffle": "full", "lanes": 2}, ValueError, "lanes=2 deals chunks to ranks, which needs shuffle='window'"),
        ({"shuffle": False, "lanes": 2}, ValueError, "needs shuffle='window'"),
        ({"shuffle": "window", "lanes": 0}, ValueError, "lanes is 0"),
        ({"shuffle": "window", "lanes": 1.0}, TypeError, "lanes is a float"),
        ({"shuffle": "window", "window_bytes": 0}, shardstore.SchemaError, "not a size in bytes: 0"),
        ({"shuffle": "window", "window_bytes": "much"}, shardstore.SchemaError, "not a size in bytes: 'much'"),
    ],
)
def test_senseless_arguments(path: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        shardstore.open(path).batches(10, **arguments)


def test_damage_is_named_while_streaming(path: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "s"
    shutil.copytree(path, copy)
    shard = next((copy / "x" / "c" / "0").iterdir())
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(shardstore.CorruptionError, match=r"chunk 0 \(rows 0 to 63\)"):
        list(shardstore.open(copy).batches(100, shuffle=True))
