"""Ingest real dumps and read them back through every reader there is; all must agree byte for byte with NumPy.

    python tools/compare_readers.py 'x=images-*.npy' 'y=labels-*.npy'
    python tools/compare_readers.py 'data=flights-*.npy'

Each argument is a column and its files. For raw, zstd and blosc, the store is compared with NumPy's concatenation of
the files through shardstore, zarr-python, TensorStore, xarray and, where raw, a bare `np.memmap` of each shard file.
Needs the `test` extra. Exits with 1 if anything differs.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import xarray
from numpy.typing import NDArray

import shardstore
from shardstore.sources.paths import find_files

Read = Callable[[shardstore.Store, str], NDArray[Any]]


def through_shardstore(store: shardstore.Store, name: str) -> NDArray[Any]:
    """Read a column in slices and by shuffled gathers, which must agree."""
    whole = np.asarray(store[name])
    rows = np.random.default_rng(0).permutation(len(store))
    gathered = np.empty_like(whole)
    gathered[rows] = store[name].take(rows)
    assert gathered.tobytes() == whole.tobytes()
    return whole


def through_zarr(store: shardstore.Store, name: str) -> NDArray[Any]:
    """Read a column with zarr-python."""
    return np.asarray(store.zarr()[name][...])


def through_tensorstore(store: shardstore.Store, name: str) -> NDArray[Any]:
    """Read a column with TensorStore."""
    path = str(store.path.absolute() / name)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    return np.asarray(tensorstore.open(spec, read=True).result().read().result())


def through_xarray(store: shardstore.Store, name: str) -> NDArray[Any]:
    """Read a column with xarray."""
    with xarray.open_zarr(store.path, chunks=None, mask_and_scale=False) as dataset:
        return np.asarray(dataset[name].values)


def through_memmap(store: shardstore.Store, name: str) -> NDArray[Any]:
    """Map each shard file from byte 0, without any library that knows the format."""
    layout = store.manifest.columns[name].data.layout
    shards = [
        np.memmap(
            store.path / layout.shard_key(shard),
            layout.field.dtype,
            "r",
            shape=(layout.rows_in_shard(shard, len(store)), *layout.field.row_shape),
        )
        for shard in range(layout.num_shards(len(store)))
    ]
    return np.concatenate(shards)


READERS: dict[str, Read] = {
    "shardstore": through_shardstore,
    "zarr-python": through_zarr,
    "TensorStore": through_tensorstore,
    "xarray": through_xarray,
    "np.memmap": through_memmap,
}


def compare(sources: dict[str, str], shard_bytes: str) -> int:
    """Compare all readers for all codecs, print a line each, and return how many differ."""
    expected = {name: np.concatenate([np.load(file) for file in find_files(glob)]) for name, glob in sources.items()}
    wrong = 0
    for codec in ("raw", "zstd", "blosc:lz4"):
        with tempfile.TemporaryDirectory() as folder:
            store = shardstore.ingest(sources, Path(folder) / "store", codec=codec, shard_bytes=shard_bytes)
            assert store.verify().ok
            for reader, read in READERS.items():
                if reader == "np.memmap" and codec != "raw":
                    continue
                for name, array in expected.items():
                    found = read(store, name)
                    same = found.dtype == array.dtype and found.shape == array.shape
                    same = same and found.tobytes() == array.tobytes()
                    wrong += not same
                    shards = len(store.manifest.columns[name].data.nbytes)
                    print(
                        f"{codec:10} {reader:12} {name}: {array.dtype} {array.shape}, {shards} shards: "
                        f"{'equal' if same else 'DIFFERENT'}"
                    )
    return wrong


def main() -> None:
    """Run from the command line."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    sources = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not sources:
        sys.exit(__doc__)
    sys.exit(1 if sum(compare(sources, shard_bytes) for shard_bytes in ("256MiB", "1MiB")) else 0)


if __name__ == "__main__":
    main()
