"""Every dtype that a column can have beside integers and floats, bit for bit: written, read, in torch, exported, again.

One store a codec holds all of them, as fixed and as ragged columns, with NaN and NaT of any payload among the values.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from numpy.typing import NDArray
from stores import CODECS, random_array, same_bytes, tensor_bytes

import shardstore
from shardstore import Ragged
from shardstore.export import export_npy
from shardstore.schema import EXTENDED_DTYPES, Field

TIMES = ("datetime64[D]", "datetime64[ns]", "datetime64[25s]", "timedelta64[ms]")
DTYPES = ("bool", "complex64", "complex128", *TIMES, "S1", "S5", *EXTENDED_DTYPES)
ROWS = 40
Columns = dict[str, Any]


def column_name(dtype: str) -> str:
    return dtype.replace("[", " ").replace("]", "")


def special_bits(dtype: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Return random bits, among them those of NaN with sign and payload, of NaT and of zeros."""
    array = random_array(dtype, shape, seed)
    items = array.view(np.uint8).reshape(-1, array.dtype.itemsize)
    items[0] = 1 if dtype == "bool" else 0xFF
    items[1] = 0
    items[1, -1] = 1 if dtype == "bool" else 0x80
    return array


@pytest.fixture(scope="module")
def columns() -> Columns:
    """A fixed column of pairs and a ragged column of each dtype."""
    counts = np.random.default_rng(0).integers(0, 9, ROWS)
    found: Columns = {}
    for seed, dtype in enumerate(DTYPES):
        found[column_name(dtype)] = special_bits(dtype, (ROWS, 2), seed)
        found[f"r {column_name(dtype)}"] = Ragged.from_lengths(special_bits(dtype, (counts.sum(),), seed + 99), counts)
    return found


