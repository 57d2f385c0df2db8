"""Finding files, and reading `.npy` and `.npz` files block by block, against NumPy's own reader."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import LENGTHS, ROW_SHAPES, STORABLE, VERSIONS, little, run_python, scratch, values, write_npy
from hypothesis import example, given
from hypothesis import strategies as st

from shardstore.errors import SchemaError, ShardStoreError, SourceError
from shardstore.sources.inputs import Inputs, collect_inputs
from shardstore.sources.npy import read_header
from shardstore.sources.npz import open_members
from shardstore.sources.paths import find_files, natural_key, order_note

STRUCTURED = (
    np.dtype([("x", "<f4", (3,)), ("y", "<i8")]),
    np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2", (2, 2)), ("d", "?")], align=True),
    np.dtype([("t", ">M8[ms]"), ("v", ">f4", (2,)), ("s", "S5"), ("n", ">u2")]),
    np.dtype({"names": ["p", "q"], "formats": ["<f2", ">c8"], "offsets": [5, 16], "itemsize": 40}),
    np.dtype([(("a title", "z"), "<i4")]),
)


def contents(inputs: Inputs, block_rows: int = 3) -> dict[str, np.ndarray]:
    """Return all rows of all columns, as an ingest reads them."""
    return {
        name: np.concatenate(
            [np.empty((0, *parts[0].field.row_shape), parts[0].field.dtype)]
            + [block.copy() for part in parts for block in part.read(0, part.rows, block_rows)]
        )
        for name, parts in inputs.parts.items()
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert found[name].shape == array.shape
        assert found[name].tobytes() == little(array).tobytes()


def refusal(path: Path | str) -> str:
    """Return the one line that says why a source cannot be taken."""
    with pytest.raises(SourceError, match=r"\A[^\n]+\Z") as caught:
        contents(collect_inputs(path))
    return str(caught.value)


# .npy


@given(
    st.data(),
    st.sampled_from(STORABLE),
    st.sampled_from(LENGTHS),
    st.sampled_from((*ROW_SHAPES, (0,), (2, 0))),
    st.sampled_from("<>"),
    st.sampled_from("CF"),
    st.sampled_from(VERSIONS),
)
def test_any_rows_of_an_npy_in_any_blocks(
    data: st.DataObject, dtype: str, rows: int, row_shape: tuple[int, ...], endian: str, order: Any, version: Any
) -> None:
    array = np.asarray(values(np.dtype(dtype).newbyteorder(endian), (rows, *row_shape)), order=order)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    with scratch() as folder:
        [part] = collect_inputs(write_npy(folder / "dump.npy", array, version)).parts["data"]
        assert part.rows == rows
        assert part.field.dtype == np.dtype(dtype).newbyteorder("<")
        assert part.field.row_shape == row_shape
        blocks = [block.copy() for block in part.read(start, stop, data.draw(st.integers(1, rows + 1)))]
    assert all(block.flags.c_contiguous and block.dtype == part.field.dtype for block in blocks)
    assert all(block.shape[1:] == row_shape for block in blocks)
    assert b"".join(block.tobytes() for block in blocks) == little(array)[start:stop].tobytes()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", STRUCTURED)
@pytest.mark.parametrize("shape", [(0,), (7,), (5, 2)])
def test_fields_of_a_structured_dtype_are_columns(
    tmp_path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any, version: tuple[int, int]
) -> None:
    array = np.asarray(values(dtype, shape), order=order)
    inputs = collect_inputs(write_npy(tmp_path / "dump.npy", array, version))
    assert_same(contents(inputs), {name: array[name] for name in dtype.names or ()})


@pytest.mark.parametrize("version", VERSIONS)
def test_a_header_of_any_version_says_what_numpy_reads(tmp_path: Path, version: tuple[int, int]) -> None:
    array = values(">i4", (3, 4))
    path = write_npy(tmp_path / "dump.npy", np.asfortranarray(array), version)
    with path.open("rb") as stream:
        header = read_header(stream, "dump.npy")
        assert stream.tell() == header.data_offset
    assert path.read_bytes()[6:8] == bytes(version)
    assert (header.dtype, header.shape, header.fortran_order) == (array.dtype, array.shape, True)
    assert header.data_offset + header.data_nbytes == path.stat().st_size


def test_a_header_longer_than_version_1_can_be(tmp_path: Path) -> None:
    dtype = np.dtype([(f"column_{i:05}", "<f4") for i in range(5000)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy says that it needs version 2.0
        path = write_npy(tmp_path / "dump.npy", np.zeros(2, dtype))
    assert path.read_bytes()[6:8] == b"\x02\x00"
    with path.open("rb") as stream:
        assert read_header(stream, "dump.npy").dtype == dtype


@pytest.mark.parametrize(("name", "version"), [("größe", (1, 0)), ("größe", (3, 0)), ("长度", (3, 0))])
def test_field_names_of_any_script_are_read_and_refused_as_columns(
    tmp_path: Path, name: str, version: tuple[int, int]
) -> None:
    path = write_npy(tmp_path / "dump.npy", np.zeros(2, [(name, "<f4")]), version)
    with path.open("rb") as stream:
        assert read_header(stream, "dump.npy").dtype.names == (name,)
    with pytest.raises(SchemaError, match=rf"dump.npy: bad column name '{name}'"):
        collect_inputs(path)


@pytest.mark.parametrize("dtype", ["f4,i8", "V5"])
def test_dtypes_that_no_column_has(tmp_path: Path, dtype: str) -> None:
    array = np.zeros(2, [("x", dtype)])
    with pytest.raises(SchemaError, match=r"dump.npy: column 'x'"):
        collect_inputs(write_npy(tmp_path / "dump.npy", array))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_npy_cut_short_anywhere_is_refused(tmp_path: Path, version: tuple[int, int]) -> None:
    whole = write_npy(tmp_path / "whole.npy", np.arange(6.0), version).read_bytes()
    path = tmp_path / "dump.npy"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        message = refusal(path)
        assert str(path) in message
        assert ("truncated" in message) == (size >= 8)


@given(st.binary(min_size=1, max_size=20))
def test_bytes_after_the_array_are_refused(tail: bytes) -> None:
    with scratch() as folder:
        path = write_npy(folder / "dump.npy", np.arange(6))
        path.write_bytes(path.read_bytes() + tail)
        message = refusal(path)
    assert f"{path}: more bytes than its header says" in message


@given(st.integers(0, 127), st.integers(1, 255))
def test_a_damaged_header_is_refused_or_says_something_else(position: int, flip: int) -> None:
    with scratch() as folder:
        path = write_npy(folder / "dump.npy", np.arange(6))
        damaged = bytearray(path.read_bytes())
        damaged[position] ^= flip
        path.write_bytes(damaged)
        with suppress(ShardStoreError):
            assert sum(column.nbytes for column in contents(collect_inputs(path)).values()) == 48


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    raw = text.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(raw)) + raw


def described(descr: object = "<i8", shape: object = (1,)) -> bytes:
    return header(repr({"descr": descr, "fortran_order": False, "shape": shape}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an .npy or .npz file: it is empty"),
        (b"1,2,3\n4,5,6\n", "not an .npy or .npz file: it does not begin with NumPy's signature"),
        (b"\x93NUMPX", "not an .npy or .npz file"),
        (header("{}", b"\x04\x00"), "version 4.0 is unknown"),
        (header("{}", b"\x01\x01"), "version 1.1 is unknown"),
        (header("{}"), "damaged .npy header"),
        (header("[1, 2]"), "damaged .npy header"),
        (header("7"), "damaged .npy header"),
        (header("(" * 500), "damaged .npy header"),
        (header("__import__('os')"), "damaged .npy header"),
        (header("{}" + " " * (2 << 20), b"\x02\x00"), "damaged .npy header: it claims to be 2,097,154 bytes long"),
        (b"\x93NUMPY\x03\x00\xff\xff\xff\xff", "damaged .npy header: it claims to be 4,294,967,295 bytes long"),
        (header("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}\xff", b"\x03\x00"), "damaged .npy header"),
        (described(descr="<q9"), "damaged .npy header"),
        (described(descr="S99999999999"), "damaged .npy header"),
        (described(descr="99999999999f4"), "damaged .npy header"),
        (described(descr=[]), ""),
        (described(descr=[("x",)]), "damaged .npy header"),
        (described(descr=[("", "<i8")]), ""),
        (described(descr=[["x", "<i8"]]), ""),
        (described(descr=[("x", "<i8"), ("x", "<i8")]), "damaged .npy header"),
        (described(descr=()), "damaged .npy header"),
        (described(descr=("<i8",)), "damaged .npy header"),
        (described(descr=None), "damaged .npy header"),
        (described(descr="|O"), "an array of Python objects is a pickle, which is never loaded"),
        (described(descr=[("x", "|O")]), "an array of Python objects is a pickle, which is never loaded"),
        (described(shape=()), "a single value (0-d array) has no rows"),
        (described(shape=1), "damaged .npy header"),
        (described(shape=(-1,)), "damaged .npy header"),
        (described(shape=("x",)), "damaged .npy header"),
        (described(shape=(10**12,)), "truncated .npy"),
        (described(shape=(10**30,)), "damaged .npy header"),
        (described(shape=(1 << 60,)), "no array can have the shape"),
        (described(shape=(1 << 60, 0)), "no array can have the shape"),
        (described(shape=(1,) * 65), "no array can have the shape"),
        (described(shape=(True,)), "damaged .npy header"),
        (described(shape="12"), "damaged .npy header"),
        (header("{'descr': '<i8', 'fortran_order': 0, 'shape': (1,)}"), "damaged .npy header"),
        (described(descr="f4,f4"), "not a dtype"),
        (described(descr="(2,2)f4"), "not a dtype"),
        (header("[" * 100_000, b"\x02\x00"), "too deeply nested"),
        (header("-" * 100_000 + "1", b"\x02\x00"), "damaged .npy header"),
        (header("1+" * 100_000 + "1", b"\x02\x00"), "damaged .npy header"),
        (header("{'descr': '\\d'}"), "unknown escape"),
    ],
)
def test_what_is_no_npy(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "dump.npy"
    path.write_bytes(data)
    with pytest.raises((SourceError, SchemaError), match=r"\A[^\n]+\Z") as caught:
        collect_inputs(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


class Trap:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("form", ["plain", "field", "npz", "compressed npz", "bare pickle"])
def test_a_pickle_is_never_loaded(tmp_path: Path, form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / ("dump.npz" if "npz" in form else "dump.npy")
    array = np.array([Trap(canary), Trap(canary)], object)
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Trap(canary)))
    elif form == "field":
        np.save(path, np.array([(1, Trap(canary))], [("x", "i4"), ("y", "O")]))
    elif form == "plain":
        np.save(path, array)
    else:
        (np.savez if form == "npz" else np.savez_compressed)(path, x=array)
    assert str(path) in refusal(path)
    assert not canary.exists()
    loaded = np.load(path, allow_pickle=True)  # the trap does work
    if "npz" in form:
        with loaded:
            loaded["x"]
    assert canary.exists()


# .npz


members = st.lists(
    st.tuples(st.sampled_from(STORABLE), st.sampled_from(ROW_SHAPES), st.sampled_from("<>"), st.sampled_from("CF")),
    min_size=1,
    max_size=3,
)


@given(members, st.sampled_from(LENGTHS), st.booleans(), st.integers(1, 50))
def test_the_keys_of_an_npz_are_columns(members: list[Any], rows: int, compressed: bool, block_rows: int) -> None:
    arrays = {
        f"key {i}": np.asarray(values(np.dtype(dtype).newbyteorder(endian), (rows, *row_shape)), order=order)
        for i, (dtype, row_shape, endian, order) in enumerate(members)
    }
    with scratch() as folder:
        (np.savez_compressed if compressed else np.savez)(folder / "dump.npz", allow_pickle=False, **arrays)
        assert_same(contents(collect_inputs(folder / "dump.npz"), block_rows), arrays)


@pytest.mark.parametrize("version", VERSIONS)
def test_members_with_a_header_of_any_version(tmp_path: Path, version: tuple[int, int]) -> None:
    array = values("<f4", (9, 2))
    with zipfile.ZipFile(tmp_path / "dump.npz", "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array(stream, array, version)
    assert_same(contents(collect_inputs(tmp_path / "dump.npz")), {"x": array})


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_cut_short_anywhere_is_refused(tmp_path: Path, order: Any, compressed: bool) -> None:
    path = tmp_path / "dump.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.asarray(values("i4", (5, 2)), order=order))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert str(path) in refusal(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("flip", [0x01, 0x80])
@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile's, of a name that comes twice
def test_a_damaged_npz_is_refused_or_none_of_its_data_is_hit(
    tmp_path: Path, order: Any, compressed: bool, flip: int
) -> None:
    path = tmp_path / "dump.npz"
    arrays = {"x": np.asarray(values("i4", (5, 2)), order=order), "y": np.arange(5)}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    whole = path.read_bytes()
    data = {array.tobytes() for array in arrays.values()}
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        try:
            found = contents(collect_inputs(path))
        except ShardStoreError as error:
            assert [str(path) in str(error), "\n" in str(error)] == [True, False], error  # noqa: PT017
            refused += 1
        else:
            assert {array.tobytes() for array in found.values()} <= data
    assert refused > sum(map(len, data))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_member_that_is_longer_or_shorter_than_its_header_says(tmp_path: Path, order: Any, change: int) -> None:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values("i4", (5, 2)), order=order))
    raw = stream.getvalue()
    path = tmp_path / "dump.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", raw[:change] if change < 0 else raw + b"\0")
    assert f"{path}[x]" in refusal(path)


def test_zip_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "dump.npz"
    np.savez(path)
    assert f"{path}: an .npz file without arrays" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert f"{path}: not an .npz file: it holds 'readme.txt'" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "hello")
    assert f"{path}[x]: not an .npy file" in refusal(path)


def test_arrays_of_an_npz_that_are_no_columns_of_one_store(tmp_path: Path) -> None:
    path = tmp_path / "dump.npz"
    np.savez(path, x=np.zeros(3), y=np.zeros(4))
    message = refusal(path)
    assert all(part in message for part in (str(path), "x has 3", "y has 4"))
    np.savez(path, x=np.float64(1))
    assert f"{path}[x]: a single value" in refusal(path)
    np.savez(path, **{"a/b": np.zeros(3)})
    with pytest.raises(SchemaError, match=r"dump.npz\[a/b\]: bad column name 'a/b'"):
        collect_inputs(path)


def test_blocks_of_a_stream_come_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", x=np.arange(10))
    [member] = open_members(tmp_path / "dump.npz")
    with member.open() as reader, pytest.raises(ValueError, match="asked for 5, next is 0"):
        reader.read(5, 6)


# Paths


file_names = st.text("ab019²٣-_ .", min_size=1, max_size=6).filter(lambda name: name.strip(". "))


@given(st.lists(st.integers(0, 10**25), unique=True))
def test_numbers_in_names_count_as_numbers(numbers: list[int]) -> None:
    files = [Path(f"run 7/part-{number}.npy") for number in numbers]
    assert sorted(files, key=natural_key) == [Path(f"run 7/part-{number}.npy") for number in sorted(numbers)]


@given(st.data(), st.sets(file_names, max_size=6))
@example(None, {"1", "01", "001"})
@example(None, {"1²2", "1"})
def test_the_natural_order_is_one_order(data: st.DataObject | None, names: set[str]) -> None:
    files = sorted(Path(f"{name}.npy") for name in names)
    shuffled = files[::-1] if data is None else data.draw(st.permutations(files))
    assert sorted(shuffled, key=natural_key) == sorted(files, key=natural_key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with parts 1, 2 and 10, and things that are no parts."""
    folder = tmp_path / "dumps"
    (folder / "deeper.npy").mkdir(parents=True)
    for name in ("part-10.npy", "part-2.npy", "part-1.npy", ".part-0.npy", "notes.txt", "deeper.npy/part-3.npy"):
        write_npy(folder / name, np.arange(3))
    np.savez(folder / "part-3.npz", data=np.arange(3))
    return folder


