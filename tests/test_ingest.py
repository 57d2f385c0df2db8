"""What goes into an ingest comes out of the store, whatever its form, cut and way of being worked on."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import (
    LENGTHS,
    NUMERIC,
    ROW_SHAPES,
    STORABLE,
    VERSIONS,
    assert_holds,
    codecs,
    lengths,
    little,
    run_python,
    scratch,
    shard_files,
    small,
    tree,
    values,
    write_npy,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import ingest

pieces = st.lists(lengths, min_size=1, max_size=4)
orders = st.sampled_from("CF")
endians = st.sampled_from("<>")


def write_pieces(folder: Path, array: np.ndarray, counts: list[int], orders: str = "C", prefix: str = "part") -> None:
    """Write an array as numbered files of so many rows each, by turns in each of the orders."""
    folder.mkdir(exist_ok=True)
    ends = list(itertools.accumulate(counts))
    for i, (stop, order) in enumerate(zip(ends, itertools.cycle(orders))):
        rows = array[stop - counts[i] : stop]
        write_npy(folder / f"{prefix}-{i}.npy", np.asarray(rows, order=order), VERSIONS[i % len(VERSIONS)])


# Whatever the input is


@settings(max_examples=40)
@given(st.sampled_from(STORABLE), st.sampled_from((*ROW_SHAPES, (0,), (2, 0))), pieces, orders, endians, codecs)
@example("float32", (5,), [0, 0, 0], "C", "<", "raw")
@example("int64", (), [8, 8, 8], "C", ">", "zstd")
@example("datetime64[ns]", (2, 3), [0, 41, 0, 1, 9], "F", ">", "blosc:lz4")
@example("S7", (5,), [1, 0, 16], "F", "<", "zstd")
def test_files_of_any_form_and_length_make_one_column(
    dtype: str, row_shape: tuple[int, ...], counts: list[int], order: str, endian: str, codec: str
) -> None:
    array = values(np.dtype(dtype).newbyteorder(endian), (sum(counts), *row_shape))
    with scratch() as folder:
        write_pieces(folder / "in", array, counts, orders=order)
        options = small(array.itemsize * int(np.prod(row_shape)))
        with ingest(folder / "in", folder / "store", codec=codec, workers=2, **options) as store:
            assert_holds(store, {"data": array})
        assert [path.name for path in sorted(folder.iterdir())] == ["in", "store"]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(STORABLE), min_size=1, max_size=4), st.data(), pieces, orders)
def test_fields_of_structured_files_make_columns(
    dtypes: list[str], data: st.DataObject, counts: list[int], order: str
) -> None:
    fields = [
        (f"f{i}", np.dtype(dtype).newbyteorder(data.draw(endians)), data.draw(st.sampled_from(ROW_SHAPES)))
        for i, dtype in enumerate(dtypes)
    ]
    array = values(np.dtype(fields, align=data.draw(st.booleans())), (sum(counts),))
    codec = {name: data.draw(codecs) for name, *_ in fields}
    with scratch() as folder:
        write_pieces(folder / "in", array, counts, orders=order)
        with ingest(folder / "in", folder / "store", codec=codec, **small(array.itemsize)) as store:
            assert_holds(store, {name: array[name] for name, *_ in fields})
            assert {name: str(entry.data.layout.codec) for name, entry in store.manifest.columns.items()} == codec


@settings(max_examples=25)
@given(st.data(), pieces, st.booleans())
def test_keys_of_npz_files_make_columns_whatever_their_order(
    data: st.DataObject, counts: list[int], compressed: bool
) -> None:
    rows = sum(counts)
    shapes = {name: (rows, *data.draw(st.sampled_from(ROW_SHAPES))) for name in "abc"}
    columns = {name: values(data.draw(st.sampled_from(STORABLE)), shape) for name, shape in shapes.items()}
    ends = list(itertools.accumulate(counts))
    with scratch() as folder:
        (folder / "in").mkdir()
        for i, stop in enumerate(ends):
            names = "abc" if i == 0 else data.draw(st.permutations("abc"))
            part = {n: np.asarray(columns[n][stop - counts[i] : stop], order=data.draw(orders)) for n in names}
            (np.savez_compressed if compressed else np.savez)(folder / "in" / f"{i}.npz", allow_pickle=False, **part)
        options = small(max(array[:1].nbytes for array in columns.values()) if rows else 64)
        with ingest(folder / "in", folder / "store", codec={"b": data.draw(codecs)}, workers=3, **options) as store:
            assert_holds(store, columns)


def test_npz_files_and_structured_npy_files_with_the_same_columns_mix(tmp_path: Path) -> None:
    table = values([("x", "<f4", (3,)), ("y", "<i8")], (50,))
    write_npy(tmp_path / "a-1.npy", table[:20])
    np.savez(tmp_path / "a-2.npz", y=table["y"][20:23], x=table["x"][20:23])
    write_npy(tmp_path / "a-10.npy", table[23:])
    with ingest(tmp_path / "a-*", tmp_path / "store", **small(12)) as store:
        assert_holds(store, {"x": table["x"], "y": table["y"]})


@settings(max_examples=25)
@given(pieces, st.sampled_from(ROW_SHAPES), orders, st.sampled_from(["mapping", "lists", "globs", "folders"]))
def test_parallel_files_make_columns(counts: list[int], row_shape: tuple[int, ...], order: str, form: str) -> None:
    x, y = values(">f4", (sum(counts), *row_shape)), np.arange(sum(counts))
    with scratch() as folder:
        write_pieces(folder / "x", x, counts, orders=order)
        write_pieces(folder / "y", y, counts, prefix="label")
        sources: dict[str, Any] = {"x": folder / "x", "y": str(folder / "y")}
        if form == "globs":
            sources = {"x": f"{folder}/x/part-*.npy", "y": folder / "y" / "label-*.npy"}
        if form == "lists":
            last = len(counts) - 1
            sources = {
                name: [folder / name / f"{p}-{last - i}.npy" for i in range(last + 1)]
                for name, p in (("x", "part"), ("y", "label"))
            }
            cuts = np.cumsum(counts)[:-1]
            x, y = (np.concatenate(np.split(array, cuts)[::-1]) for array in (x, y))
        with ingest(sources, folder / "store", **small(x[:1].nbytes or 4)) as store:
            assert_holds(store, {"x": x, "y": y})


@given(st.permutations(range(12)))
@settings(max_examples=5)
def test_a_folder_goes_by_number_and_a_list_as_it_comes(order: list[int]) -> None:
    with scratch() as folder:
        (folder / "in").mkdir()
        files = [write_npy(folder / "in" / f"part-{i}.npy", np.full(3, i)) for i in range(12)]
        with ingest(folder / "in", folder / "a") as store:
            assert store["data"][:].tolist() == np.repeat(range(12), 3).tolist()
        with ingest([files[i] for i in order], folder / "b") as store:
            assert store["data"][:].tolist() == np.repeat(order, 3).tolist()


def test_the_order_of_a_list_is_remarked_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [write_npy(tmp_path / f"part-{i}.npy", np.full(3, i)) for i in (1, 10, 2)]
    with caplog.at_level(logging.INFO, "shardstore"):
        ingest(f"{tmp_path}/*.npy", tmp_path / "a").close()
        assert caplog.messages == []
        ingest(files, tmp_path / "b").close()
    assert len(caplog.messages) == 1
    assert "part-10.npy comes where natural order has part-2.npy" in caplog.messages[0]


def test_sources_that_can_be_gone_through_once_only(tmp_path: Path) -> None:
    files = [write_npy(tmp_path / f"part-{i}.npy", np.full(3, i)) for i in (2, 1)]
    with ingest(iter(files), tmp_path / "a") as store:
        assert store["data"][:].tolist() == [2, 2, 2, 1, 1, 1]
    with ingest({"x": iter(files), "y": map(str, files)}, tmp_path / "b") as store:
        assert store["y"][:].tolist() == [2, 2, 2, 1, 1, 1]


# Splits


ITEMS = {
    "x=:-1,y=-1@int64": lambda a: {"x": a[..., :-1], "y": a[..., -1].astype("i8")},
    "last=-1 , evens = ::2 @ ~float16": lambda a: {"last": a[..., -1], "evens": a[..., ::2].astype("f2")},
    "back=::-1@complex64,all=:@uint8,mid=2:4": lambda a: {
        "back": a[..., ::-1].astype("c8"),
        "all": a.astype("u1"),
        "mid": a[..., 2:4],
    },
    "flag=0@bool": lambda a: {"flag": a[..., 0].astype(bool)},
}


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(ITEMS)),
    st.sampled_from([name for name in NUMERIC if np.dtype(name).kind in "iuf"]),
    st.sampled_from([(4,), (2, 4), (3, 1, 5)]),
    pieces,
    orders,
    endians,
    codecs,
)
def test_a_split_makes_columns(
    split: str, dtype: str, row_shape: tuple[int, ...], counts: list[int], order: str, endian: str, codec: str
) -> None:
    shape = (sum(counts), *row_shape)
    array = np.random.default_rng(len(counts)).integers(0, 2, shape).astype(np.dtype(dtype).newbyteorder(endian))
    array[..., 1:] *= np.arange(row_shape[-1], dtype=array.dtype)[1:]
    with scratch() as folder:
        write_pieces(folder / "in", array, counts, orders=order)
        with ingest(folder / "in", folder / "store", split=split, codec=codec, **small(array.itemsize * 4)) as store:
            assert_holds(store, ITEMS[split](array))


def test_a_cast_evens_out_files_of_different_dtypes(tmp_path: Path) -> None:
    write_npy(tmp_path / "part-1.npy", np.array([[1, 2], [3, 4]], ">i2"))
    write_npy(tmp_path / "part-2.npy", np.array([[5.5, 6]], "<f4"))
    with ingest(f"{tmp_path}/*.npy", tmp_path / "store", split="x=0@float64,y=1@int32") as store:
        assert_holds(store, {"x": np.array([1, 3, 5.5]), "y": np.array([2, 4, 6], "<i4")})


# Whoever does the work


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder of files of every length and both orders, and all their rows."""
    counts = [*LENGTHS, *LENGTHS[::-1]]
    array = np.random.default_rng(0).integers(0, 200, (sum(counts), 6)).astype("<f4")
    folder = tmp_path_factory.mktemp("dumps")
    write_pieces(folder, array, counts, orders="CF")
    return folder, array


