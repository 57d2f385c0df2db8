"""Small stores and dumps for tests, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstore
from shardstore.schema import dtype_named

CODECS = ("raw", "zstd", "blosc:lz4")
STORED_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
LOGICAL_DTYPES = ("datetime64[ns]", "datetime64[25s]", "timedelta64[ms]", "S1", "S5")

bit_numbers = st.integers(0, 7)


def random_array(dtype: str | np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Return an array of random bits: every NaN, NaT and infinity may be among its values."""
    spec = dtype_named(dtype) if isinstance(dtype, str) else dtype
    size = int(np.prod(shape))
    data = np.random.default_rng(seed).integers(0, 256, size * spec.itemsize, np.uint8)
    if spec.kind == "b":
        data &= 1
    return data.view(spec).reshape(shape)


def compressible_array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Return an array that compressors make smaller."""
    return np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)


def write_store(
    path: Path, columns: Mapping[str, NDArray[Any]], codec: str = "raw", shard_bytes: int = 512, chunk_bytes: int = 64
) -> Path:
    """Write a store with the sizes that tests need: some rows a chunk, some chunks a shard."""
    with shardstore.Writer(path, codec=codec, shard_bytes=shard_bytes, chunk_bytes=chunk_bytes) as writer:
        writer.append(columns)
    return path


def save_dumps(folder: Path, name: str, array: NDArray[Any], lengths: list[int]) -> list[Path]:
    """Save an array's rows as `NAME-0.npy`, `NAME-1.npy`, … with the given numbers of rows."""
    assert sum(lengths) == len(array)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{i}.npy" for i in range(len(lengths))]
    for path, part in zip(paths, np.split(array, np.cumsum(lengths)[:-1]), strict=True):
        np.save(path, part)
    return paths


def same_bytes(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def manifest_crc32c(body: Mapping[str, Any]) -> int:
    """Return the checksum that a manifest must carry."""
    rest = {key: value for key, value in body.items() if key != "crc32c"}
    return int(google_crc32c.value(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()))


def edit_group(store: Path, change: Callable[[Any], None]) -> None:
    """Change a group's `zarr.json` and leave its checksum as it is."""
    path = store / "zarr.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def edit_manifest(store: Path, change: Callable[[Any], None]) -> None:
    """Change a store's manifest and make its checksum fit again."""

    def edit(document: Any) -> None:
        manifest = document["attributes"]["shardstore"]
        change(manifest)
        manifest["crc32c"] = manifest_crc32c(manifest)

    edit_group(store, edit)


@contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Give a file other content, or remove it for None, and put it back at the end."""
    original = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


@contextmanager
def flipped_bit(path: Path, offset: int, bit: int) -> Iterator[None]:
    """Flip one bit of a file, and flip it back at the end."""
    flip_bit(path, offset, bit)
    try:
        yield
    finally:
        flip_bit(path, offset, bit)


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def random_rows(
    counts: Iterable[int], dtype: str | np.dtype[Any], item_shape: tuple[int, ...] = (), seed: int = 0
) -> list[NDArray[Any]]:
    """Return arrays of random bits, one a row, of so many items each."""
    lengths = list(counts)
    values = random_array(dtype, (sum(lengths), *item_shape), seed)
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


def tensor_bytes(tensor: Any) -> bytes:
    """Return the bytes of a tensor of any dtype."""
    import torch

    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if len(flat) else b""
