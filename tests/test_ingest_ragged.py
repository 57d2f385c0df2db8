"""Ragged columns of files against lists of arrays: every way in which dumps hold them, and everything that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import LENGTHS, assert_refused, codecs, scratch, shard_files, write_npy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import random_array

import shardstore
from shardstore import SchemaError, SourceError, ingest
from shardstore.ragged import Ragged
from shardstore.sources.inputs import collect_inputs

Rows = list[NDArray[Any]]
# Shards of 8 rows and of 128 bytes of items, in chunks of 2 rows and of 32 bytes.
OPTIONS: Any = {"shard_bytes": 128, "chunk_bytes": 32}
FORMS = ("offsets", "lengths", "padded", "rows", "npz offsets", "npz lengths", "npz/offsets", "npz padded")
DTYPES = ("uint8", ">u2", "float32", ">i8", "complex128", ">M8[s]", "S3")
counts = st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 15, 16, 17, 40]), max_size=19)
files = st.lists(counts, min_size=1, max_size=3)


def rows_of(lengths: list[int], dtype: str, shape: tuple[int, ...] = (), seed: int = 0) -> Rows:
    """Return a list of arrays of random bits."""
    values = random_array(dtype, (sum(lengths), *shape), seed)
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


def end_to_end(rows: Rows, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate([np.empty((0, *shape), dtype), *rows])


def padded(rows: Rows, dtype: str, shape: tuple[int, ...], more: int) -> NDArray[Any]:
    """Return rows in one array that is wider than the longest; what is not theirs is random."""
    array = random_array(dtype, (len(rows), max(map(len, rows), default=0) + more, *shape), 9)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def write(
    folder: Path, form: str, parts: list[Rows], dtype: str, shape: tuple[int, ...], numbers: str, order: Any
) -> Any:
    """Write rows as files of one form, with a column `n` of their numbers; return what an ingest takes."""
    first = 0
    for k, rows in enumerate(parts):
        lengths = np.array([len(row) for row in rows], numbers)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(numbers)
        arrays = {"offsets": offsets, "lengths": lengths, "n": np.arange(first, first + len(rows))}
        arrays["values"] = np.asarray(end_to_end(rows, dtype, shape), order=order)
        arrays["padded"] = np.asarray(padded(rows, dtype, shape, k % 2), order=order)
        first += len(rows)
        if form.startswith("npz"):
            dot = "/" if "/" in form else "."
            roles = ("padded", "lengths") if "padded" in form else ("values", form[4:])
            np.savez(folder / f"both-{k}.npz", **{f"r{dot}{role}": arrays[role] for role in roles}, n=arrays["n"])
            continue
        for name, array in arrays.items():
            write_npy(folder / f"{name}-{k}.npy", array)
        if form == "rows":
            np.savez(folder / f"rows-{k}.npz", *(np.asarray(row, order=order) for row in rows))
    if form.startswith("npz"):
        return f"{folder}/both-*.npz"
    roles = {"offsets": ("values", "offsets"), "lengths": ("lengths", "values"), "padded": ("padded", "lengths")}
    ragged = {role: f"{folder}/{role}-*.{'npz' if form == 'rows' else 'npy'}" for role in roles.get(form, (form,))}
    return {"r": ragged, "n": f"{folder}/n-*.npy"}


def written(path: Path, rows: Rows, dtype: str, shape: tuple[int, ...], codec: str) -> Path:
    """Write the same rows by a `Writer`."""
    items = str(np.dtype(dtype).newbyteorder("="))
    kind = f"ragged[{items.lstrip('|')}{''.join(f', {n}' for n in shape)}]"
    with shardstore.Writer(path, types={"r": kind, "n": "int64"}, codec=codec, **OPTIONS) as writer:
        writer.append({"r": rows, "n": np.arange(len(rows))})
    return path


@settings(max_examples=40)
@given(
    files,
    st.sampled_from(FORMS),
    st.sampled_from(DTYPES),
    st.sampled_from([(), (3,), (2, 1)]),
    codecs,
    st.sampled_from(["int64", "uint64", ">u4", "int16"]),
    st.sampled_from("CF"),
)
def test_every_form_makes_the_store_that_a_writer_makes(
    counts: list[list[int]], form: str, dtype: str, shape: tuple[int, ...], codec: str, numbers: str, order: Any
) -> None:
    if form == "rows":  # an archive without members has no dtype, and an empty row has none that counts
        counts = [part if any(part) else [*part, 1] for part in counts]
    parts = [rows_of(part, dtype, shape, seed) for seed, part in enumerate(counts)]
    rows = list(itertools.chain(*parts))
    with scratch() as folder:
        sources = write(folder, form, parts, dtype, shape, numbers, order)
        with ingest(sources, folder / "s", codec=codec, workers=2, **OPTIONS) as store:
            assert store.verify(progress=False).ok
            assert store["r"].lengths.tolist() == [len(row) for row in rows]
            assert store["r"].dtype == np.dtype(dtype).newbyteorder("<")
            assert store["n"][:].tolist() == list(range(len(rows)))
            for found, row in zip(store["r"], rows, strict=True):
                assert found.tobytes() == row.astype(found.dtype).tobytes()
                assert found.shape == row.shape
        expected = written(folder / "w", rows, dtype, shape, codec)
        assert shard_files(folder / "s") == shard_files(expected)


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_rows_on_every_edge(tmp_path: Path, form: str, rows: int) -> None:
    if form == "rows" and not rows:
        return
    parts = [rows_of([1 + i % 3 for i in range(rows)], "int32")]
    with ingest(write(tmp_path, form, parts, "int32", (), "int64", "C"), tmp_path / "s", **OPTIONS) as store:
        assert store["r"][:].to_list() == [row.tolist() for row in parts[0]]
    assert shard_files(tmp_path / "s") == shard_files(written(tmp_path / "w", parts[0], "int32", (), "raw"))


@pytest.mark.parametrize("form", FORMS)
def test_a_row_longer_than_a_shard_between_empty_ones(tmp_path: Path, form: str) -> None:
    parts = [rows_of([0, 0, 1000, 0], "int32"), rows_of([0, 5000, 0], "int32", seed=1)]
    with ingest(write(tmp_path, form, parts, "int32", (), "int64", "C"), tmp_path / "s", **OPTIONS) as store:
        assert len(store.manifest.columns["r"].data.nbytes) == 188
        assert [row.tolist() for row in store["r"]] == [row.tolist() for row in itertools.chain(*parts)]


@pytest.mark.parametrize("form", FORMS)
def test_other_processes_write_it_too(tmp_path: Path, form: str) -> None:
    parts = [rows_of([3, 0, 40, 7] * 5, "uint16", seed=seed) for seed in range(3)]
    sources = write(tmp_path, form, parts, "uint16", (), "int64", "C")
    with ProcessPoolExecutor(1, get_context("fork")) as workers:
        ingest(sources, tmp_path / "s", workers=workers, **OPTIONS).close()
    rows = list(itertools.chain(*parts))
    assert shard_files(tmp_path / "s") == shard_files(written(tmp_path / "w", rows, "uint16", (), "raw"))


@given(files, st.sampled_from(FORMS), st.integers(1, 9), st.sampled_from([1, 16, 64, 1000]))
def test_blocks_are_bounded_by_rows_and_by_bytes(
    counts: list[list[int]], form: str, most_rows: int, most_nbytes: int
) -> None:
    if form == "rows":
        counts = [part if any(part) else [*part, 1] for part in counts]
    parts = [rows_of(part, "int32", (), seed) for seed, part in enumerate(counts)]
    with scratch() as folder:
        inputs = collect_inputs(write(folder, form, parts, "int32", (), "int64", "C"))
        for part, rows in zip(inputs.parts["r"], parts, strict=True):
            blocks = list(part.blocks(most_rows, most_nbytes))
            assert all(isinstance(block, Ragged) for block in blocks)
            assert all(len(block) == 1 or block.values.nbytes <= most_nbytes for block in blocks)
            assert all(1 <= len(block) <= most_rows for block in blocks)
            assert [row.tolist() for block in blocks for row in block] == [row.tolist() for row in rows]
            assert all(len(block) == most_rows for block in list(part.blocks(most_rows))[:-1])


def test_values_of_megabytes_come_in_several_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 3000, 2000)
    values = rng.integers(0, 1 << 16, lengths.sum()).astype(np.uint16)
    np.save(tmp_path / "v.npy", values)
    np.save(tmp_path / "l.npy", lengths)
    files = {"values": tmp_path / "v.npy", "lengths": tmp_path / "l.npy"}
    with (
        ingest({"r": files}, tmp_path / "copied") as plain,
        ingest({"r": files}, tmp_path / "cast", types={"r": "ragged[int32]"}) as cast,
    ):
        assert np.array_equal(plain["r"][:].values, values)
        assert np.array_equal(cast["r"][:].values, values)
        assert cast["r"].dtype == np.int32
        assert plain["r"].lengths.tolist() == cast["r"].lengths.tolist() == lengths.tolist()


def test_provenance_names_every_array(tmp_path: Path) -> None:
    parts = [rows_of([2, 3], "int32"), rows_of([4], "int32")]
    sources = write(tmp_path, "offsets", parts, "int32", (), "uint64", "C")
    kept = ingest(sources, tmp_path / "s").manifest.provenance["sources"]
    assert kept["names"] == [f"{name}-{k}.npy" for name, k in [("values", 0), ("offsets", 0)]] + [
        "values-1.npy",
        "offsets-1.npy",
        "n-0.npy",
        "n-1.npy",
    ]
    assert kept["shapes"] == [[5], [3], [4], [2], [2], [1]]
    assert kept["dtypes"] == ["<i4", "<u8", "<i4", "<u8", "<i8", "<i8"]
    assert kept["sizes"] == [(tmp_path / name).stat().st_size for name in kept["names"]]
    kept = ingest(write(tmp_path, "rows", parts, "int32", (), "int64", "C"), tmp_path / "t").manifest.provenance
    assert kept["sources"]["names"][:2] == ["rows-0.npz", "rows-1.npz"]
    assert kept["sources"]["shapes"][:2] == [[2], [1]]
    assert kept["sources"]["dtypes"][:2] == ["<i4", "<i4"]


def test_members_that_are_empty_lists_fit_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "docs.npz", np.array([]), np.array([1, 2], ">i2"), np.array([]), np.array([3], "<i2"))
    store = ingest({"r": {"rows": tmp_path / "docs.npz"}}, tmp_path / "s")
    assert store["r"].dtype == np.int16
    assert store["r"][:].to_list() == [[], [1, 2], [], [3]]


def test_more_members_than_names_sort(tmp_path: Path) -> None:
    np.savez(tmp_path / "docs.npz", *(np.arange(i) for i in range(25)))
    store = ingest({"r": {"rows": str(tmp_path / "docs.npz")}}, tmp_path / "s")
    assert store["r"][:].to_list() == [list(range(i)) for i in range(25)]


def test_iterators_of_paths_are_taken_once(tmp_path: Path) -> None:
    parts = [rows_of([2, 3], "int32"), rows_of([4], "int32")]
    write(tmp_path, "offsets", parts, "int32", (), "int64", "C")
    named = {role: iter([tmp_path / f"{role}-{k}.npy" for k in range(2)]) for role in ("values", "offsets")}
    assert ingest({"r": named}, tmp_path / "s")["r"].lengths.tolist() == [2, 3, 4]


def test_a_destination_inside_a_source_folder_is_refused(tmp_path: Path) -> None:
    for role in ("values", "lengths"):
        (tmp_path / role).mkdir()
        np.save(tmp_path / role / "0.npy", np.ones(1, int))
    sources = {"r": {role: tmp_path / role for role in ("values", "lengths")}}
    place = tmp_path / "lengths" / "s"
    assert_refused(
        shardstore.DestinationError, lambda: ingest(sources, place), tmp_path, "lies inside the source folder"
    )


# What is wrong with files, by what they are of: the arrays, the error, and what its line mentions

Case = tuple[Mapping[str, Any], type[Exception], list[str]]
V = np.arange(12, dtype=np.int32)
BAD: dict[str, Case] = {
    "lengths that sum up to less": (
        {"values": V, "lengths": [5, 6]},
        SourceError,
        ["lengths-1.npy: lengths sum up to 11", "values-1.npy has 12 items"],
    ),
    "lengths that sum up to more": (
        {"values": V, "lengths": [5, 6, 0, 2, 1]},
        SourceError,
        ["lengths-1.npy, row 3", "sum up to 13", "values-1.npy has 12 items"],
    ),
    "a length above all items": (
        {"values": V, "lengths": np.array([5, 2**64 - 1], np.uint64)},
        SourceError,
        ["lengths-1.npy, row 1: a length of 18,446,744,073,709,551,615", "has 12 items"],
    ),
    "a negative length": (
        {"values": V, "lengths": [5, 9, -2]},
        SourceError,
        ["lengths-1.npy, row 2: a length of -2", "must not be negative"],
    ),
    "lengths of floats": ({"values": V, "lengths": [12.0]}, SourceError, ["lengths-1.npy: lengths must be integers"]),
    "lengths of booleans": ({"values": V, "lengths": [True]}, SourceError, ["lengths must be integers, found bool"]),
    "lengths of two axes": ({"values": V, "lengths": [[12]]}, SourceError, ["lengths-1.npy", "one axis", "(1, 1)"]),
    "offsets that decrease": (
        {"values": V, "offsets": [0, 7, 5, 12]},
        SourceError,
        ["offsets-1.npy, row 1", "offset 2 is 5, behind 7"],
    ),
    "unsigned offsets that decrease": (
        {"values": V, "offsets": np.array([0, 7, 5, 12], np.uint64)},
        SourceError,
        ["offsets-1.npy, row 1", "offset 2 is 5, behind 7"],
    ),
    "offsets that begin later": (
        {"values": V, "offsets": [3, 7, 12]},
        SourceError,
        ["offsets-1.npy, row 0: offsets begin at 3; expected 0"],
    ),
    "offsets of all files together": (
        {"values": V, "offsets": [12, 20, 24]},
        SourceError,
        ["offsets-1.npy, row 0: offsets begin at 12", "of their own file"],
    ),
    "negative offsets": ({"values": V, "offsets": [0, -1, 12]}, SourceError, ["row 0", "offset 1 is -1, behind 0"]),
    "offsets that end early": (
        {"values": V, "offsets": [0, 7, 11]},
        SourceError,
        ["offsets-1.npy: offsets end at 11", "values-1.npy has 12 items"],
    ),
    "offsets that end late": (
        {"values": V, "offsets": [0, 7, 13, 14]},
        SourceError,
        ["offsets-1.npy, row 1: it ends at 13", "values-1.npy has 12 items"],
    ),
    "offsets of floats": ({"values": V, "offsets": [0.0, 12.0]}, SourceError, ["offsets must be integers", "float64"]),
    "no offsets": ({"values": V, "offsets": np.zeros(0, int)}, SourceError, ["offsets-1.npy: no offsets"]),
    "another number of rows": (
        {"values": V, "offsets": [0, 5, 12], "n": np.arange(3)},
        SourceError,
        ["agree in rows", "offsets-1.npy has 2", "n-1.npy has 3"],
    ),
    "other items": (
        {"values": V.astype(np.int64), "offsets": [0, 12]},
        SourceError,
        ["'r'", "values-0.npy has ragged int32", "values-1.npy has ragged int64"],
    ),
    "items of another shape": (
        {"values": V.reshape(6, 2), "offsets": [0, 6]},
        SourceError,
        ["'r'", "values-0.npy has ragged int32", "values-1.npy has ragged int32[2]"],
    ),
    "items that cannot be stored": (
        {"values": np.array(["a", "b"]), "offsets": [0, 2]},
        SchemaError,
        ["values-1.npy: column 'r' has dtype <U1"],
    ),
    "structured items": (
        {"values": np.zeros(2, "i4,f4"), "offsets": [0, 2]},
        SchemaError,
        ["values-1.npy", "structured"],
    ),
    "a length above the width": (
        {"padded": V.reshape(3, 4), "lengths": [4, 5, 0]},
        SourceError,
        ["lengths-1.npy, row 1: a length of 5", "padded-1.npy have 4 items"],
    ),
    "a negative length of a padded row": (
        {"padded": V.reshape(3, 4), "lengths": [4, 0, -1]},
        SourceError,
        ["lengths-1.npy, row 2: a length of -1"],
    ),
    "more lengths than padded rows": (
        {"padded": V.reshape(3, 4), "lengths": [4, 0, 1, 1]},
        SourceError,
        ["agree in rows", "padded-1.npy has 3", "lengths-1.npy has 4"],
    ),
    "padded rows of one axis": ({"padded": V, "lengths": [1] * 12}, SourceError, ["padded-1.npy", "two axes", "(12,)"]),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_fit_are_named_with_the_row(tmp_path: Path, name: str) -> None:
    arrays, error, mentions = BAD[name]
    first = {
        "values": V,
        "offsets": [0, 12],
        "lengths": [4] if "padded" in arrays else [12],
        "padded": V[:4].reshape(1, 4),
        "n": [0],
    }
    for role, array in arrays.items():
        np.save(tmp_path / f"{role}-0.npy", np.asarray(first[role]))
        np.save(tmp_path / f"{role}-1.npy", np.asarray(array))
    sources: dict[str, Any] = {"r": {role: f"{tmp_path}/{role}-*.npy" for role in arrays if role != "n"}}
    if "n" in arrays:
        sources["n"] = f"{tmp_path}/n-*.npy"
    assert_refused(error, lambda: ingest(sources, tmp_path / "s"), tmp_path, *mentions)


def blocks_of(rows: int) -> NDArray[np.int64]:
    return np.arange(rows, dtype=np.int64)


@pytest.mark.parametrize("at", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 300_000])
def test_what_is_wrong_behind_many_rows_has_its_number(tmp_path: Path, at: int) -> None:
    offsets = blocks_of(400_001)
    np.save(tmp_path / "v.npy", np.zeros(400_000, np.uint8))
    offsets[at] = offsets[at - 1] - 1
    np.save(tmp_path / "o.npy", offsets)
    lengths = np.ones(400_000, np.int8)
    lengths[at], lengths[at - 1] = -1, 3
    np.save(tmp_path / "l.npy", lengths)
    for role, mention in (("offsets", f"row {at - 1:,}: offsets must not"), ("lengths", f"row {at:,}: a length of -1")):
        sources = {"r": {"values": tmp_path / "v.npy", role: tmp_path / f"{role[0]}.npy"}}
        assert_refused(SourceError, lambda s=sources: ingest(s, tmp_path / "s"), tmp_path, mention)


def good(folder: Path) -> None:
    np.save(folder / "values.npy", V)
    np.save(folder / "offsets.npy", [0, 12])


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "in.npz", **arrays)
    return folder / "in.npz"


WRONG: dict[str, tuple[Callable[[Path], Any], type[Exception], list[str]]] = {
    "values alone": (
        lambda f: {"r": {"values": f / "values.npy"}},
        SchemaError,
        ["'r'", "values and offsets", "values"],
    ),
    "nothing": (lambda f: {"r": {}}, SchemaError, ["'r'", "found nothing"]),
    "an unknown array": (
        lambda f: {"r": {"values": f / "values.npy", "starts": f / "offsets.npy"}},
        SchemaError,
        ["found values and starts"],
    ),
    "offsets and lengths": (
        lambda f: {"r": dict.fromkeys(("values", "offsets", "lengths"), f / "values.npy")},
        SchemaError,
        ["found values and offsets and lengths"],
    ),
    "a missing file": (
        lambda f: {"r": {"values": f / "values.npy", "offsets": f / "none.npy"}},
        SourceError,
        ["none.npy: no such file"],
    ),
    "too few files": (
        lambda f: {"r": {"values": [f / "values.npy"] * 2, "offsets": f / "offsets.npy"}},
        SourceError,
        ["pair up", "'r'", "2 files of values", "1 of offsets"],
    ),
    "archives for arrays": (
        lambda f: {"r": {"values": npz(f, x=V), "offsets": f / "offsets.npy"}},
        SchemaError,
        ["in.npz", "plain .npy"],
    ),
    "an array for rows": (
        lambda f: {"r": {"rows": f / "values.npy"}},
        SchemaError,
        ["values.npy", "members of an .npz"],
    ),
    "rows that differ in dtype": (
        lambda f: {"r": {"rows": npz(f, a=V, b=np.ones(2, "f4"))}},
        SourceError,
        ["in.npz[b], row 1", "float32", "in.npz[a] has int32"],
    ),
    "rows that differ in shape": (
        lambda f: {"r": {"rows": npz(f, a=V, b=np.ones((2, 3), "i4"))}},
        SourceError,
        ["in.npz[b], row 1", "shape (3,)"],
    ),
    "a single value for a row": (
        lambda f: {"r": {"rows": npz(f, a=V, b=np.int32(1))}},
        SourceError,
        ["in.npz[b]", "0-d"],
    ),
    "keys without offsets": (lambda f: npz(f, **{"r.values": V}), SchemaError, ["in.npz", "'r'", "found values"]),
    "keys with a bad name": (lambda f: npz(f, **{"a.b": V}), SchemaError, ["in.npz[a.b]", "bad column name 'a.b'"]),
    "keys in two ways": (
        lambda f: npz(f, **{"r.values": V, "r/values": V, "r.lengths": [12]}),
        SchemaError,
        ["in.npz", "'r/values' is there twice"],
    ),
    "a key for both": (
        lambda f: npz(f, **{"r": V, "r.values": V, "r.lengths": [12]}),
        SchemaError,
        ["in.npz", "array"],
    ),
    "keys that differ in rows": (
        lambda f: npz(f, **{"r.values": V, "r.lengths": [12], "n": [1, 2]}),
        SourceError,
        ["in.npz", "r has 1", "n has 2"],
    ),
    "lengths of an archive that do not sum up": (
        lambda f: npz(f, **{"r.values": V, "r.lengths": [11]}),
        SourceError,
        ["in.npz[r.lengths]: lengths sum up to 11", "in.npz[r.values] has 12 items"],
    ),
    "a bad name": (
        lambda f: {"a/b": {"values": f / "values.npy", "offsets": f / "offsets.npy"}},
        SchemaError,
        ["bad column name 'a/b'"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_descriptions_that_make_no_column(tmp_path: Path, name: str) -> None:
    make, error, mentions = WRONG[name]
    good(tmp_path)
    sources = make(tmp_path)
    assert_refused(error, lambda: ingest(sources, tmp_path / "s"), tmp_path, *mentions)