@pytest.fixture(scope="module", params=["1", "2", "8", "default", "threads", "spawn", "fork"])
def workers(request: pytest.FixtureRequest) -> Iterator[int | Executor | None]:
    """What can be given as `workers`."""
    if request.param == "default":
        yield None
    elif request.param.isdigit():
        yield int(request.param)
    elif request.param == "threads":
        with ThreadPoolExecutor(3) as pool:
            yield pool
    elif request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"the system cannot {request.param} processes")
    else:
        with ProcessPoolExecutor(2, multiprocessing.get_context(request.param)) as processes:
            yield processes


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of fork, where NumPy has threads
@pytest.mark.parametrize("codec", ["raw", "blosc:lz4"])
def test_whoever_works_writes_the_same_bytes(
    dump: tuple[Path, np.ndarray], tmp_path: Path, workers: int | Executor | None, codec: str
) -> None:
    folder, array = dump
    options: Any = {"split": "x=:-1,y=-1@int64", "codec": codec, **small(20)}
    with ingest(folder, tmp_path / "store", workers=workers, **options) as store:
        assert_holds(store, {"x": array[:, :-1], "y": array[:, -1].astype("i8")})
    ingest(folder, tmp_path / "alone", workers=1, **options).close()
    assert shard_files(tmp_path / "store") == shard_files(tmp_path / "alone")
    assert len(shard_files(tmp_path / "store")) == 2 * -(-len(array) // 8)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_an_error_of_a_worker_reaches_the_caller_and_an_executor_lives_on(
    tmp_path: Path, workers: int | Executor | None
) -> None:
    (tmp_path / "in").mkdir()
    array = np.arange(400.0).reshape(100, 4)
    array[57, 3] = 0.5
    path = write_npy(tmp_path / "in" / "part.npy", array)
    before = tree(tmp_path)
    with pytest.raises(shardstore.SourceError, match=r"part.npy, row 57: the value 0.5 of column 'y'"):
        ingest(path, tmp_path / "store", split="x=:-1,y=-1@int64", workers=workers, **small(24))
    assert tree(tmp_path) == before
    with ingest(path, tmp_path / "store", split="x=:-1,y=-1", workers=workers, **small(24)) as store:
        assert_holds(store, {"x": array[:, :-1], "y": array[:, -1]})


