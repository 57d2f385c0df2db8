"""zarr-python, TensorStore and xarray read what shardstore writes, bit for bit, and see damage."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import (
    CODECS,
    STORED_DTYPES,
    bit_numbers,
    compressible_array,
    flipped_bit,
    random_array,
    same_bytes,
    save_dumps,
    write_store,
)

import shardstore


def read_with_shardstore(store: Path, column: str) -> NDArray[Any]:
    with shardstore.open(store) as opened:
        return np.asarray(opened[column])


def read_with_store_zarr(store: Path, column: str) -> NDArray[Any]:
    with shardstore.open(store) as opened:
        return np.asarray(opened.zarr()[column])


def read_with_zarr(store: Path, column: str) -> NDArray[Any]:
    return np.asarray(zarr.open_group(store, mode="r")[column])


def read_array_with_zarr(store: Path, column: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(store / column, mode="r"))


def read_with_tensorstore(store: Path, column: str) -> NDArray[Any]:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store / column}/"}}
    return np.asarray(tensorstore.open(spec, read=True).result().read().result())


def read_with_open_zarr(store: Path, column: str) -> NDArray[Any]:
    with xarray.open_zarr(store) as dataset:
        return np.asarray(dataset[column].values)


def read_with_open_dataset(store: Path, column: str) -> NDArray[Any]:
    with xarray.open_dataset(store, engine="zarr") as dataset:
        return np.asarray(dataset[column].values)


Read = Callable[[Path, str], NDArray[Any]]
FOREIGN: list[Read] = [
    read_with_zarr,
    read_array_with_zarr,
    read_with_store_zarr,
    read_with_tensorstore,
    read_with_open_zarr,
    read_with_open_dataset,
]
every_reader = pytest.mark.parametrize("read", [read_with_shardstore, *FOREIGN])
every_codec = pytest.mark.parametrize("codec", [*CODECS, "zstd:22", "blosc:zlib:9"])


@pytest.fixture(scope="module", params=CODECS)
def images_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A store of uint8 images and labels from parallel files of uneven lengths, one of a single row, one empty."""
    folder = tmp_path_factory.mktemp("images")
    images, labels = compressible_array("uint8", (301, 28, 28)), compressible_array("uint8", (301,), 1)
    lengths = [120, 1, 0, 97, 83]
    sources = {
        "image": save_dumps(folder, "images", images, lengths),
        "label": save_dumps(folder, "labels", labels, lengths),
    }
    with shardstore.ingest(
        sources, folder / "store", codec=request.param, shard_bytes=64 * 784, chunk_bytes=3 * 784, progress=False
    ) as store:
        assert store.manifest.columns["image"].data.layout.num_shards(301) == 5
    return {"path": folder / "store", "image": images, "label": labels}


