"""Child processes: what they read, hold and remove, by fork, spawn and forkserver.

`python tools/processes.py` reads more often, measures more processes, and pickles more shards.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstore
from shardstore.cache import BoundedCache
from shardstore.changes.writelock import store_lock
from shardstore.locks import ForkSafeLock, cached_property, without_forks
from tools.processes import START_METHODS, check_pickles, measure, write_rows, write_wide_store

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with shardstore.Writer(tmp_path / "s", codec="zstd", shard_bytes=1 << 15, chunk_bytes=4096) as writer:
        writer.append({"x": np.arange(20_000)})
    return tmp_path / "s"


def in_child(function: Callable[[], Any]) -> int:
    """Run a function in the child of a fork and return how it ended: 0, 1 if the function raised, or -signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what these tests are about
        child = os.fork()
    if not child:
        try:
            signal.alarm(30)  # rather than to wait for ever
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Busy:
    """A thread that is inside something until the `with` statement ends."""

    def __init__(self, run: Callable[[Callable[[], None]], Any]) -> None:
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=run, args=(self._stay,))

    def _stay(self) -> None:
        self._inside.set()
        self._go_on.wait(30)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._inside.wait(30)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()
        self._thread.join()


# Locks


def test_a_child_finds_locks_free_that_threads_held() -> None:
    lock = ForkSafeLock()

    def hold(stay: Callable[[], None]) -> None:
        with lock:
            stay()

    def take() -> None:
        with lock:
            pass

    with Busy(hold):
        assert in_child(take) == 0


def test_a_child_computes_what_a_thread_was_computing() -> None:
    class Slow:
        wait: Callable[[], None] = staticmethod(lambda: None)

        @cached_property
        def value(self) -> int:
            self.wait()
            return 5

    slow = Slow()

    def compute(stay: Callable[[], None]) -> None:
        slow.wait = stay  # type: ignore[method-assign]
        assert slow.value == 5

    def check() -> None:
        slow.wait = lambda: None  # type: ignore[method-assign]
        assert slow.value == 5
        assert Slow().value == 5

    with Busy(compute):
        assert Slow().value == 5
        assert in_child(check) == 0
    assert "value" in vars(slow)


def test_a_cache_may_be_used_by_finalizers_while_it_is_used() -> None:
    """The collector may run wherever the cache calls what it was given."""
    gone: list[int] = []

    def finalize() -> None:
        if gone:
            key = gone.pop()
            cache.discard(lambda other: other == key)

    def size_of(value: int) -> int:
        finalize()
        return value

    def is_five(key: int) -> bool:
        finalize()
        return key == 5

    cache: BoundedCache[int, int] = BoundedCache(100, size_of)
    for key in range(6):
        cache.get(key, lambda key: 10 * key)
        gone = [key - 2]
    assert cache.size == 40 + 50
    gone = [4]
    cache.discard(is_five)
    assert cache.size == 0
    gone = [8]
    cache.get(8, lambda key: 60)
    assert cache.size == sum(cache.get(key, lambda key: 0) for key in range(10))


def test_a_fork_waits_for_an_import(path: Path) -> None:
    """Python keeps a module's lock for the thread that imports it, which the child has not."""
    store = shardstore.open(path)
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "numcodecs"}
    for name in modules:
        del sys.modules[name]
    try:
        thread = threading.Thread(target=lambda: store["x"][:10])
        thread.start()
        while "numcodecs" not in sys.modules:
            pass
        assert in_child(lambda: store["x"][0]) == 0
        thread.join()
    finally:
        sys.modules.update(modules)


def test_nothing_forks_meanwhile() -> None:
    order: list[str] = []

    def hold(stay: Callable[[], None]) -> None:
        with without_forks:
            stay()
            order.append("done")

    busy = Busy(hold)
    with busy:
        forking = threading.Thread(target=lambda: order.append(f"forked {in_child(lambda: None)}"))
        forking.start()
    forking.join()
    assert order == ["done", "forked 0"]


# What the parent writes