def test_an_executor_that_takes_no_work(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "part.npy", np.arange(10))
    before = tree(tmp_path)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        ingest(path, tmp_path / "store", workers=pool)
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"workers is {number}"):
            ingest(path, tmp_path / "store", workers=number)
    assert tree(tmp_path) == before


def test_of_two_ingests_to_one_place_one_wins(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    files = [write_npy(tmp_path / "in" / f"{i}.npy", np.full((100, 2), i)) for i in range(4)]
    barrier = threading.Barrier(len(files))

    def work(path: Path) -> str:
        barrier.wait()
        try:
            ingest(path, tmp_path / "store", workers=1, **small(16)).close()
        except shardstore.DestinationError as error:
            return str(error)
        return "won"

    with ThreadPoolExecutor(len(files)) as pool:
        outcomes = list(pool.map(work, files))
    assert outcomes.count("won") == 1
    assert all(f"{tmp_path / 'store'} exists already" in outcome for outcome in outcomes if outcome != "won")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "store"]
    with shardstore.open(tmp_path / "store") as store:
        assert_holds(store, {"data": np.full((100, 2), outcomes.index("won"))})


# What is left behind


def test_the_store_says_where_its_rows_came_from(tmp_path: Path) -> None:
    first = write_npy(tmp_path / "part-2.npy", np.zeros((3, 2), ">i2"))
    second = write_npy(tmp_path / "part-1.npy", np.zeros((0, 2), ">i2"))
    np.savez(tmp_path / "part-3.npz", data=np.zeros((5, 2), "<i2"))
    third = tmp_path / "part-3.npz"
    with ingest([first, second, third], tmp_path / "store") as store:
        provenance = store.manifest.provenance
    assert provenance["tool"] == f"shardstore {shardstore.__version__}"
    assert provenance["sources"] == {
        "names": ["part-2.npy", "part-1.npy", "part-3.npz[data]"],
        "sizes": [path.stat().st_size for path in (first, second, third)],
        "shapes": [[3, 2], [0, 2], [5, 2]],
        "dtypes": [">i2", ">i2", "<i2"],
    }
    group = json.loads((tmp_path / "store" / "zarr.json").read_bytes())
    assert group["attributes"]["shardstore"]["provenance"] == provenance