@pytest.fixture(scope="module", params=CODECS)
def flights_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A store of float32 rows with NaNs whose last column is an integer label."""
    folder = tmp_path_factory.mktemp("flights")
    table = np.random.default_rng(2).normal(0, 100, (1000, 12)).round(1).astype(np.float32)
    table[np.random.default_rng(3).random(table.shape) < 0.1] = np.nan
    table[::7, 3] = np.array([0xFFC12345], np.uint32).view(np.float32)  # a NaN with sign and payload
    table[:, -1] = np.arange(1000) % 2
    dumps = save_dumps(folder, "month", table, [400, 17, 583])
    with shardstore.ingest(
        dumps,
        folder / "store",
        split="x=:-1,y=-1@int64",
        codec=request.param,
        shard_bytes=256 * 44,
        chunk_bytes=1500,
        progress=False,
    ) as store:
        assert store.manifest.columns["x"].data.layout.num_shards(1000) == 4
    joined = np.concatenate([np.load(dump) for dump in dumps])
    return {"path": folder / "store", "x": joined[:, :-1].copy(), "y": joined[:, -1].astype(np.int64)}


@every_reader
def test_images_and_labels_are_the_concatenated_dumps(images_store: dict[str, Any], read: Read) -> None:
    for column in ("image", "label"):
        assert same_bytes(read(images_store["path"], column), images_store[column])


@every_reader
def test_flights_are_the_concatenated_dumps(flights_store: dict[str, Any], read: Read) -> None:
    for column in ("x", "y"):
        assert same_bytes(read(flights_store["path"], column), flights_store[column])


def check_foreign_readers(store: Path, columns: dict[str, NDArray[Any]]) -> None:
    for read in FOREIGN:
        for name, expected in columns.items():
            assert same_bytes(read(store, name), expected), (read.__name__, name)


@every_codec
def test_every_stored_dtype(tmp_path: Path, codec: str) -> None:
    columns = {f"a {dtype}": random_array(dtype, (19, 2), i) for i, dtype in enumerate(STORED_DTYPES)}
    write_store(tmp_path / "store", columns, codec, shard_bytes=16 * 32, chunk_bytes=100)
    check_foreign_readers(tmp_path / "store", columns)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [0, 1, 8, 9, 17])
def test_every_size_and_row_shape(tmp_path: Path, codec: str, rows: int) -> None:
    shapes: list[tuple[int, ...]] = [(), (3,), (1, 2), (0,), (2, 0, 3)]
    columns = {f"x{i}": random_array("int32", (rows, *shape), i) for i, shape in enumerate(shapes)}
    write_store(tmp_path / "store", columns, codec, shard_bytes=8 * 12, chunk_bytes=24)
    check_foreign_readers(tmp_path / "store", columns)


def test_logical_types_are_their_stored_numbers(tmp_path: Path) -> None:
    times, spans = random_array("datetime64[ms]", (9,)), random_array("timedelta64[s]", (9, 2))
    names = random_array("S3", (9,))
    write_store(tmp_path / "store", {"times": times, "spans": spans, "names": names})
    stored = {"times": times.view("i8"), "spans": spans.view("i8"), "names": names.view("u1").reshape(9, 3)}
    check_foreign_readers(tmp_path / "store", stored)


def test_single_rows_and_slices(flights_store: dict[str, Any]) -> None:
    path, expected = flights_store["path"], flights_store["x"]
    with_zarr = zarr.open_group(path, mode="r")["x"]
    with_tensorstore = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / 'x'}/"}}, read=True
    ).result()
    for part in (slice(0, 1), slice(255, 257), slice(999, 1000), slice(250, 770), slice(767, 768)):
        assert same_bytes(np.asarray(with_zarr[part]), expected[part])
        assert same_bytes(np.asarray(with_tensorstore[part].read().result()), expected[part])


def test_xarray_names_the_dimensions(images_store: dict[str, Any]) -> None:
    with xarray.open_zarr(images_store["path"]) as dataset:
        assert dict(dataset.sizes) == {"row": 301, "image_1": 28, "image_2": 28}
        assert dataset["image"].dims == ("row", "image_1", "image_2")
        assert dataset["label"].dims == ("row",)


def test_the_code_of_the_specification_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "format.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("dtype", STORED_DTYPES)
def test_a_missing_shard_file_shows_as_the_fill_value(tmp_path: Path, dtype: str) -> None:
    array = np.zeros(24, dtype)
    itemsize = array.itemsize
    write_store(tmp_path / "store", {"x": array}, shard_bytes=8 * itemsize, chunk_bytes=4 * itemsize)
    (tmp_path / "store/x/c/1").unlink()
    expected = array.copy()
    expected[8:16] = np.iinfo(dtype).max if array.dtype.kind in "iu" else True if dtype == "bool" else np.nan
    for read in FOREIGN:
        np.testing.assert_array_equal(read(tmp_path / "store", "x"), expected, err_msg=read.__name__)


@pytest.fixture(scope="module", params=["zstd", "blosc:lz4", "blosc:zstd"])
def compressed_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, NDArray[Any], int]:
    """A store of one shard, its values, and where its footer begins."""
    array = compressible_array("int32", (64, 8))
    path = write_store(tmp_path_factory.mktemp("compressed") / "store", {"x": array}, request.param, 2048, 512)
    with shardstore.open(path) as store:
        slots = store.manifest.columns["x"].data.layout.slots
    assert slots == 4
    return path, array, (path / "x/c/0/0").stat().st_size - (20 * slots + 4)


@pytest.mark.parametrize("read", [read_with_zarr, read_with_tensorstore])
@given(place=st.floats(0, 1, exclude_max=True), bit=bit_numbers)
def test_no_flipped_bit_of_a_compressed_chunk_is_read_as_data(
    compressed_store: tuple[Path, NDArray[Any], int], read: Read, place: float, bit: int
) -> None:
    path, expected, data_nbytes = compressed_store
    with flipped_bit(path / "x/c/0/0", int(place * data_nbytes), bit):
        try:
            found = read(path, "x")
        except (RuntimeError, ValueError):
            return
        # A few bits of a Zstandard frame's header mean nothing.
        assert same_bytes(found, expected)
