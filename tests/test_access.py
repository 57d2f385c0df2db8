"""What stays resident, what is asked for ahead and what is given back; rows are the same whatever happens to pages."""

from __future__ import annotations

import functools
import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import access, paging
from shardstore.access import AccessOptions, Budget
from shardstore.paging import PAGE, Advice

linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux' /proc")
ROWS, WIDTH = 6000, 1024
ROW_NBYTES = 4 * WIDTH
MIB = 1 << 20


@pytest.fixture
def own(path: Path, tmp_path: Path) -> Path:
    """The same store under a name of its own, whose maps are those of this test."""
    return Path(shutil.copytree(path, tmp_path / "own", copy_function=os.link))


@functools.cache  # asked for with every batch
def model() -> np.ndarray[Any, Any]:
    array = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    array.flags.writeable = False
    return array


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "s"
    with shardstore.Writer(path, shard_bytes=MIB) as writer:
        writer.append({"x": model(), "odd": np.arange(ROWS * 3, dtype=np.uint8).reshape(ROWS, 3), "y": np.arange(ROWS)})
    return path


def resident_nbytes(path: Path) -> int:
    """Return how many bytes of a store's maps are in this process's page tables."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(1024 * int(re.search(r"Rss:\s+(\d+)", one)[1]) for one in maps if f"{path}/" in one)  # type: ignore[index]


def drop_from_cache(path: Path) -> None:
    for file in path.rglob("c/*"):
        if file.is_file():
            _drop(file)
    for file in path.rglob("c/*/*"):
        _drop(file)


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def share_in_cache(store: shardstore.Store) -> float:
    pages = [paging.cached_pages(*place) for place in store.files.mapped_ranges()]
    return float(np.concatenate([page for page in pages if page is not None]).mean())


OPTIONS = [
    {}, {"access": "resident"}, {"access": "streaming"}, {"memory_budget": "4MiB"}, {"memory_budget": "100MiB"},
    {"access": "streaming", "memory_budget": 6 * MIB},
]  # fmt: skip


@pytest.fixture(scope="module", params=OPTIONS, ids=str)
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[shardstore.Store]:
    with shardstore.open(path, **request.param) as store:
        yield store


@given(st.data())
@settings(max_examples=15)
def test_rows_are_the_same_in_every_mode(store: shardstore.Store, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(-ROWS, ROWS - 1), max_size=300)), np.int64)
    if data.draw(st.booleans()):
        drop_from_cache(store.path)
    taken = store.take(rows)
    assert np.array_equal(taken["x"], model()[rows])
    assert np.array_equal(taken["y"], np.arange(ROWS)[rows])
    assert np.array_equal(taken["odd"], np.arange(ROWS * 3, dtype=np.uint8).reshape(ROWS, 3)[rows])
    start, stop = sorted(data.draw(st.tuples(st.integers(0, ROWS), st.integers(0, ROWS))))
    assert np.array_equal(store["x"][start:stop], model()[start:stop])


@pytest.mark.parametrize("shuffle", [False, "full", "window"])
@pytest.mark.parametrize("cold", [False, True])
def test_epochs_are_the_same_in_every_mode(store: shardstore.Store, shuffle: Any, cold: bool) -> None:
    expected = [batch["y"] for batch in shardstore.open(store.path).batches(100, shuffle=shuffle, seed=3)]
    if cold:
        drop_from_cache(store.path)
    for copy in (True, False):
        found = list(store.batches(100, shuffle=shuffle, seed=3, copy=copy))
        assert np.array_equal(np.concatenate([batch["y"] for batch in found]), np.concatenate(expected))
        for batch in found:
            assert np.array_equal(batch["x"], model()[batch["y"]])


@linux
@pytest.mark.parametrize("shuffle", [False, "full"])
@pytest.mark.parametrize("budget", ["4MiB", "8MiB"])
def test_what_is_resident_stays_within_the_budget(own: Path, shuffle: Any, budget: str) -> None:
    limit = int(budget[:-3]) * MIB
    with shardstore.open(own, memory_budget=budget) as store:
        for _ in range(2):
            for batch in store.batches(64, shuffle=shuffle):
                assert resident_nbytes(own) <= limit
                del batch
        for start in range(0, ROWS, 100):
            store.take(np.arange(start, start + 100)[::-1] * 37 % ROWS)
            assert resident_nbytes(own) <= limit


@linux
def test_without_a_budget_maps_stay(own: Path) -> None:
    with shardstore.open(own) as store:
        store.warm("x")
        assert resident_nbytes(own) >= ROWS * ROW_NBYTES
        store.warm()
        total = ROWS * (ROW_NBYTES + 3 + 8)
        assert total <= resident_nbytes(own) <= total + 200 * PAGE
    assert resident_nbytes(own) == 0


@linux
def test_a_pass_populates_what_is_kept(own: Path) -> None:
    with shardstore.open(own) as store:
        batches = iter(store.batches(10, shuffle=True))
        next(batches)
        next(batches)
        for thread in threading.enumerate():
            if thread.name == "shardstore-populate":
                thread.join()
        assert resident_nbytes(own) >= store.nbytes
        batches.close()  # type: ignore[attr-defined]
    with shardstore.open(own, access="streaming") as store:
        list(store.batches(10, columns="y"))
        assert resident_nbytes(own) < store.nbytes


@linux
def test_pages_to_come_are_in_the_cache_before_they_are_read(path: Path) -> None:
    with shardstore.open(path, access="streaming") as store:
        np.asarray(store["y"])
        store.files.expect("x", np.arange(1))  # maps a shard
        drop_from_cache(path)
        rows = np.random.default_rng(0).permutation(ROWS)[:500]
        assert store.files.wants("x", 1 << 20)
        store.files.expect("x", rows)
        ranges = dict(store.files.mapped_ranges())
        for _ in range(2000):
            if share_in_cache(store) > 0.05:
                break
        assert ranges
        assert np.array_equal(store["x"].take(rows), model()[rows])


@linux
@pytest.mark.parametrize("shuffle", [False, "full"])
def test_a_warm_pass_asks_for_nothing(path: Path, shuffle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask_for = access.ask_for
    monkeypatch.setattr(access, "ask_for", lambda starts, nbytes: (asked.append(len(starts)), ask_for(starts, nbytes)))
    with shardstore.open(path, access="streaming") as store:
        store.warm()
        list(store.batches(100, columns="x", shuffle=shuffle))
        asked.clear()
        list(store.batches(100, columns="x", shuffle=shuffle))
        store.take(np.arange(0, ROWS, 7))
        assert asked == []
        if _can_drop(path, store):
            list(store.batches(100, columns="x", shuffle=shuffle))
            assert asked


def _can_drop(path: Path, store: shardstore.Store) -> bool:
    """Take the store out of the page cache; return whether the file system lets go of it (tmpfs does not)."""
    store.files.budget.touched(1 << 50)  # what is mapped cannot be dropped
    drop_from_cache(path)
    return share_in_cache(store) < 0.5


@linux
def test_where_the_system_hides_the_page_cache_waiting_tells(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardstore.readers.contiguous.tells_cached", lambda status: False)
    faults = [0]
    monkeypatch.setattr(access, "major_faults", lambda: faults[0])
    asked: list[int] = []
    monkeypatch.setattr(access, "ask_for", lambda starts, nbytes: asked.append(len(starts)))
    with shardstore.open(path, access="streaming") as store:
        rows = np.arange(0, ROWS, 2)
        for _ in range(24):  # until 65,536 rows were asked for, which nobody knows to be of use
            assert np.array_equal(store["x"].take(rows), model()[rows])
        assert sum(asked) >= 60_000
        asked.clear()
        for _ in range(5):
            store["x"].take(rows)
        assert not asked
        faults[0] += 10
        store["x"].take(rows)
        assert asked


def test_arrays_are_kept_while_they_fit() -> None:
    budget = Budget(AccessOptions(memory_budget=100))
    assert [budget.keep(nbytes) for nbytes in (20, 40, 30, 1)] == [True, False, True, False]
    assert not Budget(AccessOptions("streaming", 100)).keep(1)
    assert Budget(AccessOptions("resident")).keep(1 << 60)


def test_the_parts_of_a_budget_add_up_to_it() -> None:
    for total in (1, 100, 4 * MIB, 1 << 30, 1 << 40):
        budget = Budget(AccessOptions(memory_budget=total))
        assert budget.cache_nbytes + budget.buffer_nbytes + budget.streamed_nbytes <= total
        budget.keep(total // 4)
        assert budget.cache_nbytes + budget.buffer_nbytes + budget.streamed_nbytes + total // 4 <= total


def test_what_makes_no_sense_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="access is 'fast'; expected one of 'auto', 'resident', 'streaming'"):
        shardstore.open(path, access="fast")  # type: ignore[arg-type]
    for budget in (0, -5, "0", "2 GiBs", "much"):
        with pytest.raises(shardstore.SchemaError, match="not a size in bytes"):
            shardstore.open(path, memory_budget=budget)
    for wrong in (True, 1.5, [1]):
        with pytest.raises(TypeError, match="memory_budget is a"):
            shardstore.open(path, memory_budget=wrong)  # type: ignore[arg-type]


def test_a_batch_that_does_not_fit_the_budget_is_refused(path: Path) -> None:
    with shardstore.open(path, memory_budget="4MiB") as store:
        with pytest.raises(
            ValueError, match=r"a batch of 1,000 rows takes 4,107,000 bytes.*choose a smaller batch_size"
        ):
            store.batches(1000)
        assert sum(len(batch["y"]) for batch in store.batches(100)) == ROWS
        with pytest.raises(ValueError, match="memory_budget"):
            shardstore.mix({store: 1}).batches(1000)
        with pytest.raises(ValueError, match="memory_budget"):
            store.select("x").join(store.select("y")).batches(1000)
    with (
        shardstore.open(path, access="resident", memory_budget="4MiB") as store,
        pytest.raises(ValueError, match="access='resident' would keep"),
    ):
        store["x"][0]


def test_a_window_that_does_not_fit_the_budget_is_refused(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", codec="zstd") as writer:
        writer.append({"x": np.zeros((20_000, 128), np.float32)})
    with shardstore.open(tmp_path / "s", memory_budget="4MiB") as store:
        with pytest.raises(
            ValueError, match=r"a window of the shuffle with a batch takes .*choose smaller window_bytes"
        ):
            store.batches(64, shuffle=True)
        batches = store.batches(64, shuffle=True, window_bytes="1MiB")
        assert sum(len(batch["x"]) for batch in batches) == 20_000


def test_how_a_store_was_opened_pickles_with_it(path: Path) -> None:
    with shardstore.open(path, access="streaming", memory_budget="32MiB") as store:
        stream = pickle.loads(pickle.dumps(store.batches(10)))
        view = pickle.loads(pickle.dumps(store.select("y")))
        assert view.files.budget.options == AccessOptions("streaming", 32 * MIB)
        assert len(next(iter(stream))["y"]) == 10
        stream.close()


def test_advice_degrades_quietly(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    for name in ("_madvise", "_mincore", "_vectored_madvise"):
        monkeypatch.setattr(paging, name, lambda: None)
    assert not paging.advise(4096, 4096, Advice.WILLNEED)
    assert paging.cached_share([4096]) is None
    assert paging.cached_pages(4096, 4096) is None
    paging.ask_for(np.array([4096]), 100)
    for options in OPTIONS:
        if options.get("access") != "resident":
            with shardstore.open(path, **options) as store:  # type: ignore[arg-type]
                store.warm()
                found = np.concatenate([batch["y"] for batch in store.batches(64, shuffle=True)])
                assert np.array_equal(np.sort(found), np.arange(ROWS))


@linux
def test_one_call_asks_for_many_ranges_as_many_calls_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shardstore.open(path, access="streaming") as store:
        array = store["x"][:]
        first = array.__array_interface__["data"][0]
        for vectored in (True, False):
            if not vectored:
                monkeypatch.setattr(paging, "_vectored_madvise", lambda: None)
            if not _can_drop(path, store):
                pytest.skip("this file system does not let go of its pages")
            rows = np.arange(0, 200) * 30
            paging.ask_for(first + rows * ROW_NBYTES, ROW_NBYTES)
            for _ in range(100_000):
                if paging.cached_share((first + rows * ROW_NBYTES).tolist()) == 1:
                    break
            assert paging.cached_share((first + rows * ROW_NBYTES).tolist()) == 1


@linux
@pytest.mark.parametrize("prefetch", [0, 3])
def test_views_of_batches_stay_within_the_budget(own: Path, prefetch: int) -> None:
    with shardstore.open(own, memory_budget="8MiB") as store:
        found = 0
        for batch in store.batches(64, columns="x", copy=False, prefetch=prefetch):
            assert not batch["x"].flags.writeable
            found += int(batch["x"][:, 0].size)
            assert np.array_equal(batch["x"][:, 1], model()[found - len(batch["x"]) : found, 1])
            assert resident_nbytes(own) <= 8 * MIB
        assert found == ROWS


def test_long_stretches_are_asked_for_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(paging, "_ask_at_once", lambda ranges: asked.extend(map(tuple, ranges.tolist())) is None)
    paging.ask_for(np.array([5 * PAGE + 7, 1 << 30, 3 << 30]), np.array([1, 1 << 20, (128 << 10) + 1]))
    covered = [page for start, length in asked for page in range(start // PAGE, (start + length) // PAGE)]
    expected = [5, *range((1 << 30) // PAGE, ((1 << 30) + (1 << 20)) // PAGE)]
    expected += range((3 << 30) // PAGE, ((3 << 30) + (128 << 10)) // PAGE + 1)
    assert covered == expected
    assert max(length for _, length in asked) <= 128 << 10


@linux
def test_warming_brings_in_all_of_every_shard(own: Path) -> None:
    for kind in ("auto", "streaming"):
        with shardstore.open(own, access=kind) as store:  # type: ignore[arg-type]
            store.warm("x")
            for _ in range(200_000):
                if share_in_cache(store) == 1:
                    break
            assert share_in_cache(store) == 1
            assert (resident_nbytes(own) > 0) == (kind == "auto")


def test_a_budget_counts_no_more_than_there_is(path: Path) -> None:
    with shardstore.open(path, memory_budget="64MiB") as store:
        assert len(next(iter(store.batches(10**6)))["y"]) == ROWS  # no batch is larger than the store
    with shardstore.open(path, memory_budget="8MiB") as store:
        stream = store.batches(400, prefetch=50)  # fewer blocks ahead than would not fit
        assert sum(len(batch["y"]) for batch in stream) == ROWS


def test_shards_beyond_those_that_can_be_open_are_read_through_the_map(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardstore.readers.shared.Shared.max_open", 3)
    rows = np.random.default_rng(0).permutation(ROWS)
    with shardstore.open(path, memory_budget="8MiB") as store:
        assert np.array_equal(store["x"].take(rows), model()[rows])
        starts = rows[:50].clip(0, ROWS - 20)
        out = np.empty((50 * 20, WIDTH), np.float32)
        store.files.read_runs("x", starts, starts + 20, out)
        assert np.array_equal(out, np.concatenate([model()[i : i + 20] for i in starts]))