def test_a_store_lies_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(10)
    write_npy(tmp_path / "part.npy", array)
    monkeypatch.chdir(tmp_path)
    for dest in (
        "plain",
        "new/and/deep",
        "with.dot",
        "with space",
        tmp_path / "absolute",
        "../" + tmp_path.name + "/up",
    ):
        with ingest("part.npy", dest) as store:
            assert_holds(store, {"data": array})
        with shardstore.open(dest) as store:
            assert_holds(pickle.loads(pickle.dumps(store)), {"data": array})


def test_the_shard_files_of_a_raw_column_are_the_rows_from_byte_0(tmp_path: Path) -> None:
    array = values(">f4", (41, 5))
    ingest(write_npy(tmp_path / "part.npy", array), tmp_path / "store", **small(20)).close()
    for shard in range(6):
        rows = np.memmap(tmp_path / "store" / "data" / "c" / str(shard) / "0", "<f4", "r")
        expected = little(array)[shard * 8 : shard * 8 + 8].reshape(-1)
        assert rows[: len(expected)].tobytes() == expected.tobytes()


# Overwriting


@given(pieces, codecs, st.sampled_from(["raw", "zstd"]))
@settings(max_examples=15)
def test_overwriting_replaces_all_of_a_store(counts: list[int], codec: str, other: str) -> None:
    old, new = values("<i4", (sum(counts), 2)), values(">f8", (11,))
    with scratch() as folder:
        write_pieces(folder / "old", old, counts)
        write_pieces(folder / "new", new, [len(new)])
        before = ingest(folder / "old", folder / "store", codec=codec, **small(8))
        kept = before["data"][:]
        with ingest(folder / "new", folder / "store", codec=other, mode="overwrite", **small(8)) as after:
            assert_holds(after, {"data": new})
            assert after.manifest.store_id != before.manifest.store_id
        # Whoever has the old rows mapped keeps them.
        assert kept.tobytes() == old.tobytes()
        before.close()
        fresh = ingest(folder / "new", folder / "fresh", codec=other, **small(8))
        fresh.close()
        assert shard_files(folder / "store") == shard_files(folder / "fresh")
        assert sorted(path.name for path in folder.iterdir()) == ["fresh", "new", "old", "store"]


