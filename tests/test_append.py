"""Appending: a store that grew is the one that was written at once, and those who read it meanwhile keep their rows."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from dumps import assert_refused, run_python, shard_files, write_npy
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CODECS, save_dumps

import shardstore
import shardstore.opened
import shardstore.verify

# With these sizes a chunk of x has 4 rows and a shard 16.
SIZES = {"shard_bytes": 64, "chunk_bytes": 16}
counts = st.one_of(st.integers(0, 20), st.sampled_from([1, 3, 4, 5, 15, 16, 17, 32]))


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """Nothing here is about what a power cut leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def table(rows: int) -> dict[str, Any]:
    numbers = np.arange(rows)
    return {
        "x": numbers.astype("<i4"),
        "wide": np.sin(numbers[:, None] + np.arange(3)).astype("<f4"),
        "text": [f"{i}é" * (i % 4) for i in range(rows)],
        "bags": [np.arange(i % 3, dtype="<u2") + i for i in range(rows)],
        "none": np.zeros((rows, 0), "<i2"),
        "kind": [("cat", "dog", "eel")[i % 3] for i in range(rows)],
    }


TYPES = {"text": "utf8", "kind": shardstore.Categorical(["cat", "dog", "eel"]), "bags": "ragged[uint16]"}


def part(columns: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: values[start:stop] for name, values in columns.items()}


def content(table: Any) -> dict[str, Any]:
    return {
        name: table[name][:].to_list() if table.schema[name].is_ragged else table[name][:].tolist()
        for name in table.columns
    }


def write(path: Path, columns: dict[str, Any], mode: Any = "create", codec: Any = "raw") -> None:
    sizes = {} if mode == "append" else SIZES
    with shardstore.Writer(path, mode=mode, codec=codec, types=TYPES, **sizes) as writer:
        writer.append(columns)