def test_a_directory_or_a_glob_is_taken_in_natural_order(folder: Path) -> None:
    arrays = [folder / f"part-{number}.npy" for number in (1, 2, 10)]
    with_archive = [*arrays[:2], folder / "part-3.npz", arrays[2]]
    assert find_files(folder) == find_files(str(folder)) == find_files([folder]) == with_archive
    assert find_files(f"{folder}/*.npy") == arrays
    assert find_files(folder / "part-?.npy") == arrays[:2]
    assert sorted(find_files(f"{folder}/**/*.npy")) == sorted([*arrays, folder / "deeper.npy" / "part-3.npy"])


@given(st.permutations([1, 2, 10]), st.lists(st.sampled_from([1, 2, 10]), max_size=3))
def test_a_list_is_taken_as_it_comes_and_a_note_says_so(order: list[int], more: list[int]) -> None:
    with scratch() as folder:
        given_files = [write_npy(folder / f"part-{number}.npy", np.arange(3)) for number in order + more]
        assert find_files(given_files) == find_files(iter(map(str, given_files))) == given_files
    note = order_note(given_files)
    assert (note is None) == (order + more == sorted(order + more))
    if note is not None:
        first = next(i for i, number in enumerate(order + more) if number != sorted(order + more)[i])
        assert (
            f"part-{(order + more)[first]}.npy comes where natural order has part-{sorted(order + more)[first]}" in note
        )


