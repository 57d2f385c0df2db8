"""All that reads a store, as one dict of objects, and what each of them reads as one number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shardstore
from shardstore import Ragged, Rowwise

ROWS = 1200
BATCH = 64
CODECS = ("raw", "zstd", "blosc:lz4")


def write_stores(folder: Path, shard_bytes: int = 1 << 12) -> None:
    """Write a store of each codec, with fixed, ragged and text columns, in several shards and chunks."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, 9, ROWS)
    items = np.arange(lengths.sum(), dtype=np.int32)
    for codec in CODECS:
        with shardstore.Writer(
            folder / codec, codec=codec, shard_bytes=shard_bytes, chunk_bytes=1 << 10, types={"text": "utf8"}
        ) as writer:
            writer.append(
                {
                    "x": np.arange(4 * ROWS, dtype=np.float32).reshape(ROWS, 4),
                    "y": np.arange(ROWS),
                    "tokens": np.split(items, np.cumsum(lengths)[:-1]),
                    "text": [f"row {row} " * (row % 3) for row in range(ROWS)],
                }
            )
    with shardstore.Writer(folder / "labels") as writer:
        writer.append({"label": random.integers(0, 10, ROWS)})


def scaled(rows: dict[str, Any]) -> dict[str, Any]:
    """Return a function of each row by itself."""
    return {"x": rows["x"] * 2, "y": rows["y"]}


def is_even(rows: dict[str, Any]) -> Any:
    """Return which rows have an even number."""
    return rows["y"] % 2 == 0


def make_readers(folder: Path) -> dict[str, Any]:
    """Return what reads the stores of a folder: stores, columns, views, a mixture, streams."""
    raw, zstd, blosc = (shardstore.open(folder / codec) for codec in CODECS)
    labels = shardstore.open(folder / "labels")
    streaming = shardstore.open(folder / "raw", access="streaming", memory_budget="64MiB")
    checked = shardstore.open(folder / "raw", verify="on_read")
    fixed = zstd.select("x", "y")
    readers: dict[str, Any] = {
        **{"raw": raw, "zstd": zstd, "blosc": blosc, "streaming": streaming, "checked": checked},
        "column": zstd["x"],
        "ragged column": raw["tokens"],
        "slice": zstd.rows(slice(10, -10, 3)),
        "listed rows": raw.rows([5, 3, 3, ROWS - 1]),
        "part": zstd.split(train=0.75, test=0.25)["test"],
        "stratified part": labels.split(stratify="label", train=0.75, test=0.25)["test"],
        "sample": raw.sample(500, seed=1),
        "where": raw.where(is_even, "y"),
        "join": raw.select("x", "y").join(labels),
        "windows": zstd.windows("tokens", 16),
        "windows within rows": raw.windows("tokens", 3, across_rows=False, positions=True),
        "mixture": shardstore.mix({raw: 2, zstd: 1}),
        "mixture stream": shardstore.mix({raw.select("x", "y"): 1, fixed: 1}).batches(BATCH, shuffle=True, prefetch=1),
    }
    for name in ("raw", "zstd", "streaming", "checked"):
        for shuffle in (False, "full", "window") if name in CODECS else ("full",):
            for prefetch in (0, 2):
                readers[f"stream of {name}, {shuffle}, {prefetch}"] = readers[name].batches(
                    BATCH, shuffle=shuffle, prefetch=prefetch, window_bytes=1 << 14
                )
    readers["rowwise stream"] = fixed.batches(BATCH, shuffle="full", transform=Rowwise(scaled, cache="64KiB"))
    return readers


def make_torch_readers(folder: Path) -> dict[str, Any]:
    """Return the datasets and loaders for torch over the stores of a folder."""
    from shardstore.torch import StoreIterableDataset, StoreLoader, StoreMapDataset

    zstd = shardstore.open(folder / "zstd")
    return {
        "batches": StoreIterableDataset(folder / "raw", BATCH, shuffle=True, columns=["x", "y"]),
        "ragged batches": StoreIterableDataset(zstd, BATCH, shuffle="window", window_bytes=1 << 14),
        "rows": StoreIterableDataset(zstd.select("x", "y"), shuffle="window", window_bytes=1 << 14),
        "numbered rows": StoreMapDataset(folder / "zstd", ["x", "y"]),
        "loader": StoreLoader(folder / "raw", BATCH, shuffle=True),
        "window loader": StoreLoader(zstd, BATCH, shuffle="window", window_bytes=1 << 14),
    }


def digest(reader: Any) -> str:
    """Read everything, an epoch of a stream from its beginning, and return what tells it from anything else."""
    found = hashlib.blake2b(digest_size=16)
    if isinstance(reader, shardstore.Mixture):
        reader = reader.batches(BATCH, shuffle=True)
    if hasattr(reader, "set_epoch"):
        reader.set_epoch(0)
        for item in reader:
            add(found, item)
        return found.hexdigest()
    count = len(reader)
    rows = np.random.default_rng(count).permutation(count)[:300]
    if not hasattr(reader, "take"):  # a dataset by number
        add(found, reader.__getitems__(rows.tolist()))
        rows = rows[:0]
    for index in (slice(None), slice(count // 3, count // 2), 0, rows):
        add(found, reader[index])
    return found.hexdigest()


def add(found: Any, value: Any) -> None:
    """Add arrays, tensors, ragged rows or text, and dicts, lists and tuples of these."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            found.update(name.encode())
            add(found, part)
    elif isinstance(value, list | tuple):
        for part in value:
            add(found, part)
    elif isinstance(value, str | bytes):
        found.update(value if isinstance(value, bytes) else value.encode())
    elif isinstance(value, Ragged) or hasattr(value, "offsets"):
        add(found, value.values)
        add(found, value.offsets)
    else:
        array: NDArray[Any] = np.ascontiguousarray(value)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
