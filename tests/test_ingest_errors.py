"""Bad input: one clear line that names what is wrong, and nothing left at the destination or beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import (
    assert_refused,
    number_in,
    run_python,
    scratch,
    small,
    tree,
    values,
    write_npy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from shardstore import DestinationError, SchemaError, SourceError, Writer, ingest

Case = Callable[[Path], Any]


def good(path: Path, rows: int = 5, width: int = 4) -> Path:
    """Write a file that can be ingested."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_npy(path, np.arange(rows * width, dtype="f4").reshape(rows, width))


def raw(path: Path, data: bytes) -> Path:
    """Write a file of these bytes."""
    path.write_bytes(data)
    return path


def zipped(path: Path, **arrays: np.ndarray) -> Path:
    """Write an `.npz` file."""
    np.savez(path, **arrays)
    return path


# Sources


def truncated_header(folder: Path) -> Any:
    return raw(folder / "bad.npy", good(folder / "good.npy").read_bytes()[:50])


def truncated_data(folder: Path) -> Any:
    raw(folder / "bad.npy", good(folder / "good.npy").read_bytes()[:-1])
    return [folder / "good.npy", folder / "bad.npy"]


def trailing_bytes(folder: Path) -> Any:
    raw(folder / "bad.npy", good(folder / "good.npy").read_bytes() + b"\n")
    return f"{folder}/*.npy"


def damaged_archive(folder: Path) -> Any:
    data = bytearray(zipped(folder / "bad.npz", x=np.arange(50)).read_bytes())
    data[data.index(np.arange(50).tobytes()) + 99] ^= 4
    return raw(folder / "bad.npz", bytes(data))


def truncated_archive(folder: Path) -> Any:
    path = zipped(folder / "bad.npz", x=np.arange(50))
    return raw(path, path.read_bytes()[:300])


def disagreeing(other: np.ndarray) -> Case:
    def case(folder: Path) -> Any:
        good(folder / "good.npy")
        write_npy(folder / "other.npy", other)
        return folder

    return case


def parallel(labels: list[int]) -> Case:
    def case(folder: Path) -> Any:
        for i, rows in enumerate((3, 5)):
            good(folder / f"x-{i}.npy", rows)
        for i, rows in enumerate(labels):
            write_npy(folder / f"y-{i}.npy", np.zeros(rows))
        return {"x": f"{folder}/x-*.npy", "y": f"{folder}/y-*.npy"}

    return case


def different_keys(folder: Path) -> Any:
    return [zipped(folder / "a.npz", x=np.zeros(3)), zipped(folder / "b.npz", x=np.zeros(3), y=np.zeros(3))]


