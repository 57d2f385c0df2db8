"""Stores and dumps made to do harm: what they claim is not believed, where they lead is not followed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
from dumps import tree
from stores import edit_manifest, write_store

import shardstore
from shardstore.checksum import crc32c
from shardstore.codecs import Codec
from shardstore.errors import CorruptionError, SourceError
from shardstore.export import export_npy
from shardstore.schema import MOST_CHUNK_BYTES, MOST_SLOTS, Field, choose_shard_rows, plan_layouts
from shardstore.shardfile import Footer, footer_nbytes

# What a manifest claims


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 10 rows: a raw column of 8 bytes a row, a compressed one, and one whose rows have no bytes."""
    columns = {"x": np.arange(10), "z": np.arange(10), "e": np.empty((10, 0))}
    with shardstore.Writer(tmp_path / "store", codec={"z": "zstd"}, shard_bytes=1 << 16, chunk_bytes=64) as writer:
        writer.append(columns)
    return tmp_path / "store"


def column(body: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in body["columns"] if found["name"] == name)


def refusal(path: Path) -> str:
    with pytest.raises(CorruptionError) as caught:
        shardstore.open(path)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def overflowing_raw(body: dict[str, Any]) -> None:
    # 4 chunks of 2^62 bytes are 2^64 bytes, which is 0 to integers of 64 bits.
    body.update(rows=1 << 51, shard_rows=1 << 51)
    entry = column(body, "x")
    entry.update(chunk_rows=1 << 49, row_shape=[1 << 10], shard_nbytes=[footer_nbytes(4)], footer_crc32c=[0])
    body["columns"] = [entry]


CLAIMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "more rows than there are numbers": (lambda body: body.update(rows=1 << 62), "below 2^53"),
    "shards of more": (lambda body: body.update(shard_rows=1 << 62), "below 2^53"),
    "numbers of 4,000 digits": (lambda body: body.update(rows=10**4000), "below 2^53"),
    "rows and shards that need no more files": (lambda body: body.update(rows=1 << 52, shard_rows=1 << 52), "at most"),
    "sizes that overflow": (overflowing_raw, "chunks of 'x'"),
    "a footer of many chunks": (lambda body: body.update(shard_rows=1 << 40), "at most 16,777,216"),
    "a chunk that no file can hold": (lambda body: column(body, "z").update(row_shape=[1 << 20]), "too small"),
    "chunks of many rows": (lambda body: column(body, "z").update(row_shape=[1 << 40]), "at most 1,073,741,824"),
    "rows without bytes that are too long": (
        lambda body: column(body, "e").update(row_shape=[0, 1 << 60]),
        "more than an array can have",
    ),
    "more axes than arrays have": (lambda body: column(body, "e").update(row_shape=[0] * 64), "at most 63"),
    "an axis of half": (lambda body: column(body, "e").update(row_shape=[0, 0.5]), "row_shape"),
    "an axis that is true": (lambda body: column(body, "e").update(row_shape=[0, True]), "row_shape"),
    "sizes below 0": (lambda body: column(body, "z").update(shard_nbytes=[-1]), "shard_nbytes"),
    "sizes that are text": (lambda body: column(body, "z").update(shard_nbytes=["9"]), "shard_nbytes"),
    "checksums of more bits": (lambda body: column(body, "z").update(footer_crc32c=[1 << 32]), "footer_crc32c"),
    "a megabyte in the place of a number": (lambda body: body.update(rows="9" * 1_000_000), "rows is '999"),
    "an identity that is a document": (lambda body: body.update(store_id="\x1b[2J"), "expected a UUID"),
    "names that differ in case": (
        lambda body: body["columns"].append({**column(body, "e"), "name": "X"}),
        "named twice",
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_manifest_claims_is_held_against_its_files(store: Path, claim: str) -> None:
    change, reason = CLAIMS[claim]
    edit_manifest(store, change)
    assert reason in refusal(store)


@pytest.mark.parametrize("name", ["/tmp/x", "..", "../x", "x/../../y", "x\\..\\y", "x\0", ".", "", "c:x", "x\n"])
def test_a_column_cannot_be_named_out_of_the_store(store: Path, name: str) -> None:
    edit_manifest(store, lambda body: column(body, "x").update(name=name))
    assert "bad column name" in refusal(store)


@pytest.mark.parametrize("codec", [3, None, ["zstd"], "zstd:" + "9" * 10_000, "zstd:\u0663", "zstd:03"])
def test_codecs_that_are_none(store: Path, codec: Any) -> None:
    edit_manifest(store, lambda body: column(body, "z").update(codec=codec))
    with pytest.raises(shardstore.FormatError, match="cannot read") as caught:
        shardstore.open(store)
    assert len(str(caught.value)) < 1000


def test_metadata_that_is_nested_without_end(store: Path) -> None:
    original = (store / "zarr.json").read_bytes()
    for depth in (*range(880, 1000, 3), 100_000):
        deep = b"[" * depth + b"]" * depth
        (store / "zarr.json").write_bytes(original.replace(b'"provenance":{', b'"provenance":{"deep":%s,' % deep))
        with pytest.raises(CorruptionError):
            shardstore.open(store)


def test_writers_keep_to_what_readers_believe() -> None:
    field = Field.of("x", np.dtype("u1"), ())
    for chunk_bytes in (1, "4GiB"):
        for kind in ("fixed", "ragged"):
            spec = Field.of("x", field.dtype, (), kind)  # type: ignore[arg-type]
            layout = plan_layouts([spec], "zstd", shard_bytes="2048GiB", chunk_bytes=chunk_bytes)["x"].data
            assert layout.slots <= MOST_SLOTS
            assert layout.chunk_nbytes <= MOST_CHUNK_BYTES
    assert plan_layouts([field], "raw", shard_bytes=10**30)["x"].data.shard_rows < 1 << 53
    assert choose_shard_rows(1, 1 << 28) == 1 << 28


# Chunks and footers


def zstd_frame(nbytes: int) -> bytes:
    """Return a frame that says it has so many bytes, and has 100."""
    frame = bytes(numcodecs.Zstd(checksum=True).encode(bytes(100)))
    assert frame[4] >> 6 == 0
    assert frame[4] & 0x20
    return frame[:4] + bytes([frame[4] | 0xC0]) + nbytes.to_bytes(8, "little") + frame[6:]


@pytest.mark.parametrize("claim", [0, 99, 101, 1 << 40, (1 << 64) - 3])
def test_a_chunk_that_claims_another_size_is_not_decoded(claim: int) -> None:
    out = np.zeros(100, np.uint8)
    with pytest.raises(ValueError, match=r"holds .* bytes, expected 100"):
        Codec.parse("zstd").decode(zstd_frame(claim), 100, out)
    buffer = bytearray(numcodecs.Blosc("lz4").encode(bytes(100)))
    buffer[4:8] = struct.pack("<I", claim & 0xFFFFFFFF)
    with pytest.raises(ValueError, match=r"holds .* bytes, expected 100"):
        Codec.parse("blosc:lz4").decode(bytes(buffer) + crc32c(bytes(buffer)).to_bytes(4, "little"), 100, out)


def test_a_blosc_buffer_that_claims_to_be_longer_is_not_read() -> None:
    buffer = bytearray(numcodecs.Blosc("lz4").encode(np.arange(25, dtype="i4").tobytes()))
    buffer[12:16] = struct.pack("<I", 1 << 30)
    with pytest.raises(ValueError, match="does not say"):
        Codec.parse("blosc:lz4").decode(
            bytes(buffer) + crc32c(bytes(buffer)).to_bytes(4, "little"), 100, np.zeros(100, np.uint8)
        )


def test_a_frame_that_decoders_skip_shows_nothing_of_the_memory() -> None:
    frame = b"\x50\x2a\x4d\x18" + struct.pack("<I", 100) + bytes(100)
    with pytest.raises(ValueError, match="does not say"):
        Codec.parse("zstd").decode(frame, 0, np.zeros(0, np.uint8))


def test_chunks_that_would_begin_again_at_byte_0() -> None:
    sizes = np.array([2**64 - 10, 110], np.uint64)
    index = np.stack([np.array([0, 2**64 - 10], np.uint64), sizes], axis=1).tobytes()
    data = bytes(8) + index + crc32c(index).to_bytes(4, "little")
    with pytest.raises(CorruptionError, match="back to back"):
        Footer.from_bytes(data, 2, 2, "here")


def test_rows_that_all_claim_all_items(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "store", types={"r": "ragged"}) as writer:
        writer.append({"r": [np.arange(100)] * 1000})
    with (tmp_path / "store/r/ranges/c/0/0").open("r+b") as file:
        file.write(np.tile(np.array([0, 100_000]), (1000, 1)).tobytes())
    with shardstore.open(tmp_path / "store") as store:
        assert len(store["r"][[7, 7, 7]].values) == 300_000  # as often as it was asked for
        with pytest.raises(CorruptionError, match="overlap"):
            store["r"][[1, 2]]


# Where a store leads


def link(path: Path, elsewhere: Path) -> None:
    """Put a link in the place of a file or folder, which itself goes elsewhere."""
    path.rename(elsewhere)
    path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())


