"""`repair` makes a store whole again where it can be proven how it was, and loses nothing where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CODECS, compressible_array, edit_group, flip_bit, random_rows, save_dumps

import shardstore
from shardstore.changes.writelock import store_lock
from shardstore.export import export_npy
from shardstore.repairing.repairs import RepairReport
from shardstore.shardfile import footer_nbytes

ROWS = 300


def columns() -> dict[str, Any]:
    return {
        "x": compressible_array("int32", (ROWS, 3)),
        "y": np.arange(ROWS),
        "tokens": random_rows((np.arange(ROWS) % 7).tolist(), "uint16"),
        "text": [f"text {row}" for row in range(ROWS)],
        "label": [("cat", "dog", "owl")[row % 3] for row in range(ROWS)],
        "day": np.datetime64("2020-01-01") + np.arange(ROWS),
    }


def write(path: Path, codec: str = "raw") -> Path:
    types = {"label": shardstore.Categorical(["cat", "dog", "owl"])}
    # Shards of 128 rows and chunks of 16; the last shard and its last chunk are short.
    with shardstore.Writer(path, codec=codec, types=types, shard_bytes=2048, chunk_bytes=256) as writer:
        writer.append(columns())
    return path


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def mend(path: Path, *args: Any, **options: Any) -> RepairReport:
    return shardstore.repair(path, *args, progress=False, **options)


def aside_of(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}.damaged-*"))


@pytest.fixture(scope="module", params=CODECS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "s", request.param)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


def slots(path: Path, name: str) -> int:
    with shardstore.open(path) as opened:
        return opened.manifest.columns[name].data.layout.slots


def test_nothing_is_done_to_an_undamaged_store(store: Path) -> None:
    before = tree(store)
    report = mend(store)
    assert report.ok
    assert (report.repairs, report.found, report.left, report.set_aside) == ((), (), (), None)
    assert tree(store) == before
    assert not aside_of(store)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), shard=st.integers(0, 2))
@settings(max_examples=15)
def test_a_damaged_footer_is_made_again(whole: Path, place: float, bit: int, shard: int, tmp_path: Path) -> None:
    store = Path(shutil.copytree(whole, tmp_path / "s", dirs_exist_ok=True))
    file = store / f"x/c/{shard}/0"
    size = footer_nbytes(slots(store, "x"))
    flip_bit(file, file.stat().st_size - size + int(place * size), bit)
    damaged = file.read_bytes()
    report = mend(store)
    assert report.ok
    assert [repair.file for repair in report.repairs] == [f"x/c/{shard}/0"]
    assert tree(store) == tree(whole)
    assert report.set_aside is not None
    assert (report.set_aside / f"x/c/{shard}/0").read_bytes() == damaged
    shutil.rmtree(report.set_aside)


CUTS: dict[str, Callable[[int, int], int]] = {
    "within the index": lambda size, footer: size - 30,
    "within the checksums": lambda size, footer: size - footer + 2,
    "before the footer": lambda size, footer: size - footer,
    "longer": lambda size, footer: size + 5000,
}


@pytest.mark.parametrize("name", ["x", "tokens/values", "tokens/ranges"])
@pytest.mark.parametrize("what", CUTS)
def test_a_footer_that_was_cut_off_is_made_again(whole: Path, store: Path, name: str, what: str) -> None:
    with shardstore.open(store) as opened:
        (layout,) = [array.layout for array in opened.manifest.arrays if array.layout.field.name == name]
    file = store / layout.shard_key(0)
    os.truncate(file, CUTS[what](file.stat().st_size, footer_nbytes(layout.slots)))
    assert mend(store).ok
    assert tree(store) == tree(whole)


def test_padding_and_what_is_cut_off_of_it_is_written_again(tmp_path: Path) -> None:
    path = write(tmp_path / "s")
    before = tree(path)
    flip_bit(path / "x/c/2/0", 44 * 12 + 3)  # behind row 299
    assert mend(path).ok
    os.truncate(path / "x/c/2/0", 44 * 12)
    assert mend(path).ok
    assert tree(path) == before


def test_chunks_of_a_file_with_a_new_footer_can_be_read_again(store: Path) -> None:
    """A chunk and the index are damaged: the checksums are known, and that the chunk is not what was written."""
    file = store / "x/c/1/0"
    flip_bit(file, 20)
    flip_bit(file, file.stat().st_size - 10)
    report = mend(store)
    assert [(damage.file, damage.chunk, damage.rows) for damage in report.left] == [("x/c/1/0", 0, (128, 144))]
    with shardstore.open(store, verify="on_read") as opened:
        assert np.array_equal(opened["x"][144:256], columns()["x"][144:256])
        with pytest.raises(shardstore.CorruptionError, match=r"rows 128 to 143"):
            opened["x"][130]


def test_a_damaged_chunk_stays_where_it_is(store: Path) -> None:
    flip_bit(store / "y/c/0", 3)
    before = tree(store)
    report = mend(store)
    assert not report.ok
    assert (report.repairs, report.set_aside, report.left) == ((), None, report.found)
    assert tree(store) == before


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "folder"])
def test_what_cannot_be_read_is_set_aside(store: Path, damage: str) -> None:
    file = store / "x/c/1/0"
    half = file.read_bytes()[:500]
    if damage in ("missing", "folder"):
        file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        os.truncate(file, 0 if damage == "empty" else len(half))
    report = mend(store)
    assert [(damage.file, damage.rows) for damage in report.left] == [("x/c/1/0", (128, 256))]
    assert not file.exists()
    if damage == "half":
        (aside,) = aside_of(store)
        assert (aside / "x/c/1/0").read_bytes() == half
    with shardstore.open(store) as opened:
        assert np.array_equal(opened["y"][:], np.arange(ROWS))
        with pytest.raises(shardstore.CorruptionError, match="x/c/1/0: the shard file is missing"):
            opened["x"][130]


@pytest.mark.parametrize("name", ["x", "tokens", "tokens/values", "tokens/ranges"])
@pytest.mark.parametrize("content", [None, b"{}", b"\xff"])
def test_metadata_is_written_anew(whole: Path, store: Path, name: str, content: bytes | None) -> None:
    file = store / name / "zarr.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    report = mend(store)
    assert report.ok
    assert [str(repair) for repair in report.repairs] == [f"{name}/zarr.json: written anew from the manifest"]
    assert tree(store) == tree(whole)


def test_what_follows_from_the_manifest_is_written_anew(whole: Path, store: Path) -> None:
    edit_group(store, lambda document: document["consolidated_metadata"]["metadata"].pop("y"))
    report = mend(store)
    assert report.ok
    assert report.found[0].file == "zarr.json"
    assert tree(store) == tree(whole)


def test_a_manifest_in_damaged_json_is_found(whole: Path, store: Path) -> None:
    file = store / "zarr.json"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"consolidated_metadata":{', b'"consolidated_metadata":\xff'))
    assert mend(store).ok
    assert tree(store) == tree(whole)


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped"])
def test_a_lost_manifest_is_made_again_only_on_demand(store: Path, damage: str) -> None:
    file = store / "zarr.json"
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        flip_bit(file, file.read_bytes().index(b'"generation":') + 14, 1)
    with pytest.raises(shardstore.CorruptionError, match=r"manifest is lost.*--rebuild-manifest"):
        mend(store)
    report = mend(store, rebuild_manifest=True)
    assert report.ok
    assert "lost are the order of the columns" in str(report.repairs[0])
    expected = columns()
    with shardstore.open(store) as opened:
        assert opened.columns == ("day", "label", "text", "tokens", "x", "y")
        assert np.array_equal(opened["x"][:], expected["x"])
        assert np.array_equal(opened["day"][:], expected["day"].astype("datetime64[D]").view(np.int64))
        assert np.array_equal(opened["label"][:], np.arange(ROWS) % 3)
        assert [row.tobytes().decode() for row in opened["text"][:]] == expected["text"]
        assert all(map(np.array_equal, opened["tokens"][:], expected["tokens"]))


@pytest.mark.parametrize("file", ["x/c/1/0", "x/zarr.json", "tokens/values/c/0"])
def test_no_manifest_is_made_for_damaged_files(store: Path, file: str) -> None:
    (store / "zarr.json").unlink()
    flip_bit(store / file, 10)
    before = tree(store)
    with pytest.raises(shardstore.CorruptionError, match=file.replace("zarr.json", "")):
        mend(store, rebuild_manifest=True)
    assert tree(store) == before


def test_unfinished_files_are_removed(whole: Path, store: Path) -> None:
    for name in (".zarr.json.partial-0123abcd", "x/c/0/.0.partial", ".repair/x/c/0/0"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"x")
    assert mend(store).ok
    assert tree(store) == tree(whole)


def test_columns_that_the_manifest_does_not_have_are_set_aside(whole: Path, store: Path) -> None:
    """Unless somebody may go on with them, or they are no columns."""
    shutil.copytree(store / "x", store / "dropped")
    shutil.copytree(store / "x", store / "begun")
    (store / "begun/journal.json").write_text("{}")
    (store / "mine").mkdir()
    (store / "mine/notes.txt").write_text("keep")
    report = mend(store)
    assert report.ok
    assert [repair.file for repair in report.repairs] == ["dropped"]
    assert report.set_aside is not None
    assert tree(report.set_aside / "dropped") == tree(whole / "x")
    assert (store / "begun").exists()
    assert (store / "mine/notes.txt").exists()


def test_a_store_that_is_being_changed_is_left_alone(store: Path) -> None:
    flip_bit(store / "x/zarr.json", 10)
    before = tree(store)
    with store_lock(store), pytest.raises(shardstore.LockedError):
        mend(store)
    assert tree(store) == before


def test_a_directory_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(shardstore.FormatError, match="not a shardstore store"):
        mend(tmp_path)
    with pytest.raises(shardstore.FormatError, match="no such directory"):
        mend(tmp_path / "nothing")


def append_unfinished(path: Path) -> dict[str, bytes]:
    """Append rows, and put all back that is done behind the commit; return what the finished store has."""
    before = tree(path)
    with shardstore.Writer(path, mode="append") as writer:
        writer.append({name: values[:50] for name, values in columns().items()})
    finished = tree(path)
    with shardstore.open(path) as store:
        for entry in store.manifest.arrays:
            if entry.successor is None:
                continue
            successor, key = entry.names(entry.successor.shard)
            (path / key).rename(path / successor)
            (path / key).write_bytes(before[key])
    for name in before:
        if name.endswith("/zarr.json"):
            (path / name).write_bytes(before[name])
    return finished


def test_an_append_is_finished(store: Path) -> None:
    finished = append_unfinished(store)
    report = mend(store)
    assert report.ok
    assert report.set_aside is None
    assert tree(store) == finished


def test_a_file_whose_successor_is_damaged_is_kept(store: Path) -> None:
    old = (store / "x/c/2/0").read_bytes()
    append_unfinished(store)
    os.truncate(store / "x/c/2/.0.tail-2", 60)
    report = mend(store)
    assert [(damage.file, damage.rows) for damage in report.left] == [("x/c/2/0", (256, 350))]
    assert report.set_aside is not None
    assert (report.set_aside / "x/c/2/0").read_bytes() == old


def test_no_manifest_is_made_of_metadata_that_is_older_than_the_rows(store: Path) -> None:
    append_unfinished(store)
    (store / "zarr.json").unlink()
    before = tree(store)
    with pytest.raises(shardstore.CorruptionError, match=r"\.tail-2: of rows that were being appended"):
        mend(store, rebuild_manifest=True)
    assert tree(store) == before


def test_a_successor_of_no_commit_is_set_aside(whole: Path, store: Path) -> None:
    for name in ("x/c/2/.0.tail-9", "mine/.x.partial", "mine/notes.txt"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_bytes(b"rows")
    report = mend(store)
    assert report.ok
    assert [repair.file for repair in report.repairs] == ["x/c/2/.0.tail-9"]
    assert tree(store) == {**tree(whole), "mine/.x.partial": b"rows", "mine/notes.txt": b"rows"}


# From the files that the store was made of


def dumps(folder: Path) -> Path:
    """Parallel files of columns of every kind, in three parts."""
    lengths = [100, 150, 50]
    data = columns()
    save_dumps(folder, "x", data["x"], lengths)
    save_dumps(folder, "y", data["y"], lengths)
    return folder


def destroy(path: Path, *keys: str) -> None:
    """Lose a file, cut one short, and damage one, in turn."""
    for i, key in enumerate(keys):
        if i % 3 == 0:
            (path / key).unlink()
        elif i % 3 == 1:
            os.truncate(path / key, 100)
        else:
            flip_bit(path / key, 50)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("way", ["folder", "files", "named"])
def test_shards_are_made_again_from_parallel_files(tmp_path: Path, codec: str, way: str) -> None:
    folder = dumps(tmp_path / "dumps")
    named = {"x": str(folder / "x-*.npy"), "y": str(folder / "y-*.npy")}
    path = tmp_path / "s"
    shardstore.ingest(named, path, codec=codec, shard_bytes=2048, chunk_bytes=256).close()
    before = tree(path)
    destroy(path, "x/c/0/0", "x/c/1/0", "y/c/1")
    moved = Path(shutil.move(folder, tmp_path / "elsewhere/deep"))
    sources: Any = {
        "folder": tmp_path / "elsewhere",
        "files": sorted(moved.iterdir(), reverse=True),
        "named": {name: str(moved / f"{name}-*.npy") for name in named},
    }[way]
    report = mend(path, sources)
    assert report.ok, report
    assert sorted(repair.file for repair in report.repairs) == ["x/c/0/0", "x/c/1/0", "y/c/1"]
    assert tree(path) == before


@pytest.mark.parametrize("split", ["x=:-1,y=-1@int64", "y=-1,x=:-1"])
@pytest.mark.parametrize("says", [True, False])
def test_shards_are_made_again_from_files_that_were_split(tmp_path: Path, split: str, says: bool) -> None:
    array = np.hstack([compressible_array("float32", (ROWS, 5)), np.arange(ROWS, dtype=np.float32)[:, None]])
    files = save_dumps(tmp_path / "dumps", "part", array, [200, 100])
    shardstore.ingest(files, tmp_path / "s", split=split, shard_bytes=2048, chunk_bytes=256).close()
    before = tree(tmp_path / "s")
    destroy(tmp_path / "s", "x/c/0/0", "y/c/0")
    if not says and split.startswith("y"):  # not in the order of the columns
        assert not mend(tmp_path / "s", tmp_path / "dumps").ok
    assert mend(tmp_path / "s", tmp_path / "dumps", split=split if says or split.startswith("y") else None).ok
    assert tree(tmp_path / "s") == before


def test_shards_of_every_kind_are_made_again_from_an_export(tmp_path: Path) -> None:
    """Also from what an export wrote: of text and categories all of a column is made again."""
    write(tmp_path / "first")
    with shardstore.open(tmp_path / "first") as first:
        export_npy(first, tmp_path / "dumps")
    path = tmp_path / "s"
    shardstore.ingest(tmp_path / "dumps", path, codec={"text": "zstd"}, shard_bytes=2048, chunk_bytes=256).close()
    before = tree(path)
    for file in sorted(path.rglob("c/*"))[::2]:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert mend(path, tmp_path / "dumps").ok
    assert tree(path) == before


def test_shards_are_made_again_from_archives_and_casts(tmp_path: Path) -> None:
    for part in range(2):
        rows = np.arange(part * 150, (part + 1) * 150)
        np.savez(tmp_path / f"part-{part}.npz", a=rows, b=rows.astype(np.float32), bits=rows.astype(np.uint16))
    types = {"a": "int32", "bits": "bfloat16"}
    path = tmp_path / "s"
    shardstore.ingest(str(tmp_path / "*.npz"), path, types=types, shard_bytes=1024, chunk_bytes=128).close()
    before = tree(path)
    destroy(path, "a/c/0", "bits/c/0", "b/c/0")
    assert mend(path, tmp_path).ok
    assert tree(path) == before


def test_files_of_other_content_restore_nothing(tmp_path: Path) -> None:
    folder = dumps(tmp_path / "dumps")
    path = tmp_path / "s"
    shardstore.ingest({"y": str(folder / "y-*.npy")}, path, shard_bytes=1024, chunk_bytes=128).close()
    destroy(path, "y/c/0")
    array = np.load(folder / "y-0.npy")
    array[7] += 1
    np.save(folder / "y-0.npy", array)
    report = mend(path, folder)
    assert [damage.file for damage in report.left] == ["y/c/0"]
    assert report.repairs == ()
    assert "y-0.npy (928 bytes)" in report.origin
    with pytest.raises(shardstore.ShardStoreError):
        mend(path, tmp_path / "nothing")


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    folder = dumps(tmp_path / "dumps")
    path = tmp_path / "s"
    named = {"x": str(folder / "x-*.npy"), "y": str(folder / "y-*.npy")}
    shardstore.ingest(named, path, shard_bytes=2048, chunk_bytes=256).close()
    destroy(path, "x/c/0/0")
    (path / "y/zarr.json").unlink()

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shardstore", "repair", str(path), *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 1
    assert "repaired: y/zarr.json: written anew from the manifest" in done.stdout
    assert "damaged: x/c/0/0 (rows 0 to 127): the shard file is missing" in done.stderr
    assert "give --from with the files of the ingest: the rows came from x-0.npy (1,328 bytes)" in done.stderr
    done = run("--from", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["repairs"] == [{"file": "x/c/0/0", "what": "made again from the sources"}]
    assert run().stdout == "ok: nothing was damaged\n"