# What is given: how to make it, the error, and what its line mentions (`{}` is the folder).
SOURCES: dict[str, tuple[Case, type[Exception], list[str]]] = {
    "missing file": (lambda f: f / "none.npy", SourceError, ["{}/none.npy", "no such file"]),
    "missing among others": (lambda f: [good(f / "a.npy"), f / "none.npy"], SourceError, ["{}/none.npy"]),
    "missing folder": (lambda f: f / "none" / "part.npy", SourceError, ["{}/none/part.npy", "no such file"]),
    "empty glob": (lambda f: f"{f}/*.npy", SourceError, ["{}/*.npy", "matches no file"]),
    "empty directory": (lambda f: f, SourceError, ["{}: no .npy or .npz file"]),
    "empty list": (lambda f: [], SourceError, ["no source files"]),
    "empty mapping": (lambda f: {}, SourceError, ["no source files"]),
    "empty list in a mapping": (lambda f: {"x": good(f / "x.npy"), "y": []}, SourceError, ["no source files"]),
    "zero-byte file": (lambda f: raw(f / "bad.npy", b""), SourceError, ["{}/bad.npy", "it is empty"]),
    "text": (lambda f: raw(f / "bad.npy", b"1,2\n3,4\n"), SourceError, ["{}/bad.npy", "not an .npy"]),
    "truncated header": (truncated_header, SourceError, ["{}/bad.npy", "ends within its header"]),
    "truncated data": (truncated_data, SourceError, ["{}/bad.npy", "expected 208 bytes, found 207"]),
    "trailing bytes": (trailing_bytes, SourceError, ["{}/bad.npy", "expected 208 bytes, found 209"]),
    "objects": (
        lambda f: write_npy(f / "bad.npy", np.array([{}, None])),
        SourceError,
        ["{}/bad.npy", "pickle, which is never loaded"],
    ),
    "objects in a field": (
        lambda f: write_npy(f / "bad.npy", np.zeros(2, [("x", "O"), ("y", "i4")])),
        SourceError,
        ["{}/bad.npy", "pickle, which is never loaded"],
    ),
    "objects in an archive": (
        lambda f: zipped(f / "bad.npz", x=np.array([{}, None])),
        SourceError,
        ["{}/bad.npz[x]", "pickle, which is never loaded"],
    ),
    "rows of several strings": (
        lambda f: write_npy(f / "bad.npy", np.array([["a", "bc"]])),
        SchemaError,
        ["{}/bad.npy", "column 'data' has rows of shape (2,)", "one value", "categorical"],
    ),
    "long double": (
        lambda f: write_npy(f / "bad.npy", np.zeros(2, np.clongdouble)),
        SchemaError,
        ["{}/bad.npy", "cannot be stored"],
    ),
    "time without a unit": (
        lambda f: write_npy(f / "bad.npy", np.zeros(2, "m8")),
        SchemaError,
        ["{}/bad.npy", "cannot be stored"],
    ),
    "0-d array": (lambda f: write_npy(f / "bad.npy", np.array(7)), SourceError, ["{}/bad.npy", "0-d array"]),
    "another dtype": (
        disagreeing(np.zeros((2, 4))),
        SourceError,
        ["{}/good.npy has float32[4]", "{}/other.npy has float64[4]"],
    ),
    "another row shape": (
        disagreeing(np.zeros((2, 5), "f4")),
        SourceError,
        ["{}/good.npy has float32[4]", "{}/other.npy has float32[5]"],
    ),
    "another number of axes": (
        disagreeing(np.zeros(4, "f4")),
        SourceError,
        ["{}/good.npy", "{}/other.npy has float32"],
    ),
    "another dtype, but no rows": (disagreeing(np.zeros((0, 4))), SourceError, ["{}/good.npy", "{}/other.npy"]),
    "another unit": (
        lambda f: [write_npy(f / f"{unit}.npy", np.zeros(2, f"M8[{unit}]")) for unit in ("s", "ms")],
        SourceError,
        ["{}/s.npy", "{}/ms.npy"],
    ),
    "other keys": (different_keys, SourceError, ["{}/a.npz has the columns x", "{}/b.npz has x, y"]),
    "parallel files that differ in rows": (
        parallel([3, 4]),
        SourceError,
        ["{}/x-1.npy has 5", "{}/y-1.npy has 4", "agree in rows"],
    ),
    "parallel files that agree in the sum only": (
        parallel([5, 3]),
        SourceError,
        ["{}/x-0.npy has 3", "{}/y-0.npy has 5"],
    ),
    "parallel files too few": (parallel([3]), SourceError, ["'x' has 2 files", "'y' has 1"]),
    "parallel structured files": (
        lambda f: {"x": write_npy(f / "x.npy", np.zeros(2, "i4,f4"))},
        SchemaError,
        ["{}/x.npy", "'x'", "structured"],
    ),
    "parallel archives": (lambda f: {"x": zipped(f / "x.npz", x=np.zeros(2))}, SchemaError, ["{}/x.npz", "keys"]),
    "damaged archive": (damaged_archive, SourceError, ["{}/bad.npz[x]", "damaged"]),
    "truncated archive": (truncated_archive, SourceError, ["{}/bad.npz", "damaged"]),
    "column names of a mapping": (lambda f: {"a/b": good(f / "x.npy")}, SchemaError, ["bad column name 'a/b'"]),
    "keys that differ in case": (
        lambda f: zipped(f / "x.npz", x=np.zeros(2), X=np.zeros(2)),
        SchemaError,
        ["column 'X' is named twice"],
    ),
    "no fields": (lambda f: write_npy(f / "bad.npy", np.zeros(2, [])), SourceError, ["{}/bad.npy"]),
}


