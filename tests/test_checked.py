"""`verify="on_read"`: no way of reading gives rows that were not written, and each chunk is checked once."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import flip_bit

import shardstore
from shardstore import mapping
from shardstore.readers import opening

ROWS, SHARD_ROWS, CHUNK_ROWS = 300, 128, 16
LENGTHS = np.arange(ROWS) % 7


def model() -> dict[str, Any]:
    return {
        "x": np.arange(ROWS * 3, dtype=np.int32).reshape(ROWS, 3),
        "y": np.arange(ROWS),
        "tokens": [np.full(length, row, np.uint16) for row, length in enumerate(LENGTHS.tolist())],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # Chunks of 16 rows in shards of 128.
    with shardstore.Writer(tmp_path / "s", shard_bytes=SHARD_ROWS * 16, chunk_bytes=CHUNK_ROWS * 16) as writer:
        writer.append(model())
    with shardstore.open(tmp_path / "s") as store:
        layout = store.manifest.columns["tokens"].ranges.layout  # type: ignore[union-attr]
        assert (layout.shard_rows, layout.chunk_rows) == (SHARD_ROWS, CHUNK_ROWS)
    return tmp_path / "s"


@pytest.fixture(params=["kept", "streaming", "positional", "shardwise"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How to open a store so that each reader of raw arrays is used."""
    if request.param in ("positional", "shardwise"):
        monkeypatch.setattr(mapping, "max_map_count", lambda: 0)
    if request.param == "shardwise":
        monkeypatch.setattr(opening, "CAN_READ_BY_POSITION", False)
    return {"access": "streaming" if request.param == "streaming" else "auto", "verify": "on_read"}


