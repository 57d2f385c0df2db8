"""One range of addresses per column: what is mapped, what is refused before it is mapped, and what is given back."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstore
from shardstore import mapping, readers
from shardstore.files import Directory
from shardstore.readers import ContiguousReader, ShardwiseReader, Shared, open_reader

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux' /proc")


@pytest.fixture
def store(tmp_path: Path) -> shardstore.Store:
    with shardstore.Writer(tmp_path / "s", shard_bytes=4096 * 8, chunk_bytes=4096) as writer:
        writer.append({"x": np.arange(100_000), "odd": np.zeros((100_000, 3), np.uint8)})
    return shardstore.open(tmp_path / "s")


def maps_of(store: shardstore.Store) -> int:
    return sum(str(store.path) in line for line in Path("/proc/self/maps").read_text().splitlines())


@linux
def test_mappings_come_with_the_first_read_and_go_with_the_last_array(store: shardstore.Store) -> None:
    assert maps_of(store) == 0
    view = store["x"][10:20]
    assert maps_of(store) == 1
    store["x"].take([0, 5000, 5001, 99_999])
    assert maps_of(store) == 3
    store["x"][4090:12_300]
    assert maps_of(store) == 5
    np.asarray(store["x"])
    assert maps_of(store) == 25
    store["odd"][0]
    assert maps_of(store) == 26
    store.close()
    gc.collect()
    assert maps_of(store) == 25  # the view still shows one column
    assert view.tolist() == list(range(10, 20))
    del view
    gc.collect()
    assert maps_of(store) == 0


@linux
def test_failed_opens_leave_no_mapping_and_no_descriptor(store: shardstore.Store) -> None:
    (store.path / "x/c/7").unlink()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(shardstore.CorruptionError, match="missing"):
            store["x"][0]
    gc.collect()
    assert maps_of(store) == 0
    assert len(os.listdir("/proc/self/fd")) <= before


@linux
def test_a_file_that_shrinks_between_two_reads_is_not_mapped(store: shardstore.Store) -> None:
    assert store["x"][0] == 0
    os.truncate(store.path / "x/c/7", 100)
    with pytest.raises(shardstore.CorruptionError, match=r"x/c/7: the shard file is short"):
        store["x"].take([7 * 4096])
    assert store["x"][-1] == 99_999


def test_a_store_that_is_replaced_is_never_mixed_with_the_new_one(store: shardstore.Store) -> None:
    assert store["x"][:5].tolist() == [0, 1, 2, 3, 4]
    with shardstore.Writer(store.path, mode="overwrite", shard_bytes=4096 * 8, chunk_bytes=4096) as writer:
        writer.append({"x": np.zeros(100_000, np.int64), "odd": np.ones((100_000, 3), np.uint8)})
    for read in (lambda: store["odd"][0], lambda: store["x"].take([50_000])):
        with pytest.raises(shardstore.FormatError, match="was replaced since it was opened"):
            read()
    assert "replaced" in store.verify().damages[0].reason
    assert shardstore.open(store.path)["odd"][0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_files_of_another_size_are_found_before_they_are_read(
    tmp_path: Path, codec: str, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        monkeypatch.setattr(mapping, "max_map_count", lambda: 0)

    def damaged(what: str) -> shardstore.Store:
        with shardstore.Writer(tmp_path / what, codec=codec, shard_bytes=4096 * 8) as writer:
            writer.append({"x": np.arange(20_000)})
        path = tmp_path / what / "x/c/2"
        if what == "missing":
            path.unlink()
        elif what == "short":
            os.truncate(path, path.stat().st_size - 1)
        elif what == "empty":
            os.truncate(path, 0)
        else:
            with path.open("ab") as file:
                file.write(b"x")
        return shardstore.open(tmp_path / what)

    for what, message in (("missing", "missing"), ("short", "short"), ("empty", "short"), ("long", "overlong")):
        store = damaged(what)
        with pytest.raises(shardstore.CorruptionError, match=message) as caught:
            store["x"].take([10_000])
        assert str(store.path / "x/c/2") in str(caught.value)


def test_both_raw_readers_are_used(store: shardstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, directory = store.manifest.columns["x"].data, Directory(store.path)
    assert isinstance(open_reader(directory, entry, Shared()), ContiguousReader)
    monkeypatch.setattr(mapping, "max_map_count", lambda: 0)
    assert isinstance(open_reader(directory, entry, Shared()), ShardwiseReader)


def test_the_shardwise_reader_keeps_a_bounded_number_of_mappings(
    store: shardstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "max_map_count", lambda: 0)
    monkeypatch.setattr(ShardwiseReader, "MAX_OPEN", 3)
    rows = np.random.default_rng(0).permutation(100_000)
    assert np.array_equal(store["x"].take(rows), rows)
    if Path("/proc/self/maps").exists():
        gc.collect()
        assert maps_of(store) == 3


_LIMITED = """
import resource, sys, numpy as np, shardstore
store = shardstore.open(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
rows = np.arange(0, len(store), 4000)
assert np.array_equal(store["x"].take(rows)[:, 0], rows)
print(type(store.files._readers["x"]).__name__)
"""


@linux
def test_a_process_without_address_space_reads_shard_by_shard(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", shard_bytes="4MiB") as writer:
        for start in range(0, 40_000, 1000):
            rows = np.zeros((1000, 512))
            rows[:, 0] = np.arange(start, start + 1000)
            writer.append({"x": rows})
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("ShardwiseReader\n", 0), done.stderr


_CROWDED = """
import mmap, sys, numpy as np, shardstore
store = shardstore.open(sys.argv[1])
assert store["x"][0][0] == 0
limit = int(open("/proc/sys/vm/max_map_count").read())
used = len(open("/proc/self/maps").readlines())
# Neighbours of different protection do not merge into one mapping.
others = [mmap.mmap(-1, 4096, prot=mmap.PROT_READ | (i % 2 * mmap.PROT_WRITE)) for i in range(limit - used - 60)]
rows = np.arange(0, len(store), 500)
for _ in range(2):
    assert np.array_equal(store["x"].take(rows)[:, 0], rows)
assert np.array_equal(store["x"][:][:, 0], np.arange(len(store)))
print(type(store.files._readers["x"]).__name__)
"""


@linux
@pytest.mark.skipif(mapping.max_map_count() > 200_000, reason="would need too many mappings")
def test_a_process_that_runs_out_of_mappings_reads_shard_by_shard(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", shard_bytes=4096 * 8) as writer:
        rows = np.zeros((4096 * 100, 8), np.uint32)
        rows[:, 0] = np.arange(len(rows))
        writer.append({"x": rows})
    done = subprocess.run(
        [sys.executable, "-c", _CROWDED, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("ShardwiseReader\n", 0), done.stderr


@pytest.mark.parametrize(
    ("shard_nbytes", "row_nbytes"), [(4096, 8), (4096 * 785, 785), (785, 785), (1, 1), (3 * 4096 * 7, 21), (100, 100)]
)
def test_spacing_is_whole_pages_and_whole_rows(shard_nbytes: int, row_nbytes: int) -> None:
    spacing = mapping.spacing_nbytes(shard_nbytes, row_nbytes)
    assert spacing >= shard_nbytes
    assert spacing % resource.getpagesize() == 0
    assert spacing % row_nbytes == 0


@linux
@pytest.mark.parametrize("codec", ["raw", "zstd:1", "blosc:lz4"])
def test_a_forked_child_reads_on(tmp_path: Path, codec: str) -> None:
    with shardstore.Writer(tmp_path / "s", codec=codec, shard_bytes=4096 * 8, chunk_bytes=4096) as writer:
        writer.append({"x": np.arange(100_000)})
    store = shardstore.open(tmp_path / "s")
    rows = np.random.default_rng(0).permutation(100_000)[:5000]
    assert np.array_equal(store["x"].take(rows), rows)  # starts threads where they are used

    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            store["x"].take(rows)

    # Another thread is likely to hold a lock at the time of a fork.
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(5):
            child = _fork()
            if child == 0:
                os._exit(0 if np.array_equal(store["x"].take(rows[::-1]), rows[::-1]) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of what this test is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def test_threads_read_the_same(store: shardstore.Store) -> None:
    rows = np.random.default_rng(0).permutation(100_000)
    results: list[bool] = []

    def read() -> None:
        results.extend(np.array_equal(store["x"].take(rows), rows) for _ in range(10))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


@linux
def test_a_child_that_is_forked_in_the_middle_of_a_mapping_reads_on(
    store: shardstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, forked = threading.Event(), threading.Event()
    open_shard = readers.open_shard

    def slow_open(*arguments: Any, **options: Any) -> int:
        inside.set()
        forked.wait(10)
        return open_shard(*arguments, **options)

    assert store["x"][0] == 0  # opens the column
    monkeypatch.setattr(readers, "open_shard", slow_open)
    thread = threading.Thread(target=lambda: store["x"].take([99_999]))
    thread.start()
    inside.wait(10)
    child = _fork()
    if child == 0:
        signal.alarm(20)  # rather than to wait for ever
        forked.set()
        os._exit(0 if store["x"].take([50_000])[0] == 50_000 else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