@pytest.mark.parametrize("mode", ["create", "overwrite"])
@pytest.mark.parametrize("name", SOURCES)
def test_sources_that_cannot_be_taken(tmp_path: Path, name: str, mode: Any) -> None:
    case, error, mentions = SOURCES[name]
    (tmp_path / "in").mkdir()
    sources = case(tmp_path / "in")
    if mode == "overwrite":
        ingest(good(tmp_path / "old.npy"), tmp_path / "store").close()
    named = [mention.format(tmp_path / "in") for mention in mentions]
    assert_refused(error, lambda: ingest(sources, tmp_path / "store", mode=mode), tmp_path, *named)


# Splits and casts


@pytest.mark.parametrize(
    ("split", "mentions"),
    [
        ("x=4:", ["good.npy", "column 'x' overlaps nothing of an axis of 4"]),
        ("x=2:1", ["good.npy", "column 'x' overlaps nothing"]),
        ("y=4", ["good.npy", "column 'y' is index 4 of an axis of 4"]),
        ("x=:,y=-5", ["good.npy", "column 'y' is index -5 of an axis of 4"]),
        ("x=:-1,x=-1", ["column 'x' is named twice"]),
        ("x=:-1,X=-1", ["column 'X' is named twice"]),
        ("a/b=:", ["bad column name 'a/b'"]),
        ("..=:", ["bad column name '..'"]),
        ("a.b=:", ["bad column name 'a.b'"]),
        ("=:", ["bad column name ''"]),
        (" = : ", ["bad column name ''"]),
        ("rows=:", ["bad column name 'rows'"]),
        ("", ["bad split ''", "x=:-1,y=-1@int64"]),
        ("x", ["bad split 'x'"]),
        ("x=:-1,", ["bad split ''"]),
        ("x=:-1;y=-1", ["bad split"]),
        ("x=1:2:3:4", ["bad split 'x=1:2:3:4'"]),
        ("x=::0", ["bad split 'x=::0'"]),
        ("x=a", ["bad split 'x=a'"]),
        ("x=:@int65", ["bad split", "no dtype 'int65'"]),
        ("x=:@S5", ["good.npy", "cannot cast float32 to |S5"]),
        ("x=:@float128", ["good.npy", "float128"]),
    ],
)
def test_splits_that_make_no_columns(tmp_path: Path, split: str, mentions: list[str]) -> None:
    good(tmp_path / "in" / "good.npy")
    assert_refused(SchemaError, lambda: ingest(tmp_path / "in", tmp_path / "store", split=split), tmp_path, *mentions)


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        (lambda f: write_npy(f / "a.npy", np.arange(5)), "a row is a single value"),
        (lambda f: write_npy(f / "a.npy", np.zeros(5, "i4,f4")), "the columns of a structured one are its fields"),
        (lambda f: zipped(f / "a.npz", x=np.zeros((5, 3))), "the columns of an .npz are its keys"),
        (lambda f: {"z": good(f / "a.npy")}, "with named columns"),
    ],
)
def test_sources_that_cannot_be_split(tmp_path: Path, sources: Case, reason: str) -> None:
    given_sources = sources(tmp_path)
    assert_refused(SchemaError, lambda: ingest(given_sources, tmp_path / "store", split="x=:-1,y=-1"), tmp_path, reason)


