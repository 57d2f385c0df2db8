"""Threads end with whoever waits for them, and what they raise arrives where it is waited for."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import threads_of_ours

import shardstore
from shardstore.background import Ahead, Task


@pytest.fixture(scope="module", params=["raw", "zstd"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("background") / "s"
    with shardstore.Writer(path, codec=request.param, shard_bytes=1 << 16, chunk_bytes=1 << 12) as writer:
        writer.append({"x": np.arange(80_000, dtype=np.float32).reshape(20_000, 4), "y": np.arange(20_000)})
    return path


def test_a_task_gives_its_result_or_its_error() -> None:
    assert Task(lambda stopped: 5, "test").result() == 5

    def fail(stopped: Callable[[], bool]) -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone") as caught:
        Task(fail, "test").result()
    assert "fail" in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_a_task_hears_that_nobody_waits() -> None:
    def wait(stopped: Callable[[], bool]) -> None:
        while not stopped():
            time.sleep(0.001)

    before = threads_of_ours()
    Task(wait, "test").stop()
    assert threads_of_ours() == before


def test_items_are_made_no_further_ahead_than_asked() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = Ahead(make, 3)
    assert next(items) == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 3 + 2  # delivered, waiting, and one that is being put
    assert list(items) == list(range(1, 100))


@pytest.mark.parametrize("how", ["break", "close", "collect", "end"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, "full", "window"])
def test_no_thread_outlives_its_pass(path: Path, shuffle: Any, prefetch: int, how: str) -> None:
    with shardstore.open(path) as store:
        batches = iter(store.batches(100, shuffle=shuffle, prefetch=prefetch, window_bytes=4096))
        for _ in range(40):
            next(batches)
        if how == "end":
            assert sum(1 for _ in batches) == 160
        elif how == "close":
            batches.close()  # type: ignore[attr-defined]
    del batches
    if how == "collect":
        gc.collect()
    assert [thread.name for thread in threads_of_ours() if "decode" not in thread.name] == []


def test_threads_that_decode_end_with_the_last_store(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", codec="zstd", chunk_bytes=4096) as writer:
        writer.append({"x": np.arange(100_000)})
    before = threads_of_ours()
    store = shardstore.open(tmp_path / "s")
    assert len(store["x"][:]) == 100_000
    store.close()
    del store
    gc.collect()
    end = time.monotonic() + 10
    while set(threads_of_ours()) - set(before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not set(threads_of_ours()) - set(before)


def test_no_thread_exists_before_the_first_batch(path: Path) -> None:
    before = threading.active_count()
    store = shardstore.open(path)
    stream = store.batches(100, shuffle=True, prefetch=2)
    batches = iter(stream)
    assert threading.active_count() == before
    next(batches)
    assert threading.active_count() > before
    stream.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_comes_behind_the_batches_before_it_with_its_traceback(path: Path, prefetch: int) -> None:
    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        if 1234 in batch["y"]:
            raise ZeroDivisionError("row 1234")
        return batch

    with shardstore.open(path) as store:
        seen: list[int] = []

        def read() -> None:
            for batch in store.batches(100, transform=transform, prefetch=prefetch):
                seen.extend(batch["y"].tolist())

        with pytest.raises(ZeroDivisionError, match="row 1234") as caught:
            read()
        assert seen == list(range(1200))
        assert "transform" in [frame.name for frame in traceback.extract_tb(caught.tb)]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_damage_that_a_thread_finds_reaches_the_consumer(tmp_path: Path, prefetch: int) -> None:
    with shardstore.Writer(tmp_path / "s", codec="zstd", chunk_bytes=4096) as writer:
        writer.append({"x": np.arange(50_000)})
    file = tmp_path / "s/x/c/0"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with shardstore.open(tmp_path / "s") as store, pytest.raises(shardstore.CorruptionError, match="CRC32C"):
        for _ in store.batches(100, shuffle="window", window_bytes=8192, prefetch=prefetch):
            pass


_EXIT = """
import sys, shardstore
store = shardstore.open(sys.argv[1])
kept = [iter(store.batches(10, shuffle=kind, prefetch=2, epochs=None)) for kind in (True, "full", "window")]
for batches in kept:
    next(batches), next(batches)
if sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["end", "raise"])
def test_the_interpreter_ends_while_threads_read(path: Path, how: str) -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", _EXIT, str(path), how],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (3 if how == "raise" else 0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_is_forked_in_a_pass_reads_on(path: Path) -> None:
    with shardstore.open(path) as store:
        stream = store.batches(100, shuffle="window", window_bytes=4096)
        batches = iter(stream)
        first = [next(batches)["y"] for _ in range(30)]
        child = os.fork()
        if child == 0:
            rest = [batch["y"] for batch in batches]
            rows = np.concatenate([*first, *rest])
            os._exit(0 if np.array_equal(np.sort(rows), np.arange(20_000)) else 1)
        rest = [batch["y"] for batch in batches]
        assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(np.sort(np.concatenate([*first, *rest])), np.arange(20_000))


@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_an_iterator_that_the_collector_finds_in_a_thread_is_let_go(
    path: Path, shuffle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may run in any thread, also in one that the iterator's own thread waits for."""
    monkeypatch.setattr("shardstore.reading.LOCATED_ROWS", 200)
    monkeypatch.setattr("shardstore.reading.GATHER_NBYTES", 2000)
    permuted = shardstore.order.orders.permute

    def collecting(*arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            gc.collect()
        return permuted(*arguments)

    monkeypatch.setattr("shardstore.order.orders.permute", collecting)
    with shardstore.open(path) as store:
        for _ in range(3):
            batches = iter(store.batches(20, shuffle=shuffle, prefetch=1, window_bytes=4096))
            for _ in range(5):
                next(batches)
            cycle: list[Any] = [batches]
            cycle.append(cycle)
            del batches, cycle
        gc.collect()


def test_short_stretches_give_the_same_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shardstore.open(path) as store:
        expected = {
            kind: list(store.batches(30, shuffle=kind, window_bytes=4096)) for kind in (False, "full", "window")
        }
        monkeypatch.setattr("shardstore.reading.LOCATED_ROWS", 100)
        monkeypatch.setattr("shardstore.reading.GATHER_NBYTES", 1000)
        monkeypatch.setattr("shardstore.buffers._MIN_NBYTES", 64)
        for kind, batches in expected.items():
            for prefetch in (0, 2):
                found = list(store.batches(30, shuffle=kind, window_bytes=4096, prefetch=prefetch))
                assert len(found) == len(batches)
                for one, other in zip(found, batches, strict=True):
                    assert all(np.array_equal(one[name], other[name]) for name in other)


def test_a_stream_may_be_closed_by_another_thread(path: Path) -> None:
    with shardstore.open(path) as store:
        stream = store.batches(10, prefetch=1, transform=lambda batch: time.sleep(0.01) or batch)
        closing = threading.Timer(0.1, stream.close)
        closing.start()
        with pytest.raises(ValueError, match="this stream is closed"):
            list(stream)
        closing.join()