@pytest.fixture(scope="module", params=CODECS)
def path(request: pytest.FixtureRequest, columns: Columns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logical") / "s"
    with shardstore.Writer(path, codec=request.param, shard_bytes=512, chunk_bytes=64) as writer:
        for start in (0, 13, 26):
            stop = start + 13 if start < 26 else ROWS
            writer.append({name: rows[start:stop] for name, rows in columns.items()})
    return path


def check(found: Any, expected: Any) -> None:
    """Hold a column's rows against what was written."""
    if isinstance(expected, Ragged):
        assert isinstance(found, Ragged)
        assert same_bytes(found.offsets, expected.offsets)
        found, expected = found.values, expected.values
    assert same_bytes(found, expected)


def stored(rows: NDArray[Any]) -> NDArray[Any]:
    """Return an array as the one of numbers that carries it."""
    field = Field.of("x", rows.dtype, rows.shape[1:])
    return rows.reshape(-1).view(field.stored_dtype).reshape(len(rows), *field.stored_row_shape)


def test_numpy_gets_what_was_written(path: Path, columns: Columns) -> None:
    store = shardstore.open(path)
    assert store.verify(progress=False).ok
    assert list(store.columns) == list(columns)
    some = np.array([5, 0, 39, 5])
    for name, rows in columns.items():
        assert store.schema[name].dtype == rows.dtype
        assert store.schema[name].kind == ("ragged" if isinstance(rows, Ragged) else "fixed")
        check(store[name][:], rows)
        check(store[name][some], rows[some])
        assert store[name][7].tobytes() == rows[7].tobytes()
    start = 0
    for batch in store.batches(7):
        for name, rows in columns.items():
            check(batch[name], rows[start : start + 7])
        start += 7


# torch


def check_tensor(found: Any, rows: NDArray[Any]) -> None:
    import torch

    numbers = stored(rows)
    dtype = rows.dtype if rows.dtype.name in EXTENDED_DTYPES else numbers.dtype
    assert found.dtype == getattr(torch, dtype.name)
    assert tuple(found.shape) == numbers.shape
    assert tensor_bytes(found) == numbers.tobytes()


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_torch_gets_the_same_bits(path: Path, columns: Columns, workers: int | None) -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    from shardstore.torch import StoreIterableDataset, StoreLoader

    batches: Any = StoreLoader(path, 7)
    if workers is not None:
        dataset = StoreIterableDataset(path, 7)
        batches = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    start = 0
    for batch in batches:
        for name, rows in columns.items():
            part = rows[start : start + 7]
            if isinstance(part, Ragged):
                check_tensor(batch[name].values, part.values)
                assert batch[name].offsets.tolist() == part.offsets.tolist()
            else:
                check_tensor(batch[name], part)
        start += 7
    assert start >= ROWS


@pytest.mark.parametrize("workers", [0, 1])
def test_torch_collates_rows_of_the_same_bits(path: Path, columns: Columns, workers: int) -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    from shardstore.torch import PadCollate, StoreMapDataset

    dataset = StoreMapDataset(path)
    (batch,) = torch.utils.data.DataLoader(dataset, ROWS, collate_fn=PadCollate(fill=1), num_workers=workers)
    for name, rows in columns.items():
        if not isinstance(rows, Ragged):
            check_tensor(batch[name], rows)
        elif rows.dtype.kind not in "SmM":  # which NumPy fills with a text or a time instead of a number
            padded, own = rows.to_padded(1)
            check_tensor(batch[name], padded.reshape(ROWS, -1))
            assert batch[f"{name}_length"].tolist() == own.tolist()


# Export, and back again


def test_exported_arrays_make_the_same_store_again(path: Path, columns: Columns, tmp_path: Path) -> None:
    store = shardstore.open(path)
    export_npy(store, tmp_path / "out", progress=False)
    again: Columns = {}
    for name, rows in columns.items():
        # What NumPy's files have no name for is there as its stored integers.
        is_extended = rows.dtype.name in EXTENDED_DTYPES
        values = rows.values if isinstance(rows, Ragged) else rows
        expected = stored(values) if is_extended else values
        if isinstance(rows, Ragged):
            found = np.load(tmp_path / "out" / f"{name}.values.npy")
            offsets = np.load(tmp_path / "out" / f"{name}.offsets.npy")
            assert same_bytes(offsets, rows.offsets)
            again[name] = Ragged(found, offsets)
        else:
            found = again[name] = np.load(tmp_path / "out" / f"{name}.npy")
        assert same_bytes(found, expected)
    assert len(list((tmp_path / "out").glob("*.npy"))) == 3 * len(DTYPES)
    types = {column_name(dtype): dtype for dtype in DTYPES}
    types |= {f"r {name}": f"ragged[{dtype}]" for name, dtype in types.items()}
    with shardstore.Writer(tmp_path / "again", types=types, shard_bytes=512, chunk_bytes=64) as writer:
        writer.append(again)
    copy = shardstore.open(tmp_path / "again")
    assert copy.schema == store.schema
    for name, rows in columns.items():
        check(copy[name][:], rows)


def test_dumps_are_ingested(columns: Columns, tmp_path: Path) -> None:
    names = [
        name
        for name, rows in columns.items()
        if isinstance(rows, np.ndarray) and rows.dtype.name not in EXTENDED_DTYPES
    ]
    assert len(names) == len(DTYPES) - len(EXTENDED_DTYPES)
    for name in names:
        np.save(tmp_path / f"{name}.npy", columns[name])
    sources = {name: str(tmp_path / f"{name}.npy") for name in names}
    store = shardstore.ingest(sources, tmp_path / "s", progress=False)
    for name in names:
        check(store[name][:], columns[name])


def test_strings_and_categories_are_exported_and_written_again(tmp_path: Path) -> None:
    texts, animals = ["é", "", "abc", "d" * 20], ["dog", "cat", "dog", "éel"]
    types = {"kind": "categorical"}
    with shardstore.Writer(tmp_path / "s", types=types) as writer:
        writer.append({"text": texts, "blob": [text.encode() for text in texts], "kind": animals})
    store = shardstore.open(tmp_path / "s")
    export_npy(store, tmp_path / "out", progress=False)
    arrays = {file.name.removesuffix(".npy"): np.load(file) for file in (tmp_path / "out").glob("*.npy")}
    names = arrays["kind.categories"].tolist()
    with shardstore.Writer(
        tmp_path / "again", types={"text": "utf8", "blob": "binary", "kind": shardstore.Categorical(names)}
    ) as writer:
        rows: Columns = {name: Ragged(arrays[f"{name}.values"], arrays[f"{name}.offsets"]) for name in ("text", "blob")}
        writer.append({**rows, "kind": arrays["kind"]})
    again = shardstore.open(tmp_path / "again")
    assert again["text"][:].to_list() == texts
    assert again["blob"][:].to_list() == [text.encode() for text in texts]
    assert again["kind"].decode(again["kind"][:]).tolist() == animals
    assert again["kind"].categories == store["kind"].categories


# Other libraries


def foreign_arrays(columns: Columns) -> dict[str, NDArray[Any]]:
    """Return the arrays of numbers that other libraries see, by path."""
    arrays = {}
    for name, rows in columns.items():
        if isinstance(rows, Ragged):
            arrays[f"{name}/values"] = stored(rows.values)
            arrays[f"{name}/ranges"] = np.stack([rows.offsets[:-1], rows.offsets[1:]], axis=1)
        else:
            arrays[name] = stored(rows)
    return arrays


@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_sees_the_stored_numbers(path: Path, columns: Columns, consolidated: bool, tmp_path: Path) -> None:
    if not consolidated:
        # Nothing but the documents of the arrays and groups themselves.
        path = shutil.copytree(path, tmp_path / "s")
        document = json.loads((path / "zarr.json").read_bytes())
        del document["consolidated_metadata"]
        (path / "zarr.json").write_text(json.dumps(document))
    group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
    for name, expected in foreign_arrays(columns).items():
        found: Any = group
        for part in name.split("/"):
            found = found[part]
        assert same_bytes(np.asarray(found), expected), name
        assert same_bytes(np.asarray(zarr.open_array(path / name, mode="r")), expected), name


def test_tensorstore_sees_the_stored_numbers(path: Path, columns: Columns) -> None:
    for name, expected in foreign_arrays(columns).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / name}/"}}
        found = tensorstore.open(spec, read=True).result().read().result()
        assert same_bytes(np.asarray(found), expected), name