LOSSES = [
    (np.float64(3.5), "int64"),
    (np.int32(300), "uint8"),
    (np.float32("nan"), "int64"),
    (np.int64(-1), "uint32"),
    (np.float64(0.1), "float32"),
    (np.float64(1e300), "~float32"),
    (np.float16("-inf"), "int32"),
    (np.uint64(2**64 - 1), "float64"),
    (np.int8(2), "bool"),
]


@settings(max_examples=30)
@given(
    st.sampled_from(LOSSES),
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.data(),
    st.sampled_from("CF"),
    st.sampled_from([1, 3]),
)
def test_a_cast_that_would_change_a_value_names_file_row_and_value(
    loss: tuple[Any, str], counts: list[int], data: st.DataObject, order: Any, workers: int
) -> None:
    value, target = loss
    part = data.draw(st.integers(0, len(counts) - 1))
    counts[part] += 1
    row = data.draw(st.integers(0, counts[part] - 1))
    with scratch() as folder:
        (folder / "in").mkdir()
        for i, count in enumerate(counts):
            array = np.ones((count, 2, 3), value.dtype, order=order)
            if i == part:
                array[row, data.draw(st.integers(0, 1)), -1] = value
            write_npy(folder / "in" / f"part-{i}.npy", array)
        message = assert_refused(
            SourceError,
            lambda: ingest(folder / "in", folder / "store", split=f"y=-1@{target}", workers=workers, **small(8)),
            folder,
            folder / "in" / f"part-{part}.npy",
            f"the value {value} of column 'y' would change in a cast to {target.strip('~')}",
        )
    assert number_in(message, ", row ") == row


@pytest.mark.parametrize("row", [0, 524_287, 524_288, 599_999])
def test_the_row_of_a_large_file(tmp_path: Path, row: int) -> None:
    array = np.zeros((600_000, 2), "f2")
    array[row, 1] = 0.5
    path = write_npy(tmp_path / "part.npy", array)
    call = lambda: ingest(path, tmp_path / "store", split="x=:@int64")  # noqa: E731
    assert_refused(SourceError, call, tmp_path, path, f"row {row:,}: the value 0.5 ")


# Options


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"codec": "lz4"}, SchemaError, "unknown codec 'lz4'"),
        ({"codec": {"y": "zstd"}}, SchemaError, "column 'y', but the columns are data"),
        ({"shard_bytes": "big"}, SchemaError, "not a size in bytes: 'big'"),
        ({"chunk_bytes": 0}, SchemaError, "not a size in bytes: 0"),
        ({"mode": "replace"}, ValueError, "mode is 'replace'"),
        ({"workers": 0}, ValueError, "workers is 0"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: Any, error: type[Exception], reason: str) -> None:
    path = good(tmp_path / "part.npy")
    assert_refused(error, lambda: ingest(path, tmp_path / "store", **options), tmp_path, reason)


# Destinations


def occupied(beside: Path) -> dict[str, Path]:
    """Put something at each of some destinations."""
    places = {name: beside / name for name in ("file", "folder", "empty", "link", "link to a store", "damaged store")}
    places["file"].write_text("keep me")
    places["folder"].mkdir()
    (places["folder"] / "thesis.txt").write_text("keep me")
    places["empty"].mkdir()
    places["link"].symlink_to(beside / "nowhere")
    ingest(good(beside / "part.npy"), beside / "store").close()
    places["link to a store"].symlink_to(beside / "store")
    shutil.copytree(beside / "store", places["damaged store"])
    (places["damaged store"] / "zarr.json").write_text("{}")
    return places


@pytest.mark.parametrize("name", ["file", "folder", "empty", "link", "link to a store", "damaged store", "store"])
def test_a_destination_that_exists(tmp_path: Path, name: str) -> None:
    dest = {**occupied(tmp_path), "store": tmp_path / "store"}[name]
    call = lambda: ingest(tmp_path / "part.npy", dest)  # noqa: E731
    assert_refused(DestinationError, call, tmp_path, f"{dest} exists already")


