"""shardstore: `store.batches`, and its two ways into PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer

if TYPE_CHECKING:
    from shardstore import Store, View

ALL_LAYOUTS: frozenset[Layout] = frozenset({"array", "ragged", "windows", "zstd"})


class Shardstore(Peer):
    """A store, read in the loop's own thread."""

    name: ClassVar[str] = "shardstore"
    distributions: ClassVar = ("shardstore",)
    imports: ClassVar = ("google_crc32c", "numcodecs.zstd")
    layouts: ClassVar = ALL_LAYOUTS
    mixes: ClassVar[str] = "all rows (zstd: windows of 64 MiB)"
    how: ClassVar[str] = "`store.batches(256, shuffle=True)`, `store.take(rows)`; tokens: `store.windows`"
    sharded: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Ingest the dumps."""
        import shardstore

        job = data.job
        sources: dict[str, Any]
        if job.layout == "windows":
            sources = {"x": {"values": data.paths("tokens"), "offsets": data.paths("offsets")}}
        elif job.layout == "ragged":
            sources = {"x": {"values": data.paths("values"), "offsets": data.paths("offsets")}, "y": data.paths("y")}
        else:
            sources = {"x": data.paths("x"), "y": data.paths("y")}
        shardstore.ingest(
            sources,
            target,
            codec="zstd" if job.layout == "zstd" else "raw",
            shard_bytes=max(1, -(-job.rows // job.shards)) * job.row_nbytes,
            progress=False,
        ).close()

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the store."""
        return _Stored(*_rows_of(target, data))


def _rows_of(target: Path, data: Dumps) -> tuple[Store, Store | View]:
    import shardstore

    store = shardstore.open(target)
    return store, store.windows("x", data.job.shape[0]) if data.job.layout == "windows" else store


def _tensors(batch: dict[str, Any]) -> Batch:
    import torch

    tensors = {}
    for name, rows in batch.items():
        if isinstance(rows, np.ndarray):
            tensors[name] = torch.from_numpy(rows)
        else:
            tensors["values"], tensors["offsets"] = torch.from_numpy(rows.values), torch.from_numpy(rows.offsets)
    return tensors


class _Stored(Dataset):
    def __init__(self, store: Store, rows: Store | View) -> None:
        self.store, self.rows = store, rows

    def shuffled(self, seed: int) -> Iterator[Batch]:
        return map(_tensors, self.rows.batches(BATCH, shuffle=True, seed=seed))

    def sequential(self) -> Iterator[Batch]:
        return map(_tensors, self.rows.batches(BATCH))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return _tensors(self.rows.take(rows))

    def close(self) -> None:
        self.store.close()


class _Iterated(_Stored):
    """A store behind an iterable of torch: a dataset or a loader, by the name of its class."""

    def __init__(self, store: Store, rows: Store | View, kind: str) -> None:
        super().__init__(store, rows)
        self.kind = kind

    def shuffled(self, seed: int) -> Iterator[Batch]:
        return self._batches(shuffle=True, seed=seed)

    def sequential(self) -> Iterator[Batch]:
        return self._batches(shuffle=False)

    def _batches(self, **options: Any) -> Iterator[Batch]:
        import shardstore.torch

        return map(_split_ragged, getattr(shardstore.torch, self.kind)(self.rows, batch_size=BATCH, **options))


def _split_ragged(batch: dict[str, Any]) -> Batch:
    rows = batch["x"]
    if hasattr(rows, "offsets"):
        return {"values": rows.values, "offsets": rows.offsets, "y": batch["y"]}
    return batch


class _Torch(Shardstore):
    stored_as: ClassVar[str | None] = "shardstore"
    lacks: ClassVar = {"takes": "as `store.take`"}
    kind: ClassVar[str]

    def open(self, target: Path, data: Dumps) -> Dataset:
        return _Iterated(*_rows_of(target, data), self.kind)


class StoreLoader(_Torch):
    """A store, read ahead by a thread."""

    name: ClassVar[str] = "shardstore StoreLoader"
    how: ClassVar[str] = "`StoreLoader(store, 256, shuffle=True)`: a thread reads ahead"
    kind: ClassVar[str] = "StoreLoader"


class StoreIterableDataset(_Torch):
    """A store as a dataset of torch, iterated over without workers."""

    name: ClassVar[str] = "shardstore StoreIterableDataset"
    how: ClassVar[str] = "`StoreIterableDataset(store, batch_size=256, shuffle=True)`, without workers"
    kind: ClassVar[str] = "StoreIterableDataset"


PEERS = (Shardstore, StoreLoader, StoreIterableDataset)
OURS = Shardstore.name
"""What the others are compared with."""