def test_xarray_sees_the_stored_numbers(path: Path, columns: Columns) -> None:
    """A ragged column is a group of its own, with the same dimension `row`: a node of a tree."""
    arrays = foreign_arrays(columns)
    with xarray.open_zarr(path) as dataset:
        assert sorted(map(str, dataset)) == sorted(name for name in arrays if "/" not in name)
        assert dataset.sizes["row"] == ROWS
        for name in dataset:
            assert same_bytes(dataset[name].values, arrays[str(name)])
    with xarray.open_datatree(path, engine="zarr") as tree:
        for name, expected in arrays.items():
            assert same_bytes(tree[name].values, expected)
        assert tree["r bfloat16/ranges"].dims[0] == "row"
        assert tree["r bfloat16/values"].dims == ("item",)
    with xarray.open_zarr(path, group="r bfloat16") as dataset:
        assert sorted(map(str, dataset)) == ["ranges", "values"]


def test_other_libraries_see_numbers_of_categories_and_bytes_of_strings(tmp_path: Path) -> None:
    types = {"kind": shardstore.Categorical(["cat", "dog"])}
    with shardstore.Writer(tmp_path / "s", types=types) as writer:
        writer.append({"kind": ["dog", "cat", "dog"], "text": ["é", "", "a"]})
    group: Any = zarr.open_group(tmp_path / "s", mode="r")
    assert same_bytes(np.asarray(group["kind"]), np.array([1, 0, 1], np.uint8))
    assert group["text"]["values"][:].tobytes() == "éa".encode()
    assert group["text"]["ranges"][:].tolist() == [[0, 2], [2, 2], [2, 3]]
    with xarray.open_zarr(tmp_path / "s") as dataset:
        assert dataset["kind"].values.tolist() == [1, 0, 1]