def pipe(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    os.mkfifo(path)


def device(path: Path, elsewhere: Path) -> None:
    """Put a link to an endless device there: making a device of its own takes a privilege."""
    path.rename(elsewhere)
    path.symlink_to("/dev/zero")


def folder(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.mkdir()


posix = pytest.mark.skipif(os.name == "nt", reason="no such files on Windows")


@posix
@pytest.mark.parametrize("name", ["x", "x/c", "x/c/0", "z", "z/c/0", "r/values", "r/ranges/c", "r/values/c/0"])
@pytest.mark.parametrize("replace", [link, pipe, device, folder])
@pytest.mark.parametrize("verify", ["off", "on_read"])
def test_a_file_of_a_store_is_a_file_in_it(tmp_path: Path, name: str, replace: Any, verify: Any) -> None:
    path = tmp_path / "store"
    with shardstore.Writer(path, codec={"z": "zstd"}) as writer:
        writer.append({"x": np.arange(10), "z": np.arange(10), "r": [np.arange(n) for n in range(10)]})
    replace(path / name, tmp_path / "elsewhere")
    with shardstore.open(path, verify=verify) as store:
        column = name.split("/")[0]
        for read in (lambda: store[column][3:5], lambda: store[column][[1, 4]]):
            with pytest.raises(CorruptionError, match=r"symbolic link|pipe|directory|missing"):
                read()
        damages = store.verify(progress=False).damages
        assert {damage.file.split("/")[0] for damage in damages} == {column}
        with pytest.raises(CorruptionError):
            store.rename_column(column, "other")
    shutil.rmtree(path) if not (path / name).is_symlink() else (path / name).unlink()
    assert (tmp_path / "elsewhere").exists()


@posix
@pytest.mark.parametrize("replace", [link, pipe, device, folder])
def test_metadata_is_a_file_in_the_store(store: Path, tmp_path: Path, replace: Any) -> None:
    replace(store / "x/zarr.json", tmp_path / "elsewhere")
    with shardstore.open(store) as opened:
        [damage] = opened.verify(progress=False).damages
    assert damage.file == "x/zarr.json"
    replace(store / "zarr.json", tmp_path / "manifest")
    with pytest.raises(shardstore.FormatError, match=r"its zarr\.json is a (symbolic link|pipe|directory)"):
        shardstore.open(store)


@posix
def test_the_store_itself_may_be_reached_by_links(store: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "name").symlink_to(tmp_path / "disk/store", target_is_directory=True)
    with shardstore.open(tmp_path / "name") as opened:
        assert opened["x"][3] == 3
        assert opened.verify(progress=False).ok
        opened.add_column("y", np.arange(10))
    assert shardstore.open(store)["y"][9] == 9


@posix
def test_dropping_a_column_touches_nothing_elsewhere(store: Path, tmp_path: Path) -> None:
    (store / "x").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/journal.json").write_text("mine")
    (store / "x").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = tree(tmp_path / "elsewhere")
    with shardstore.open(store) as opened:
        opened.drop_column("x")
        opened.add_column("x", np.arange(10))
    assert tree(tmp_path / "elsewhere") == before
    assert not (store / "x").is_symlink()
    assert shardstore.open(store).verify(progress=False).ok


def interrupted(batch: dict[str, Any]) -> Any:
    if batch["x"][0] >= 8:
        raise KeyboardInterrupt
    return batch["x"]


@posix
def test_a_column_is_not_gone_on_with_through_links(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store", {"x": np.arange(40)}, shard_bytes=64)

    def add(function: Any) -> None:
        with shardstore.open(path) as store:
            store.add_column("y", function, columns="x", batch_size=8, fingerprint="same", shard_bytes=64)

    with pytest.raises(KeyboardInterrupt):
        add(interrupted)
    assert (path / "y/journal.json").exists()
    (path / "y/c").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/3").write_text("mine")
    (path / "y/c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    before = tree(tmp_path / "elsewhere")
    add(lambda batch: batch["x"])
    assert tree(tmp_path / "elsewhere") == before
    with shardstore.open(path) as store:
        assert store["y"][:].tolist() == list(range(40))


@posix
def test_a_folder_that_is_a_link_is_not_taken_for_a_journal(store: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/journal.json").write_text("mine")
    (store / "y").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with shardstore.open(store) as opened, pytest.raises(shardstore.DestinationError, match="in the way"):
        opened.add_column("y", lambda batch: batch["x"], columns="x", fingerprint="f")
    assert tree(tmp_path / "elsewhere") == {"journal.json": b"mine"}


def test_metadata_of_gigabytes_is_not_read(store: Path) -> None:
    with (store / "zarr.json").open("r+b") as file:
        file.truncate(10 << 30)  # which takes no space
    with pytest.raises(shardstore.FormatError, match="10,737,418,240 bytes, more than"):
        shardstore.open(store)


# Files that are made


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_files_get_the_modes_that_the_user_wants(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        np.save(tmp_path / "dump.npy", np.arange(20))
        for mode in ("create", "overwrite"):
            shardstore.ingest(tmp_path / "dump.npy", tmp_path / "deep/er/store", mode=mode, progress=False)
        with shardstore.open(tmp_path / "deep/er/store") as store:
            store.add_column("y", lambda batch: batch["data"], columns="data", batch_size=3, shard_bytes=32)
            store.add_column("t", [str(n) for n in range(20)])
            store.rename_column("t", "text")
            store.compute_stats()
            export_npy(store, tmp_path / "export", progress=False)
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.name != "dump.npy"]
    assert len(made) > 20
    wrong = [
        f"{path} {stat.S_IMODE(path.stat().st_mode):o}"
        for path in made
        if stat.S_IMODE(path.stat().st_mode) != (0o777 if path.is_dir() else 0o666) & ~umask
    ]
    assert wrong == []


def test_nothing_is_unpickled() -> None:
    root = Path(shardstore.__file__).parent
    words = "pickle|marshal|shelve|dill|joblib|eval|exec|__import__"
    forbidden = re.compile(rf"\b({words})\b[.(]|\bnp\.load\(|allow_pickle")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if forbidden.search(line)
    ]
    # What a user's function raised in a process of its own goes back to the one that asked.
    assert found == ["pipeline/transforming.py: pickle.loads(pickle.dumps(failed.error))"]


# Sources


def archive(path: Path, header: dict[str, Any], method: int, data: bytes = b"") -> Path:
    """Write an archive with one array, whose header says what it wants."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", stream.getvalue() + data)
    return path


@pytest.mark.parametrize("shape", [(1 << 50,), (1, 1 << 50), (3, 1)])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_claims_more_rows(tmp_path: Path, shape: tuple[int, ...], fortran: bool, method: int) -> None:
    header = {"descr": "<f4", "fortran_order": fortran, "shape": shape}
    path = archive(tmp_path / "dump.npz", header, method, bytes(8))
    with pytest.raises(SourceError, match=r"damaged \.npz member: expected"):
        shardstore.ingest(path, tmp_path / "store", progress=False)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_archive_claims_the_same(tmp_path: Path, method: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (1, 1 << 28)}
    data = bytearray(archive(tmp_path / "dump.npz", header, method, bytes(8)).read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 128 + (1 << 30))
    (tmp_path / "dump.npz").write_bytes(data)
    with pytest.raises(SourceError, match=r"damaged \.npz member"):
        shardstore.ingest(tmp_path / "dump.npz", tmp_path / "store", progress=False)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_compresses_very_well_is_no_claim(tmp_path: Path, method: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (1000, 5000)}
    path = archive(tmp_path / "dump.npz", header, method, bytes(20_000_000))
    shardstore.ingest(path, tmp_path / "store", progress=False)
    assert not shardstore.open(tmp_path / "store")["x"][:].any()


@posix
@pytest.mark.parametrize("name", ["dump.npy", "dump.npz"])
def test_pipes_are_no_dumps(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for source in (tmp_path / name, tmp_path, {"x": tmp_path / name}):
        with pytest.raises(SourceError, match="regular file"):
            shardstore.ingest(source, tmp_path / "store", progress=False)
    for read in (shardstore.read_text, shardstore.read_files):
        with pytest.raises(SourceError, match="regular file"):
            list(read(tmp_path / name))
    with pytest.raises(SourceError, match="regular file"):
        list(shardstore.read_text("/dev/zero", per="line"))


@posix
def test_an_index_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    os.mkfifo(tmp_path / "columns.json")
    with pytest.raises(SourceError, match=r"columns\.json: expected a file"):
        shardstore.ingest(tmp_path, tmp_path / "store", progress=False)


@pytest.mark.parametrize("name", ["../x.npy", "/etc/passwd", "..", "", "a/b.npy", "x\0", 3, None])
def test_an_index_names_files_beside_it(tmp_path: Path, name: Any) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    column = {"name": "x", "kind": "fixed", "dtype": "int64", "files": {"array": name}}
    (tmp_path / "columns.json").write_text(json.dumps({"shardstore_export": 1, "columns": [column]}))
    with pytest.raises(SourceError, match="damaged index"):
        shardstore.ingest(tmp_path, tmp_path / "store", progress=False)