@pytest.mark.parametrize("name", ["file", "folder", "link", "link to a store", "damaged store"])
def test_nothing_but_a_store_is_overwritten(tmp_path: Path, name: str) -> None:
    dest = occupied(tmp_path)[name]
    call = lambda: ingest(tmp_path / "part.npy", dest, mode="overwrite")  # noqa: E731
    assert_refused(DestinationError, call, tmp_path, dest, "overwrite replaces only a shardstore store")


@pytest.mark.parametrize("below", ["store", "deep/er/store", "."])
@pytest.mark.parametrize("form", ["folder", "text", "list", "iterator", "mapping", "iterator in a mapping", "link"])
def test_a_destination_inside_a_source_folder(tmp_path: Path, form: str, below: str) -> None:
    folder = tmp_path / "in"
    good(folder / "part.npy")
    (tmp_path / "link").symlink_to(folder)
    sources: dict[str, Callable[[], Any]] = {
        "folder": lambda: folder,
        "text": lambda: f"{folder}/",
        "list": lambda: [folder / "part.npy", folder],
        "iterator": lambda: iter([folder]),
        "mapping": lambda: {"x": folder},
        "iterator in a mapping": lambda: {"x": iter([folder])},
        "link": lambda: tmp_path / "link",
    }
    reason = "exists already" if below == "." else "lies inside the source folder"
    dest = folder / below
    assert_refused(DestinationError, lambda: ingest(sources[form](), dest), tmp_path, dest, reason)


def test_sources_inside_the_store_that_would_be_overwritten(tmp_path: Path) -> None:
    dest = tmp_path / "store"
    ingest(good(tmp_path / "part.npy"), dest).close()
    good(dest / "dumps" / "inside.npy")
    (tmp_path / "link.npy").symlink_to(dest / "dumps" / "inside.npy")
    inside = dest / "dumps" / "inside.npy"
    for sources in (inside, [tmp_path / "part.npy", inside], f"{dest}/*/*.npy", {"x": inside}, tmp_path / "link.npy"):
        call = lambda sources=sources: ingest(sources, dest, mode="overwrite")  # noqa: E731
        assert_refused(DestinationError, call, tmp_path, dest, "would be replaced")


@pytest.mark.parametrize("dest", ["part.npy/store", "x" * 300])
def test_a_destination_that_cannot_be(tmp_path: Path, dest: str) -> None:
    path = good(tmp_path / "part.npy")
    assert_refused(DestinationError, lambda: ingest(path, tmp_path / dest), tmp_path, tmp_path / dest)


# Rights