def test_a_shell_sorts_otherwise_and_a_note_says_so(folder: Path) -> None:
    shell = sorted(map(str, folder.glob("*.npy")))
    files = find_files([name for name in shell if Path(name).is_file() and "/." not in name])
    assert [file.name for file in files] == ["part-1.npy", "part-10.npy", "part-2.npy"]
    assert "part-10.npy comes where natural order has part-2.npy" in str(order_note(files))
    assert order_note(find_files(folder)) is None


def test_a_list_of_folders_and_globs_keeps_their_order(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "another"
    other.mkdir()
    write_npy(other / "part-5.npy", np.arange(3))
    assert find_files([folder / "*.npy", other]) == [*find_files(f"{folder}/*.npy"), other / "part-5.npy"]
    assert find_files([other, folder / "*.npy"]) == [other / "part-5.npy", *find_files(f"{folder}/*.npy")]


def test_a_name_with_the_signs_of_a_pattern_is_a_name_first(tmp_path: Path) -> None:
    for name in ("part[1].npy", "part1.npy", "part*.npy"):
        write_npy(tmp_path / name, np.arange(3))
    assert find_files(tmp_path / "part[1].npy") == [tmp_path / "part[1].npy"]
    assert find_files(tmp_path / "part*.npy") == [tmp_path / "part*.npy"]
    assert find_files(tmp_path / "part[12].npy") == [tmp_path / "part1.npy"]


def test_links_are_followed_and_a_dangling_one_is_no_file_to_leave_out(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    target = write_npy(tmp_path / "elsewhere.npy", np.arange(3))
    (folder / "part-1.npy").symlink_to(target)
    assert find_files(folder) == [folder / "part-1.npy"]
    target.unlink()
    for source in (folder, f"{folder}/*.npy", folder / "part-1.npy"):
        assert "part-1.npy" in refusal(source)
    write_npy(folder / "part-2.npy", np.arange(3))
    for source in (folder, f"{folder}/*.npy"):
        assert str(folder / "part-1.npy") in refusal(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        *[("none.npy", "no such file"), ("none-*.npy", "the pattern matches no file"), ("x" * 300 + ".npy", "")],
        *[("empty", "no .npy or .npz file"), ("notes", "no .npy or .npz file"), ("notes/notes.txt/part.npy", "")],
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no array")
    message = refusal(tmp_path / source)
    assert str(tmp_path / source) in message
    assert reason in message


def test_no_sources_at_all() -> None:
    with pytest.raises(SourceError, match="no source files"):
        collect_inputs([])
    with pytest.raises(SourceError, match="no source files"):
        collect_inputs({})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    script = """if True:
        import sys, shardstore
        try:
            shardstore.ingest(sys.argv[1], sys.argv[2])
        except shardstore.SourceError as error:
            print(error)
    """
    assert str(tmp_path / "pipe.npy") in run_python(script, tmp_path / "pipe.npy", tmp_path / "store")