@settings(max_examples=settings().max_examples // 2)
@given(st.lists(counts, min_size=2, max_size=4), st.sampled_from(CODECS), st.booleans())
def test_a_store_that_grew_is_the_one_written_at_once(pieces: list[int], codec: str, dumps: bool) -> None:
    total = sum(pieces)
    columns, ends = table(total), np.cumsum(pieces).tolist()
    if dumps:  # whole files of rows that are stored as they are
        columns = {name: columns[name] for name in ("x", "wide")}
    with TemporaryDirectory() as name:
        folder, start = Path(name), 0
        store = folder / "grown"
        opened: list[tuple[int, int, shardstore.Store, Any]] = []
        for number, stop in enumerate(ends):
            mode: Any = "append" if number else "create"
            if dumps:
                sources = {
                    key: save_dumps(folder / str(number), key, values[start:stop], [stop - start])
                    for key, values in columns.items()
                }
                sizes = {} if number else SIZES
                shardstore.ingest(sources, store, mode=mode, codec=codec, **sizes).close()
            else:
                write(store, part(columns, start, stop), mode, codec)
            start = stop
            now = shardstore.open(store, verify="on_read")
            assert len(now) == stop
            assert now.verify(deep=True).ok
            if number % 2:
                content(now)  # has all files mapped, and not only the manifest
            opened.append((now.generation, stop, now, pickle.loads(pickle.dumps(now))))
        if dumps:
            sources = {key: save_dumps(folder / "all", key, values, [total]) for key, values in columns.items()}
            shardstore.ingest(sources, folder / "one", codec=codec, **SIZES)
        else:
            write(folder / "one", columns, codec=codec)
        assert shard_files(store) == shard_files(folder / "one")
        for generation, rows, before, pickled in opened:
            then = content_of(part(columns, 0, rows))
            by_number = shardstore.open(store, generation=generation)
            for reader in (before, pickled, by_number):
                assert (len(reader), reader.generation) == (rows, generation)
                assert content(reader) == then
            batches = [batch["x"].tolist() for batch in by_number.batches(7)]
            assert batches == [columns["x"][i : min(i + 7, rows)].tolist() for i in range(0, rows, 7)]
            assert len(before.refresh()) == total
            assert content(before) == content_of(columns)


def content_of(columns: dict[str, Any]) -> dict[str, Any]:
    kinds = {"cat": 0, "dog": 1, "eel": 2}
    found = {name: [getattr(row, "tolist", lambda row=row: row)() for row in rows] for name, rows in columns.items()}
    if "kind" in found:
        found["kind"] = [kinds[name] for name in found["kind"]]
    return found


def test_many_appends_leave_no_more_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardstore.manifest.MAX_HISTORY", 50)
    x = np.arange(3 * 60, dtype="<i4")
    store = tmp_path / "s"
    write_x(store, x[:3])
    before = shardstore.open(store)
    for start in range(3, len(x), 3):
        write_x(store, x[start : start + 3], "append")
    write_x(tmp_path / "one", x)
    assert shard_files(store).keys() == shard_files(tmp_path / "one").keys()
    now = shardstore.open(store)
    assert np.array_equal(now["x"][:], x)
    assert np.array_equal(before["x"][:], x[:3])
    assert len(now.manifest.history) == 50
    oldest = now.manifest.history[0].until
    assert np.array_equal(shardstore.open(store, generation=oldest)["x"][:], x[: 3 * oldest])
    with pytest.raises(shardstore.FormatError, match="is not kept: the oldest is"):
        shardstore.open(store, generation=oldest - 1)


def write_x(path: Path, x: Any, mode: Any = "create") -> None:
    with shardstore.Writer(path, mode=mode, **(SIZES if mode == "create" else {})) as writer:
        writer.append({"x": x})


def test_generations_that_are_not_there(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(3))
    for generation in (0, -1, 2):
        with pytest.raises(shardstore.FormatError, match=f"there is no generation {generation}.*at generation 1"):
            shardstore.open(store, generation=generation)
    opened = shardstore.open(store)
    opened.add_column("y", np.arange(3))
    write_more = {"x": np.arange(2), "y": np.arange(2)}
    with shardstore.Writer(store, mode="append") as writer:
        writer.append(write_more)
    assert shardstore.open(store, generation=1).columns == ("x",)
    assert shardstore.open(store, generation=2).columns == ("x", "y")
    assert [len(shardstore.open(store, generation=g)) for g in (1, 2, 3)] == [3, 3, 5]
    opened.refresh().drop_column("x")
    with pytest.raises(shardstore.FormatError, match="no column of generation 1 is still there"):
        shardstore.open(store, generation=1)
    assert shardstore.open(store, generation=3).columns == ("y",)


def test_rows_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write(store, table(10))
    npy = write_npy(tmp_path / "more.npy", np.zeros((2, 2)))
    good = table(3)

    def append(columns: dict[str, Any], **options: Any) -> None:
        with shardstore.Writer(store, mode="append", **options) as writer:
            writer.append(good)
            writer.append(columns)

    def bad(name: str, values: Any) -> Any:
        return lambda: append({**good, name: values})

    schema = shardstore.SchemaError
    assert_refused(schema, bad("x", np.array([1.5, 2, 3])), store, "x", "1.5")
    assert_refused(schema, bad("x", np.array([1, 2, 2**40])), store, "x", 2**40)
    assert_refused(schema, bad("wide", np.zeros((3, 4), "f4")), store, "wide")
    assert_refused(schema, bad("kind", ["cat", "cow", "cat"]), store, "kind", "cow")
    assert_refused(schema, bad("text", [1, 2, 3]), store, "text")
    assert_refused(schema, bad("x", np.arange(4)), store, "number of rows")
    assert_refused(schema, lambda: append({"x": np.arange(3)}), store, "expected the columns x, wide")
    assert_refused(schema, lambda: append(good, codec="zstd"), store, "codec", "raw", "zstd")
    assert_refused(schema, lambda: append(good, codec={"typo": "zstd"}), store, "codec", "typo")
    assert_refused(schema, lambda: append(good, shard_bytes="much"), store, "much")
    assert_refused(schema, lambda: append(good, types={"typo": "utf8"}), store, "type", "typo")
    assert_refused(schema, lambda: shardstore.ingest(npy, store, mode="append"), store, "x, wide", "data")
    assert_refused(
        shardstore.DestinationError, lambda: shardstore.ingest(npy, tmp_path / "no", mode="append"), store, "no store"
    )
    assert len(shardstore.open(store)) == 10


def test_values_are_cast_to_the_columns_dtypes(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write(store, table(5))
    columns = table(7)
    cast = {**part(columns, 5, 7), "x": [5, 6], "wide": columns["wide"][5:].astype("f8"), "bags": [[5, 6], [6]]}
    columns["bags"][5:] = [np.array([5, 6]), np.array([6])]
    write(store, cast, "append")
    assert content(shardstore.open(store)) == content_of(columns)


def test_new_categories_where_they_are_asked_for(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with shardstore.Writer(store, types={"k": "categorical"}) as writer:
        writer.append({"k": ["b", "a"]})
    with shardstore.Writer(store, mode="append", types={"k": "categorical"}) as writer:
        writer.append({"k": ["a", "c", "b"]})
    opened = shardstore.open(store)
    assert (opened["k"][:].tolist(), opened.schema["k"].categories) == ([0, 1, 1, 2, 0], ("b", "a", "c"))


def test_nothing_appended_is_no_new_generation(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write(store, table(5))
    before = shard_files(store), (store / "zarr.json").read_bytes()
    write(store, table(0), "append")
    with shardstore.Writer(store, mode="append"):
        pass
    assert (shard_files(store), (store / "zarr.json").read_bytes()) == before


def test_statistics_are_of_all_rows(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(10))
    opened = shardstore.open(store)
    assert opened.stats["x"].maximum == 9
    write_x(store, np.arange(10, 20), "append")
    assert opened.stats["x"].maximum == 9
    assert opened.refresh().stats["x"].maximum == 19
    old = shardstore.open(store, generation=2)
    assert old.stats["x"].maximum == 9
    assert old.compute_stats()["x"].maximum == 9
    assert shardstore.open(store).stats["x"].maximum == 19


def test_damage_is_neither_healed_nor_hidden_by_an_append(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(11, dtype="i4"))
    path = store / "x/c/0"
    data = bytearray(path.read_bytes())
    data[2] ^= 1  # in the first chunk, which is copied
    path.write_bytes(data)
    write_x(store, np.arange(2), "append")
    (damage,) = shardstore.open(store).verify().damages
    assert (damage.file, damage.chunk, damage.rows) == ("x/c/0", 0, (0, 4))
    data = bytearray(path.read_bytes())
    data[12 * 4 + 1] ^= 1  # in the last chunk, which is written again
    path.write_bytes(data)
    before = shard_files(store)
    with pytest.raises(shardstore.CorruptionError, match="x/c/0, chunk 3"):
        write_x(store, np.arange(2), "append")
    assert shard_files(store) == before


@pytest.mark.parametrize("part", ["metadata_damages", "verify_shard", "range_damages", "content_damages"])
def test_an_append_during_a_verification_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Whenever it comes: before each of the things that are looked at."""
    store, columns = tmp_path / "s", table(12)
    write(store, {name: values[:5] for name, values in columns.items()})
    look, appended = getattr(shardstore.verify, part), []

    def append_first(*arguments: Any) -> Any:
        if not appended:
            appended.append(True)
            write(store, {name: values[5:] for name, values in columns.items()}, "append")
        return look(*arguments)

    monkeypatch.setattr(shardstore.verify, part, append_first)
    opened = shardstore.open(store)
    assert opened.verify(progress=False, deep=True).ok
    assert appended
    assert opened.refresh().verify(progress=False, deep=True).ok


def test_a_store_that_is_changed_all_the_time_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(3))
    look = shardstore.verify.verify_shard  # type: ignore[attr-defined]

    def append_first(*arguments: Any) -> Any:
        write_x(store, np.arange(3), "append")
        return look(*arguments)

    monkeypatch.setattr("shardstore.verify.verify_shard", append_first)
    (damage,) = shardstore.open(store).verify(progress=False).damages
    assert "changed each of 5 times" in damage.reason
    monkeypatch.undo()
    assert shardstore.open(store).verify(progress=False).ok


def test_statistics_of_an_older_generation_are_its_own(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(10))
    other = shardstore.open(store)
    shardstore.open(store).add_column("z", np.arange(10))
    for opened in (shardstore.open(store, generation=1), other):
        assert opened.stats["x"].maximum == 9
        assert (opened.generation, opened.columns) == (1, ("x",))


def test_a_store_behind_a_link_is_appended_to(tmp_path: Path) -> None:
    write_x(tmp_path / "s", np.arange(3))
    (tmp_path / "link").symlink_to("s")
    write_x(tmp_path / "link", np.arange(3, 5), "append")
    assert shardstore.open(tmp_path / "s")["x"][:].tolist() == list(range(5))
    assert (tmp_path / "link").is_symlink()


def test_what_fails_behind_the_commit_is_left_to_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is told that it failed would append the rows again."""
    store = tmp_path / "s"
    write_x(store, np.arange(3))

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    finish, calls = shardstore.changes.commits.finish_commit, []  # type: ignore[attr-defined]

    def finish_once(*arguments: Any) -> None:
        calls.append(True)
        if len(calls) == 2:  # behind the commit; the first one is for what an earlier writer has left
            full()
        finish(*arguments)

    monkeypatch.setattr("shardstore.changes.commits.finish_commit", finish_once)
    write_x(store, np.arange(3, 5), "append")
    monkeypatch.undo()
    assert "generation 2 is committed" in caplog.text
    assert (store / "x/c/.0.tail-2").exists()
    for _ in range(2):
        opened = shardstore.open(store)
        assert opened["x"][:].tolist() == list(range(5))
        assert opened.verify().ok
        opened.compute_stats()
    assert not (store / "x/c/.0.tail-2").exists()


def test_streams_go_on_with_the_rows_that_they_have(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(50))
    opened = shardstore.open(store)
    stream = opened.batches(8, shuffle=True, seed=3)
    expected = [batch["x"].tolist() for batch in opened.batches(8, shuffle=True, seed=3)]
    iterator: Iterator[Any] = iter(stream)
    found = [next(iterator)["x"].tolist()]
    state, pickled = stream.state_dict(), pickle.dumps(stream)
    write_x(store, np.arange(50, 90), "append")
    assert [*found, *(batch["x"].tolist() for batch in iterator)] == expected
    assert [batch["x"].tolist() for batch in pickle.loads(pickled)] == expected[1:]
    code = "import pickle, sys; print(sum(len(b['x']) for b in pickle.load(sys.stdin.buffer)))"
    worker = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert int(worker.stdout) == 50 - 8
    with pytest.raises(shardstore.StateError):
        shardstore.open(store).batches(8, shuffle=True, seed=3).load_state_dict(state)
    again = shardstore.open(store, generation=1).batches(8, shuffle=True, seed=3)
    again.load_state_dict(state)
    assert [batch["x"].tolist() for batch in again] == expected[1:]


def test_views_of_before_are_joined_with_those_of_after(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(5))
    before = shardstore.open(store)
    write_x(store, np.arange(5, 9), "append")
    before.refresh()
    assert before.rows(slice(3, 7))["x"][:].tolist() == [3, 4, 5, 6]


def test_another_store_is_not_taken_for_a_later_generation(tmp_path: Path) -> None:
    store = tmp_path / "s"
    write_x(store, np.arange(5))
    opened = shardstore.open(store)
    write_x(store, np.arange(5), "overwrite")
    with pytest.raises(shardstore.FormatError, match="replaced"):
        opened.refresh()


def test_a_store_that_is_overwritten_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory is open, and then empty before its manifest is read."""
    store = tmp_path / "s"
    write_x(store, np.arange(5))
    read, overwritten = shardstore.opened.read_manifest, []

    def overwrite_first(directory: Any) -> Any:
        if not overwritten:
            overwritten.append(True)
            write_x(store, np.arange(7), "overwrite")
        return read(directory)

    monkeypatch.setattr(shardstore.opened, "read_manifest", overwrite_first)
    assert shardstore.open(store)["x"][:].tolist() == list(range(7))
    assert overwritten


def test_appending_from_the_command_line(tmp_path: Path) -> None:
    paths = save_dumps(tmp_path, "part", np.arange(10), [4, 6])
    cli = "from shardstore.__main__ import main; main()"
    store = tmp_path / "s"
    run_python(cli, "ingest", paths[0], store)
    assert "10 rows" in run_python(cli, "ingest", "--append", paths[1], store)
    assert shardstore.open(store)["data"][:].tolist() == list(range(10))
    provenance = shardstore.open(store).manifest.provenance
    assert provenance["sources"]["names"] == [path.name for path in paths]
    done = subprocess.run(
        [sys.executable, "-m", "shardstore", "ingest", "--append", "--resume", str(paths[1]), str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: --append and --resume exclude each other\n")


def test_categories_from_files_go_on_with_those_of_the_store(tmp_path: Path) -> None:
    for number, names in enumerate((["b", "a", "b"], ["a", "c"])):
        np.save(tmp_path / f"{number}.npy", np.array(names))
    types: Any = {"data": "categorical"}
    shardstore.ingest(tmp_path / "0.npy", tmp_path / "s", types=types)
    store = shardstore.ingest(tmp_path / "1.npy", tmp_path / "s", types=types, mode="append")
    assert (store.schema["data"].categories, store["data"][:].tolist()) == (("b", "a", "c"), [0, 1, 0, 1, 2])
    np.save(tmp_path / "2.npy", np.array(["z"]))
    with pytest.raises(shardstore.SourceError, match="unknown category 'z'"):
        shardstore.ingest(tmp_path / "2.npy", tmp_path / "s", mode="append")


def test_nothing_is_removed_by_an_older_manifest(tmp_path: Path) -> None:
    """Somebody may put back a copy of zarr.json that is of before the last appends."""
    store = tmp_path / "s"
    write_x(store, np.arange(20))
    older = (store / "zarr.json").read_bytes()
    write_x(store, np.arange(20, 90), "append")
    latest, files = (store / "zarr.json").read_bytes(), shard_files(store)
    (store / "zarr.json").write_bytes(older)
    changes: Any = (
        lambda s: s.add_column("y", np.arange(20)),
        lambda s: s.vacuum(),
        lambda s: write_x(store, np.arange(3), "append"),
        lambda s: shardstore.repair(store),
    )
    for change in changes:
        with pytest.raises(shardstore.CorruptionError, match="of an earlier generation than they are"):
            change(shardstore.open(store))
        assert shard_files(store) == files
    assert not shardstore.open(store).verify().ok
    (store / "zarr.json").write_bytes(latest)
    assert shardstore.open(store)["x"][:].tolist() == list(range(90))
    assert shardstore.open(store).verify().ok


@pytest.mark.parametrize("generation", [True, 1.0, "1"])
def test_a_generation_is_a_number(tmp_path: Path, generation: Any) -> None:
    write_x(tmp_path / "s", np.arange(3))
    with pytest.raises(TypeError, match="generation is a"):
        shardstore.open(tmp_path / "s", generation=generation)