UNPRIVILEGED = """
import json, os, sys
import shardstore
import shardstore.ingesting  # while there are still the rights to read it

folder, uid = sys.argv[1], int(sys.argv[2])
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
cases = {
    "file": ("closed.npy", "store"),
    "among others": (["open.npy", "closed.npy"], "store"),
    "in a mapping": ({"x": "open.npy", "y": "closed.npy"}, "store"),
    "folder": ("closed", "store"),
    "file in a folder": ("closed/part.npy", "store"),
    "pattern in a folder": ("closed/*.npy", "store"),
    "destination": ("open.npy", "sealed/store"),
    "destination in a closed folder": ("open.npy", "closed/store"),
}
outcomes = {}
for name, (sources, dest) in cases.items():
    place = lambda path: os.path.join(folder, path)
    if isinstance(sources, list):
        sources = [place(path) for path in sources]
    elif isinstance(sources, dict):
        sources = {key: place(path) for key, path in sources.items()}
    else:
        sources = place(sources)
    try:
        shardstore.ingest(sources, place(dest))
        outcomes[name] = ["", "done"]
    except Exception as error:
        outcomes[name] = [type(error).__name__, str(error)]
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes() -> Iterator[tuple[Path, dict[str, tuple[str, str]], bool]]:
    """What someone without rights gets to read, and whether nothing has changed."""
    if not hasattr(os, "setuid"):
        pytest.skip("the system has no rights of this kind")
    # Not below tmp_path, which is closed to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good(folder / "open.npy")
        good(folder / "closed.npy")
        good(folder / "closed" / "part.npy")
        (folder / "sealed").mkdir()
        before = tree(folder)
        for path, rights in (("", 0o777), ("closed.npy", 0), ("closed", 0), ("sealed", 0o555)):
            (folder / path).chmod(rights)
        try:
            out = run_python(UNPRIVILEGED, folder, 65534 if os.geteuid() == 0 else 0)
        finally:
            for path in ("closed.npy", "closed", "sealed"):
                (folder / path).chmod(0o777)
        yield folder, json.loads(out), tree(folder) == before


@pytest.mark.parametrize(
    ("case", "error", "path"),
    [
        ("file", "SourceError", "closed.npy"),
        ("among others", "SourceError", "closed.npy"),
        ("in a mapping", "SourceError", "closed.npy"),
        ("folder", "SourceError", "closed"),
        ("file in a folder", "SourceError", "closed/part.npy"),
        ("pattern in a folder", "SourceError", "closed/*.npy"),
        ("destination", "DestinationError", "sealed/store"),
        ("destination in a closed folder", "DestinationError", "closed/store"),
    ],
)
def test_without_rights(
    outcomes: tuple[Path, dict[str, tuple[str, str]], bool], case: str, error: str, path: str
) -> None:
    folder, messages, unchanged = outcomes
    kind, message = messages[case]
    assert (kind, "\n" in message) == (error, False), message
    assert str(folder / path) in message
    assert unchanged


# A full disk

FULL = """
import json, multiprocessing, shutil, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np
import shardstore

disk, source, codec, processes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
dest, outcomes = disk / "store", []
options = {"codec": codec, "chunk_bytes": 2**12, "shard_bytes": 2**18}
pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) if processes else 2

def attempt(call):
    try:
        call()
        outcome = ["", ""]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    stores = {}
    for path in disk.iterdir():
        stores[path.name] = [len(shardstore.open(path)), shardstore.open(path).verify(progress=False).ok]
    outcomes.append([*outcome, stores])

def write(rows, mode):
    with shardstore.Writer(dest, mode=mode, **options) as writer:
        for _ in range(rows // 1000):
            writer.append({"x": np.random.default_rng(0).random((1000, 8)), "y": np.arange(1000)})

attempt(lambda: shardstore.ingest(source, dest, workers=pool, **options))
attempt(lambda: write(60_000, "create"))
attempt(lambda: write(5_000, "create"))
attempt(lambda: shardstore.ingest(source, dest, workers=pool, mode="overwrite", **options))
attempt(lambda: write(60_000, "overwrite"))
attempt(lambda: write(6_000, "overwrite"))
if not processes:
    # All sizes around what fits: the disk may be full at the last chunk, the footer or the metadata.
    part, free = source.parent / "part.npy", shutil.disk_usage(disk).free
    for nbytes in range(free - 100_000, free + 20_000, 4_096):
        np.save(part, np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8))
        attempt(lambda: shardstore.ingest(part, disk / "other", **options))
        if (disk / "other").exists():
            shutil.rmtree(disk / "other")