def test_a_lock_does_not_go_to_children(path: Path) -> None:
    def is_locked() -> bool:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def leave() -> None:
        with pytest.raises(shardstore.LockedError), store_lock(path):
            pass
        raise KeyError  # and leave the parent's with statement

    outcome = None
    lock = store_lock(path)
    with lock:
        outcome = in_child(lambda: lock.__exit__(None, None, None))
        assert (outcome, is_locked()) == (0, True)
        assert in_child(leave) == 1
        assert is_locked()
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent ends
            os._exit(0)
    assert not is_locked()
    with store_lock(path):
        pass
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)


def test_a_lock_does_not_outlive_its_process_in_a_child(path: Path) -> None:
    (begun, begin), (ended, end) = os.pipe(), os.pipe()

    def die() -> None:
        with store_lock(path):
            if not os.fork():
                os.close(end)
                os.write(begin, b"!")
                os.read(ended, 1)  # until the test ends
                os._exit(0)
            assert os.read(begun, 1)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    with store_lock(path):
        pass
    for descriptor in (begun, begin, ended, end):
        os.close(descriptor)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_child_that_leaves_a_writer_takes_nothing_along(tmp_path: Path, codec: str) -> None:
    array = np.arange(60_000)
    with shardstore.Writer(tmp_path / "new/s", codec=codec, shard_bytes=1 << 15, chunk_bytes=4096) as writer:
        writer.append({"x": array[:10_001]})

        def leave() -> None:
            with pytest.raises(shardstore.DestinationError, match="which forked this one"):
                writer.append({"x": array})
            with pytest.raises(shardstore.DestinationError, match="which forked this one"):
                writer.__exit__(None, None, None)

        def fail() -> None:
            writer.__exit__(KeyError, KeyError(), None)

        assert in_child(leave) == 0
        assert in_child(fail) == 0
        writer.append({"x": array[10_001:]})
    with shardstore.open(tmp_path / "new/s") as store:
        assert np.array_equal(store["x"][:], array)
        assert store.verify(progress=False).ok
    assert os.listdir(tmp_path / "new") == ["s"]


def test_a_child_that_rows_fork_takes_nothing_along(tmp_path: Path, path: Path) -> None:
    """A generator or function of the user's may fork, and the child may leave by an exception."""
    here = os.getpid()

    def double(batch: dict[str, Any]) -> Any:
        assert in_child(lambda: None) == 0
        if fork_here():
            raise KeyError
        return batch["x"] * 2

    def fork_here() -> bool:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return not child

    def rows() -> Any:
        for row in range(10_000):
            if row == 5000 and fork_here():
                raise KeyError
            yield {"x": row}

    try:
        shardstore.ingest(rows(), tmp_path / "new/s", shard_bytes=1 << 15, chunk_bytes=4096, progress=False)
        with shardstore.open(path) as store:
            store.add_column("y", double, batch_size=5000, shard_bytes=1 << 15, progress=False)
            assert np.array_equal(store["y"][:], np.arange(20_000) * 2)
    finally:
        if os.getpid() != here:
            os._exit(0)
    with shardstore.open(tmp_path / "new/s") as store:
        assert np.array_equal(store["x"][:], np.arange(10_000))
    assert os.listdir(tmp_path / "new") == ["s"]


# What children read

_READ = """
import sys
from pathlib import Path
from tools.processes import check_reading
wrong = check_reading(Path(sys.argv[1]), forks=4, with_torch=True)
sys.exit("\\n".join(wrong) or 0)
"""


def test_children_of_every_kind_read_what_the_parent_reads(tmp_path: Path) -> None:
    """In a process of its own, whose threads read and hold locks when it forks."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_pickles_are_small_and_need_no_file_before_a_read(tmp_path: Path) -> None:
    write_wide_store(tmp_path / "s", shards=60, columns=10)
    sizes, wrong = check_pickles(tmp_path / "s", with_torch=True)
    assert not wrong
    assert max(sizes.values()) < 3000


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")
def test_processes_share_the_pages_of_a_store(tmp_path: Path) -> None:
    """What each has for itself does not grow with the store."""
    workers = 2
    for megabytes in (16, 96):
        write_rows(tmp_path / f"{megabytes}", megabytes << 20)
    for method in START_METHODS:
        small = measure(tmp_path / "16", method, workers)
        large = measure(tmp_path / "96", method, workers)
        for part in ("anonymous", "dirty"):
            growth = max(getattr(memory, part) for memory in large) - min(getattr(memory, part) for memory in small)
            assert growth < 16 << 20, (method, part)
