"""Interrupted ingests: what is finished is taken over if its sources have not changed, and nothing else is."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import shard_files

import shardstore
from shardstore.shardfile import ShardWriter

# A shard of x has 64 rows.
SIZES: Any = {"shard_bytes": 2048, "chunk_bytes": 256}
OPTIONS: Any = {**SIZES, "workers": 1, "codec": {"x": "zstd"}, "types": {"kind": "categorical"}}
ROWS = 700


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """Files of every way in which columns are written: copied, in sequence, encoded."""
    folder = tmp_path / "sources"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "x-0.npy", rng.normal(size=(300, 4)))
    np.save(folder / "x-1.npy", rng.normal(size=(ROWS - 300, 4)))
    np.save(folder / "values.npy", rng.integers(0, 1 << 16, 5 * ROWS).astype("<u2"))
    np.save(folder / "lengths.npy", np.full(ROWS, 5))
    for number, part in enumerate(np.split(np.array([f"w{i % 17}" for i in range(ROWS)]), [300])):
        np.save(folder / f"names-{number}.npy", part)
    np.savez(folder / "packed.npz", z=np.arange(ROWS))
    return {
        "x": str(folder / "x-*.npy"),
        "kind": str(folder / "names-*.npy"),
        "name": str(folder / "names-*.npy"),
    }


@pytest.fixture
def ragged(sources: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "sources"
    return {"t": {"values": folder / "values.npy", "lengths": folder / "lengths.npy"}, "n": folder / "lengths.npy"}


def killed_after(shards: int, work: Callable[[], Any]) -> None:
    """Do some work in a process that is killed when so many shard files are finished."""

    def child() -> None:
        finished = 0
        finish = ShardWriter.finish

        def counted(writer: ShardWriter) -> Any:
            nonlocal finished
            if finished == shards:
                os.kill(os.getpid(), signal.SIGKILL)
            finished += 1
            return finish(writer)

        ShardWriter.finish = counted  # type: ignore[method-assign]
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@contextmanager
def writes() -> Iterator[list[Path]]:
    """Collect the shard files that are written."""
    written: list[Path] = []
    finish = ShardWriter.finish

    def noted(writer: ShardWriter) -> Any:
        record = finish(writer)
        written.append(writer.path)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "finish", noted)
        yield written


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".partial-" in path.name]


@pytest.mark.parametrize("shards", [0, 1, 5, 12])
@pytest.mark.parametrize("kind", ["fixed", "ragged"])
def test_a_resumed_ingest_is_one_that_was_not_interrupted(
    tmp_path: Path, sources: Any, ragged: Any, kind: str, shards: int
) -> None:
    if kind == "ragged":
        sources = ragged
    options = {**OPTIONS, "types": {}, "codec": "raw"} if kind == "ragged" else OPTIONS
    expected = shard_files(shardstore.ingest(sources, tmp_path / "one", **options).path)
    killed_after(shards, lambda: shardstore.ingest(sources, tmp_path / "s", **options))
    assert len(left_behind(tmp_path)) == 1
    with writes() as written:
        store = shardstore.ingest(sources, tmp_path / "s", mode="resume", **options)
    assert store.verify(deep=True).ok
    assert shard_files(store.path) == expected
    assert len(written) == len(expected) - shards
    assert not left_behind(tmp_path)
    assert sorted(path.name for path in store.path.iterdir()) == sorted([*sources, "zarr.json"])


@pytest.mark.parametrize("change", ["content", "time", "rows", "header", "other"])
def test_nothing_is_taken_over_of_what_has_changed(tmp_path: Path, sources: Any, change: str) -> None:
    killed_after(15, lambda: shardstore.ingest(sources, tmp_path / "s", **OPTIONS))
    path = tmp_path / "sources" / "x-0.npy"
    status, array = path.stat(), np.load(path)
    if change == "content":  # at the same length and time: only a look at the content tells
        array[10, 0] += 1
        np.save(path, array)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "rows":
        for name in ("x-0", "names-0"):
            np.save(tmp_path / "sources" / f"{name}.npy", np.load(tmp_path / "sources" / f"{name}.npy")[:290])
    elif change == "header":
        np.save(path, np.asfortranarray(array))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "other":
        sources = {**sources, "x": sources["x"].replace("x-*", "x-[01]")}
    with writes() as written:
        store = shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)
    expected = shardstore.ingest(sources, tmp_path / "one", **OPTIONS)
    assert shard_files(store.path) == shard_files(expected.path)
    again = {str(path.relative_to(path.parents[3])) for path in written if "/x/c/" in path.as_posix()}
    # Shard 4 begins within the first file, and those behind it are of the second one alone.
    kept = {"content": range(5, 11), "time": range(5, 11), "header": range(5, 11), "other": range(11)}.get(change, ())
    assert again == {f"x/c/{shard}/0" for shard in range(11) if shard not in kept}
    if change in ("content", "time", "header"):
        assert not [path for path in written if path.as_posix().endswith(("kind/c/0", "kind/c/3"))]


def test_a_damaged_shard_is_not_taken_over(tmp_path: Path, sources: Any) -> None:
    expected = shard_files(shardstore.ingest(sources, tmp_path / "one", **OPTIONS).path)
    for damage in ("flip", "cut", "footer"):
        killed_after(5, lambda: shardstore.ingest(sources, tmp_path / "s", **OPTIONS))
        path = left_behind(tmp_path)[0] / "x/c/2/0"
        data = bytearray(path.read_bytes())
        data[{"flip": 9, "cut": 0, "footer": -30}[damage]] ^= 4
        path.write_bytes(data[:-1] if damage == "cut" else data)
        with writes() as written:
            store = shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)
        assert shard_files(store.path) == expected
        assert len(written) == len(expected) - 4
        shardstore.ingest(sources, tmp_path / "s", mode="overwrite", **OPTIONS)
        for file in sorted(store.path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        store.path.rmdir()


def rows_of(number: int = ROWS) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(1)
    for i in range(number):
        row = {"x": rng.normal(size=4), "text": f"w{i}" * (9 + i % 3), "kind": f"c{i // 100}", "bag": np.arange(i % 4)}
        yield row


ROW_OPTIONS: Any = {**SIZES, "types": {"kind": "categorical", "bag": "ragged[int64]"}}


@pytest.mark.parametrize("shards", [0, 5, 25, 40])
def test_rows_that_come_again_are_compared_and_not_written(tmp_path: Path, shards: int) -> None:
    expected = shard_files(shardstore.ingest(rows_of(), tmp_path / "one", **ROW_OPTIONS).path)
    killed_after(shards, lambda: shardstore.ingest(rows_of(), tmp_path / "s", **ROW_OPTIONS))
    with writes() as written:
        store = shardstore.ingest(rows_of(), tmp_path / "s", mode="resume", **ROW_OPTIONS)
    assert shard_files(store.path) == expected
    assert store.verify(deep=True).ok
    assert (len(written) < len(expected)) == (shards > 5)
    assert not left_behind(tmp_path)


def test_other_rows_are_refused_and_what_was_finished_stays(tmp_path: Path) -> None:
    killed_after(40, lambda: shardstore.ingest(rows_of(), tmp_path / "s", **ROW_OPTIONS))

    def changed() -> Iterator[dict[str, Any]]:
        for i, row in enumerate(rows_of()):
            yield {**row, "text": "other"} if i == 3 else row

    def resume(rows: Any) -> Any:
        return shardstore.ingest(rows, tmp_path / "s", mode="resume", **ROW_OPTIONS)

    with pytest.raises(shardstore.SourceError, match="column 'text': not the rows that the interrupted ingest"):
        resume(changed())
    with pytest.raises(shardstore.SourceError, match=r"ended .* rows before those that the interrupted ingest"):
        resume(rows_of(60))
    assert len(left_behind(tmp_path)) == 1
    expected = shard_files(shardstore.ingest(rows_of(), tmp_path / "one", **ROW_OPTIONS).path)
    with writes() as written:
        assert shard_files(resume(rows_of()).path) == expected
    assert len(written) < len(expected)


def test_a_writer_goes_on_behind_the_last_whole_shard(tmp_path: Path) -> None:
    rows = list(rows_of())

    def append(writer: shardstore.Writer, start: int, step: int) -> None:
        for first in range(start, len(rows), step):
            part = rows[first : first + step]
            writer.append({name: [row[name] for row in part] for name in part[0]})

    def work(mode: Any, step: int) -> int:
        with shardstore.Writer(tmp_path / "s", mode=mode, **ROW_OPTIONS) as writer:
            there = writer.num_rows
            append(writer, there, step)
        return there

    killed_after(30, lambda: work("create", 50))
    killed_after(10, lambda: work("resume", 7))
    there = work("resume", 33)
    assert 0 < there < ROWS
    assert there % 64 == 0
    expected = shard_files(shardstore.ingest(rows_of(), tmp_path / "one", **ROW_OPTIONS).path)
    assert shard_files(tmp_path / "s") == expected


def test_a_forgotten_option_costs_nothing(tmp_path: Path, sources: Any) -> None:
    killed_after(30, lambda: shardstore.ingest(rows_of(), tmp_path / "t", **ROW_OPTIONS))
    with pytest.raises(shardstore.SchemaError, match="the same arguments, or begin a new one"):
        shardstore.Writer(tmp_path / "t", mode="resume", shard_bytes=4096).__enter__()
    with pytest.raises(shardstore.SchemaError, match="the same arguments, or begin a new one"):
        shardstore.ingest(sources, tmp_path / "t", mode="resume", **OPTIONS)  # which were rows
    with shardstore.Writer(tmp_path / "t", mode="resume", **ROW_OPTIONS) as writer:
        assert writer.num_rows > 0
    killed_after(15, lambda: shardstore.ingest(sources, tmp_path / "s", **OPTIONS))
    for other in ({"codec": {"x": "zstd:4"}}, {"shard_bytes": 4096}, {"types": {}}):
        with pytest.raises(shardstore.SchemaError, match="the same arguments, or begin a new one"):
            shardstore.ingest(sources, tmp_path / "s", mode="resume", **{**OPTIONS, **other})
    with writes() as written:
        shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)
    assert not [path for path in written if "/x/" in path.as_posix()]


def test_skipped_rows_are_those_of_an_ingest_that_was_not_interrupted(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for i, row in enumerate(rows_of()):
            yield {**row, "text": 3} if i % 17 == 3 else row

    expected = shardstore.ingest(rows(), tmp_path / "one", on_error="skip", **ROW_OPTIONS)
    killed_after(40, lambda: shardstore.ingest(rows(), tmp_path / "s", on_error="skip", **ROW_OPTIONS))
    with writes() as written:
        store = shardstore.ingest(rows(), tmp_path / "s", mode="resume", on_error="skip", **ROW_OPTIONS)
    assert len(written) < len(shard_files(expected.path)) - 10
    assert shard_files(store.path) == shard_files(expected.path)
    assert store.manifest.provenance["skipped"] == expected.manifest.provenance["skipped"]


def test_what_is_left_goes_with_the_next_writer(tmp_path: Path, sources: Any) -> None:
    for mode in ("create", "overwrite", "resume"):
        killed_after(9, lambda: shardstore.ingest(sources, tmp_path / "s", **OPTIONS))
        killed_after(3, lambda: shardstore.ingest(rows_of(), tmp_path / "s", **ROW_OPTIONS))
        other = tmp_path / "t.partial-01234567"
        other.mkdir(exist_ok=True)
        assert len(left_behind(tmp_path)) == 2  # each one removes what the one before has left
        shardstore.ingest(sources, tmp_path / "s", mode=mode, **OPTIONS)
        assert left_behind(tmp_path) == [other]
        for file in sorted((tmp_path / "s").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (tmp_path / "s").rmdir()


def test_a_build_that_is_under_way_is_not_touched(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"x": np.arange(3)})
        with pytest.raises(shardstore.LockedError, match=f"being built already.*this process \\({os.getpid()}\\)"):
            shardstore.Writer(tmp_path / "s", mode="resume").__enter__()
        with shardstore.Writer(tmp_path / "t") as other:
            other.append({"x": np.arange(3)})
        writer.append({"x": np.arange(3, 5)})
    assert shardstore.open(tmp_path / "s")["x"][:].tolist() == list(range(5))


def test_what_is_complete_is_not_resumed(tmp_path: Path, sources: Any) -> None:
    shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)
    with pytest.raises(shardstore.DestinationError, match="nothing to resume: it is complete"):
        shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)


def test_a_resumable_ingest_that_fails_keeps_what_is_finished(tmp_path: Path, sources: Any) -> None:
    broken = {**sources, "name": sources["name"].replace("names-*", "x-*")}
    with pytest.raises(shardstore.ShardStoreError):
        shardstore.ingest(broken, tmp_path / "s", mode="resume", **{**OPTIONS, "types": {"name": "utf8"}})
    names = tmp_path / "sources" / "names-1.npy"
    good = names.read_bytes()
    names.write_bytes(good[:-4] + b"\xff\xff\xff\xff")  # no character
    with pytest.raises(shardstore.SourceError):
        shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)
    assert len(left_behind(tmp_path)) == 1
    names.write_bytes(good)
    with writes() as written:
        store = shardstore.ingest(sources, tmp_path / "s", mode="resume", **OPTIONS)
    assert not [path for path in written if "/x/" in path.as_posix()]
    assert store.verify(deep=True).ok