else:
    pool.shutdown()
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def tiny_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A command before which a disk of 1 MiB is mounted for the program after it only, and where."""
    place = tmp_path_factory.mktemp("disk")
    if shutil.which("unshare") is None:
        pytest.skip("no small disk can be mounted here: there is no command unshare")
    script = 'mount -t tmpfs -o size=1m,mode=777 tiny "$0" && exec "$@"'
    command = [
        "unshare",
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        "--mount",
        "sh",
        "-c",
        script,
        str(place),
    ]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip()}")
    return command, place


@pytest.mark.parametrize(("codec", "processes"), [("raw", 0), ("zstd", 0), ("blosc:lz4", 0), ("raw", 1)])
def test_no_space_left(tmp_path: Path, tiny_disk: tuple[list[str], Path], codec: str, processes: int) -> None:
    command, disk = tiny_disk
    source = write_npy(tmp_path / "big.npy", values("u1", (4 << 20, 1)))
    outcomes = json.loads(run_python(FULL, disk, source, codec, processes, prefix=command))
    assert list(disk.iterdir()) == []  # it was mounted for the program only
    old, new = {"store": [5_000, True]}, {"store": [6_000, True]}
    expected = [{}, {}, old, old, old, new]
    for (kind, message, stores), after, full in zip(outcomes, expected, [1, 1, 0, 1, 1, 0], strict=False):
        assert stores == after
        assert kind == ("DestinationError" if full else ""), message
        assert message.startswith(f"no space left for {disk / 'store'}: " if full else "")
        assert "\n" not in message
    around = outcomes[len(expected) :]
    for kind, message, stores in around:
        assert stores.pop("store") == [6_000, True]
        assert [ok for _, ok in stores.values()] == ([] if kind else [True]), stores
        assert kind in ("", "DestinationError"), message
    assert processes or {kind for kind, _, _ in around} == {"", "DestinationError"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_file_larger_than_may_be(tmp_path: Path) -> None:
    script = """if True:
        import resource, sys, shardstore
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            shardstore.ingest(sys.argv[1], sys.argv[2])
        except shardstore.DestinationError as error:
            print(error)
    """
    path = write_npy(tmp_path / "part.npy", np.zeros(10**5))
    before = tree(tmp_path)
    message = run_python(script, path, tmp_path / "store").strip()
    assert str(tmp_path / "store") in message
    assert "\n" not in message
    assert tree(tmp_path) == before


# An interrupt

INTERRUPTED = """
import multiprocessing, signal, sys
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import shardstore

source, dest, kind, codec, mode = sys.argv[1:]
# A shell's background jobs begin with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    if kind == "writer":
        with shardstore.Writer(dest, codec=codec, mode=mode) as writer:
            while True:
                writer.append({"data": np.zeros(1000), "label": np.zeros(1000)})
    elif kind == "threads":
        shardstore.ingest(source, dest, codec=codec, mode=mode, workers=2)
    else:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            shardstore.ingest(source, dest, codec=codec, mode=mode, workers=pool, shard_bytes="64MiB")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no SIGINT to send")
@pytest.mark.parametrize("mode", ["create", "overwrite"])
@pytest.mark.parametrize("kind", ["threads", "processes", "writer"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, kind: str, mode: str) -> None:
    # Far more than is done before the signal comes, and all zeros, so that neither it nor the shards take space.
    source, dest = tmp_path / "part.npy", tmp_path / "store"
    with source.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1 << 33,)})
        stream.truncate(stream.tell() + (8 << 33))
    if mode == "overwrite":
        ingest(good(tmp_path / "in" / "old.npy"), dest).close()
    before = {path: tree(path) if path.is_dir() else path.stat().st_size for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", INTERRUPTED, source, dest, kind, "zstd", mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            while child.poll() is None and not any(tmp_path.glob("store.*/data/c/*")):
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=120)
        finally:
            child.kill()
    assert (out, child.returncode) == ("interrupted\n", 0), err
    assert {path: tree(path) if path.is_dir() else path.stat().st_size for path in tmp_path.iterdir()} == before


def test_a_destination_inside_a_store_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    ingest(tmp_path / "a.npy", tmp_path / "store").close()
    with pytest.raises(DestinationError, match="lies inside the store"):
        ingest(tmp_path / "a.npy", tmp_path / "store" / "inner")


def test_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="masked array"), Writer(tmp_path / "store") as writer:
        writer.append({"x": np.ma.array([1, 999, 3], mask=[0, 1, 0])})
    assert list(tmp_path.iterdir()) == []