def test_overwriting_nothing_creates(tmp_path: Path) -> None:
    path = write_npy(tmp_path / "part.npy", np.arange(10))
    (tmp_path / "empty").mkdir()
    for dest in ("store", "empty"):
        with ingest(path, tmp_path / dest, mode="overwrite") as store:
            assert_holds(store, {"data": np.arange(10)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "part.npy", "store"]


# Memory


MEASURE = """
import sys, threading
import numpy as np
import shardstore

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def watch():
    global peak
    while not done.wait(0.0005):
        peak = max(peak, anonymous())

job, source, dest, codec = sys.argv[1:]
base = peak = anonymous()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
if job == "load":
    np.load(source).copy()
else:
    shardstore.ingest(source, dest, codec=codec, workers=2).close()
done.set()
watcher.join()
print(peak - base)
"""


def zeros(path: Path, nbytes: int, order: str = "C") -> Path:
    """Make an `.npy` of zeros that takes no disk space."""
    header = {"descr": "<f4", "fortran_order": order == "F", "shape": (nbytes // 256, 64)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + nbytes)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
@pytest.mark.parametrize(("codec", "order", "large"), [("raw", "C", 512), ("zstd", "F", 256)])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, codec: str, order: str, large: int) -> None:
    def peak(job: str, megabytes: int) -> int:
        source = zeros(tmp_path / f"{megabytes}.npy", megabytes << 20, order)
        return int(run_python(MEASURE, job, source, tmp_path / f"store-{megabytes}", codec)) >> 20

    assert peak("ingest", large) < peak("ingest", 64) + 48
    assert peak("load", 64) >= 64  # the gauge shows what it should


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_does_not_grow_with_a_compressed_archive(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        source = tmp_path / f"{megabytes}.npz"
        np.savez_compressed(source, x=np.zeros((megabytes << 14, 64), np.uint8))
        return int(run_python(MEASURE, "ingest", source, tmp_path / f"store-{megabytes}", "zstd")) >> 20

    assert peak(128) < peak(16) + 48


def test_a_column_that_is_cut_from_rows_of_other_widths_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 10)))
    np.save(tmp_path / "b.npy", np.zeros((3, 12)))
    with pytest.raises(shardstore.SourceError, match=r"a.npy has float64\[10\], .*b.npy has float64\[12\]"):
        ingest(tmp_path / "*.npy", tmp_path / "store", split="y=-1")


def test_headers_of_python_2_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    data = np.arange(8, dtype="<i4").reshape(4, 2)
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (4L, 2L), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    (tmp_path / "old.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data.tobytes()
    )
    with ingest([tmp_path / "old.npy", tmp_path / "old.npy"], tmp_path / "store") as store:
        assert store["data"][:].tolist() == [*data.tolist(), *data.tolist()]
        assert store.manifest.provenance["sources"]["names"] == ["old.npy", "old.npy"]
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.npy"))
    np.save(odd, data)
    ingest(odd, tmp_path / "odd").close()
    assert b"\\ud" not in (tmp_path / "odd" / "zarr.json").read_bytes()