def damage(path: Path, array: str, row: int) -> None:
    """Flip a bit in the middle of the chunk that has a row."""
    with shardstore.open(path) as store:
        (layout,) = [entry.layout for entry in store.manifest.arrays if entry.layout.field.name == array]
    shard, local = divmod(row, layout.shard_rows)
    flip_bit(path / layout.shard_key(shard), (local // layout.chunk_rows * 2 + 1) * layout.chunk_nbytes // 2)


def epoch(**options: Any) -> Callable[[shardstore.Store], Any]:
    return lambda store: [batch["x"] for batch in store.batches(32, columns=["x"], **options)]


WAYS: dict[str, Callable[[shardstore.Store], Any]] = {
    "row": lambda store: store["x"][130],
    "slice": lambda store: store["x"][:],
    "steps": lambda store: store["x"][::-3],
    "take": lambda store: store["x"].take([5, 130, 299]),
    "mask": lambda store: store["x"][np.arange(ROWS) == 130],
    "array": lambda store: np.asarray(store["x"]),
    "blocks": lambda store: list(store["x"].blocks(100)),
    "rows of a view": lambda store: store.select("x")[100:200]["x"][30],
    "table": lambda store: store.take(np.arange(120, 140)),
    "in order": epoch(shuffle=False),
    "in order, views": epoch(shuffle=False, copy=False),
    "shuffled": epoch(shuffle="full"),
    "in windows": epoch(shuffle="window"),
    "ahead": epoch(shuffle="full", prefetch=2),
    "joined": lambda store: list(store.select("x").join(store.select("y")).batches(50)),
    "mixed": lambda store: list(shardstore.mix({store: 1}).batches(50)),
    "statistics": lambda store: store.compute_stats("x"),
    "pickled": lambda store: pickle.loads(pickle.dumps(store.select("x")))["x"][130],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_finds_a_damaged_chunk(path: Path, how: dict[str, Any], way: str) -> None:
    damage(path, "x", 130)
    with shardstore.open(path, **how) as store:
        store["x"].take(np.delete(np.arange(ROWS), np.arange(128, 144)))
        with pytest.raises(shardstore.CorruptionError, match=r"x/c/1/0, chunk 0 \(rows 128 to 143\): CRC32C is"):
            WAYS[way](store)
        with pytest.raises(shardstore.CorruptionError):  # and again
            WAYS[way](store)


RAGGED_WAYS: dict[str, Callable[[shardstore.Store], Any]] = {
    "row": lambda store: store["tokens"][150],
    "slice": lambda store: store["tokens"][:],
    "take": lambda store: store["tokens"].take([3, 150]),
    "in order": lambda store: list(store.select("tokens").batches(32, shuffle=False)),
    "shuffled": lambda store: list(store.select("tokens").batches(32, shuffle="full")),
    "windows, in order": lambda store: store.windows("tokens", 8)[:],
    "windows, shuffled": lambda store: list(store.windows("tokens", 8).batches(16, shuffle=True)),
    "windows of some rows": lambda store: list(store[np.arange(149, 160)].windows("tokens", 4).batches(16)),
}


@pytest.mark.parametrize(
    ("array", "way"),
    # Windows over consecutive rows need the ranges of the first and the last one only.
    [
        (array, way)
        for array in ("ranges", "values")
        for way in RAGGED_WAYS
        if array == "values" or "windows," not in way
    ],
)
def test_every_way_of_reading_ragged_rows_finds_a_damaged_chunk(
    path: Path, how: dict[str, Any], array: str, way: str
) -> None:
    damage(path, f"tokens/{array}", 150 if array == "ranges" else int(LENGTHS[:150].sum()))
    with (
        shardstore.open(path, **how) as store,
        pytest.raises(shardstore.CorruptionError, match=rf"tokens/{array}/c/[\d/]+, chunk \d \(rows .*\): CRC32C is"),
    ):
        RAGGED_WAYS[way](store)


@settings(max_examples=15)
@given(rows=st.lists(st.integers(-ROWS, ROWS - 1), max_size=50), bounds=st.tuples(*[st.integers(0, ROWS)] * 2))
def test_undamaged_rows_are_what_was_written(
    path: Path, how: dict[str, Any], rows: list[int], bounds: tuple[int, int]
) -> None:
    start, stop = sorted(bounds)
    expected = model()
    with shardstore.open(path, **how) as store:
        for name in ("x", "y"):
            assert np.array_equal(store[name].take(np.array(rows, np.int64)), expected[name][rows])
            assert np.array_equal(store[name][start:stop], expected[name][start:stop])
        assert [row.tolist() for row in store["tokens"][start:stop]] == [
            row.tolist() for row in expected["tokens"][start:stop]
        ]


def test_a_chunk_is_checked_once_a_process_and_store(path: Path, how: dict[str, Any]) -> None:
    """Also that what is asked for ahead, or brought into memory, does not count as read."""
    with shardstore.open(path, **how) as store:
        store.warm()
        store.files.populate("x", 0, ROWS, lambda: False)
        store.files.expect("x", np.arange(ROWS))
        assert store["x"].take([0]).tolist() == [[0, 1, 2]]
        damage(path, "x", 0)
        damage(path, "x", 16)
        assert store["x"].take([0]).tolist() == [[0, 1, 2]]  # damaged since it was checked, and row 8 with it
        with pytest.raises(shardstore.CorruptionError, match="chunk 1"):
            store["x"].take([0, 16])
        with pytest.raises(shardstore.CorruptionError, match="chunk 0"):
            pickle.loads(pickle.dumps(store))["x"].take([0])


def test_a_damaged_footer_is_found_before_any_row_is_read(path: Path, how: dict[str, Any]) -> None:
    file = path / "x/c/1/0"
    flip_bit(file, file.stat().st_size - 10)
    with shardstore.open(path, **how) as store:
        assert store["x"][0].tolist() == [0, 1, 2]
        with pytest.raises(shardstore.CorruptionError, match="x/c/1/0: the footer does not match its checksum"):
            store["x"][128]


def test_padding_is_not_read(path: Path, how: dict[str, Any]) -> None:
    flip_bit(path / "x/c/2/0", 44 * 12)  # behind the last row
    with shardstore.open(path, **how) as store:
        assert store["x"][-1].tolist() == model()["x"][-1].tolist()
        assert [str(damage).split(" (")[0] for damage in store.verify().damages] == ["x/c/2/0, chunk 2"]


def test_without_it_nothing_is_checked(path: Path) -> None:
    damage(path, "x", 130)
    with shardstore.open(path) as store:
        assert not np.array_equal(store["x"][:], model()["x"])


def test_the_choice_goes_with_what_is_pickled_changed_and_computed(path: Path) -> None:
    damage(path, "x", 130)
    with shardstore.open(path, verify="on_read") as store:
        for _ in range(2):
            with pytest.raises(shardstore.CorruptionError):
                pickle.loads(pickle.dumps(store))["x"][:]
            store.rename_column("y", "z")
            store.rename_column("z", "y")
        with pytest.raises(shardstore.ShardStoreError, match="CRC32C"):
            store.add_column("sum", lambda batch: {"sum": batch["x"].sum(1)}, columns=["x"])


def test_threads_get_no_row_before_it_was_checked(path: Path, how: dict[str, Any]) -> None:
    damage(path, "x", 160)
    expected, found = model()["x"], []
    with shardstore.open(path, **how) as store:
        barrier = threading.Barrier(8)

        def read(seed: int) -> None:
            rows = np.random.default_rng(seed).permutation(ROWS)
            barrier.wait()
            for some in np.split(rows, 30):
                try:
                    right = np.array_equal(store["x"].take(some), expected[some])
                except shardstore.CorruptionError:
                    right = bool(((some >= 160) & (some < 176)).any())
                found.append(right)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 240
    assert all(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_a_forked_child_checks_what_its_parent_did_not(path: Path, how: dict[str, Any]) -> None:
    damage(path, "x", 130)
    with shardstore.open(path, **how) as store:
        store["x"][:100]
        child = os.fork()
        if not child:
            code = 1
            try:
                store["x"][:100]
                store["x"][:]
            except shardstore.CorruptionError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0


def test_another_word_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="verify is 'always'; expected one of 'off', 'on_read'"):
        shardstore.open(path, verify="always")  # type: ignore[arg-type]
