"""What a store costs: each kind of memory is what the system says, rises when rows are read and falls when they go."""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import shardstore
from shardstore import residency
from shardstore.cli import app
from shardstore.memory import size_text
from shardstore.memory_report import cached_nbytes_of, mappable_nbytes, shard_paths
from shardstore.residency import _counted, _scanned, cached_nbytes, drop_cached, resident_nbytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells all kinds")

ROWS = 4 * 8192
PAGE = mmap.PAGESIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with shardstore.Writer(tmp_path / "s", codec={"z": "zstd"}, shard_bytes="2MiB") as writer:
        writer.append(
            {
                "x": rng.random((ROWS, 64), np.float32),  # 8 MiB in 4 shards of whole pages
                "y": np.arange(ROWS, dtype=np.uint8),
                "z": rng.integers(0, 4, (ROWS, 16), np.uint8),
                "e": np.empty((ROWS, 0), np.float32),
            }
        )
    return tmp_path / "s"


def cached(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = cached_nbytes(descriptor)
    finally:
        os.close(descriptor)
    assert found is not None
    return found


def drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        drop_cached(descriptor)
    finally:
        os.close(descriptor)


def test_a_store_that_nobody_has_read_costs_nothing(path: Path) -> None:
    with shardstore.open(path) as store:
        report = store.memory()
    assert (report.mapped, report.resident, report.buffers) == (0, 0, 0)
    assert report.stored == store.stored_nbytes
    assert report.anonymous is not None
    assert report.file_backed is not None
    assert report.anonymous > 1 << 20


def test_mapped_is_what_was_touched_of_the_shards(path: Path) -> None:
    with shardstore.open(path) as store:
        shards = store.manifest.columns["x"].data
        shard = shards.layout.shard_nbytes
        store["x"][0]
        assert store.memory().mapped == shard
        store["x"].take([0, ROWS - 1])
        assert store.memory().mapped == 2 * shard
        store["x"][:]
        assert store.memory().mapped == 4 * shard == mappable_nbytes(shards)
        store.take([5])
        y = store.manifest.columns["y"].data
        assert store.memory().mapped == 4 * shard + y.layout.shard_nbytes
        report = store.memory()
        for row in range(0, ROWS, 100):
            store[row]
        report = store.memory()
        # The compressed column and the one without bytes have no maps.
        assert report.mapped == report.mappable == mappable_nbytes(shards) + mappable_nbytes(y)


def test_mappable_counts_whole_pages(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", shard_bytes=3 * PAGE) as writer:
        writer.append({"x": np.zeros((5000, 7), np.uint8)})
    with shardstore.open(tmp_path / "s") as store:
        entry = store.manifest.columns["x"].data
        shards = [entry.layout.rows_in_shard(i, 5000) * 7 for i in range(len(entry.nbytes))]
        assert sum(shards) == 35_000
        store["x"].take(np.arange(5000))
        assert store.memory().mapped == mappable_nbytes(entry) == sum(-(-n // PAGE) * PAGE for n in shards)


def test_resident_rises_with_what_is_touched_and_falls_when_the_store_goes(path: Path) -> None:
    store = shardstore.open(path)
    x = store["x"][:]
    before = store.memory()
    assert before.resident is not None
    assert before.resident <= 4 * PAGE
    x[:, 0].sum()
    after = store.memory()
    assert after.resident == x.nbytes == after.mapped
    assert after.file_backed is not None
    assert before.file_backed is not None
    assert after.file_backed >= before.file_backed + x.nbytes // 2
    ranges = store.files.mapped_ranges()
    assert sum(nbytes for _, nbytes in ranges) == after.mapped
    del x
    store.close()
    assert resident_nbytes(ranges) == 0


def test_pages_that_were_given_back_are_not_resident(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(64 * PAGE))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        ranges = [(view.ctypes.data, len(view))]
        view[::PAGE].sum()
        assert resident_nbytes(ranges) == 64 * PAGE
        mapped.madvise(mmap.MADV_DONTNEED)
        assert resident_nbytes(ranges) == 0
        mapped.madvise(mmap.MADV_RANDOM)
        view[5 * PAGE], view[7 * PAGE], view[9 * PAGE]
        # Both ways of asking agree.
        descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
        counted = _counted(descriptor, *ranges[0])
        scanned = _scanned(descriptor, *ranges[0])
        os.close(descriptor)
        assert 3 * PAGE <= counted <= 64 * PAGE
        assert scanned in (None, counted)
        del view


def test_the_page_cache_is_what_fadvise_leaves(path: Path) -> None:
    with shardstore.open(path) as store:
        paths = shard_paths(store.files)
        assert len(paths) == sum(len(entry.nbytes) for entry in store.manifest.arrays)
        for file in paths:
            file.read_bytes()
        report = store.memory()
        assert report.page_cache == report.stored == sum(file.stat().st_size for file in paths)
        drop(paths[0])
        if cached(paths[0]):
            pytest.skip("this file system keeps files in memory")
        assert store.memory().page_cache == report.stored - paths[0].stat().st_size
        for file in paths:
            drop(file)
        assert store.memory().page_cache == 0
        with paths[1].open("rb", buffering=0) as opened:
            opened.read(1)
        found = cached(paths[1])
        assert 0 < found <= paths[1].stat().st_size
        assert store.memory().page_cache == found


def test_older_systems_tell_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shardstore.open(path) as store:
        store["x"][:].sum()
        paths = shard_paths(store.files)
        drop(paths[-1])
        with paths[-1].open("rb", buffering=0) as opened:
            opened.read(1)
        found = store.memory()
        # Calls of numbers that no system has are refused as they are where there are none.
        monkeypatch.setattr(residency, "_CACHESTAT", 100_000)
        monkeypatch.setattr(residency, "_PAGEMAP_SCAN", 0)
        older = store.memory()
    assert (older.page_cache, older.resident) == (found.page_cache, found.resident)


def test_the_cache_of_decoded_chunks_counts_as_buffers(path: Path) -> None:
    with shardstore.open(path) as store:
        store["z"].take([0])
        layout = store.manifest.columns["z"].data.layout
        assert store.memory().buffers == layout.chunk_nbytes
        store["z"].take([0, 1, 2])
        assert store.memory().buffers == layout.chunk_nbytes


def test_files_that_are_gone_count_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert cached_nbytes_of([tmp_path / "empty", tmp_path / "gone"]) == 0


def test_the_report_is_json_and_readable(path: Path) -> None:
    with shardstore.open(path, access="streaming", memory_budget="64MiB") as store:
        report = store.memory()
    body = json.loads(json.dumps(report.to_dict()))
    assert (body["access"], body["memory_budget"]) == ("streaming", 64 << 20)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["anonymous", "file-backed", "page", "budget"]
    assert "64.0 MiB" in lines[-1]


def test_an_unknown_kind_is_said_to_be(path: Path) -> None:
    from dataclasses import replace

    with shardstore.open(path) as store:
        report = replace(store.memory(), anonymous=None, resident=None, page_cache=None)
    assert "unknown" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["page_cache"] is None


def test_sizes_are_short_texts() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 1536 << 20, 5 << 50)] == [
        *("0 B", "1,023 B", "1.0 KiB", "1.5 GiB", "5,120.0 TiB")
    ]


def test_info_tells_what_is_cached(path: Path) -> None:
    with shardstore.open(path) as store:
        report = store.memory()
    done = CliRunner().invoke(app, ["info", "--json", str(path)])
    memory = json.loads(done.stdout)["memory"]
    assert memory["stored"] == report.stored
    assert memory["mappable"] == report.mappable
    assert 0 <= memory["page_cache"] <= memory["stored"]
    text = CliRunner().invoke(app, ["info", str(path)]).stdout
    assert f"of {size_text(report.stored)} on disk are in the page cache now" in text
    assert f"a process that reads every row maps {size_text(report.mappable)}" in text
