"""LitData: chunks that are streamed, with the rows of a chunk shuffled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, BLOCK_NBYTES, Dumps, Job, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.samples import collate

if TYPE_CHECKING:
    import litdata

CHUNK_NBYTES = 64_000_000


class LitData(Peer):
    """A dataset that `optimize` has written, read in the loop's own process, shuffled as it is by default."""

    name: ClassVar[str] = "LitData"
    distributions: ClassVar = ("litdata",)
    imports: ClassVar = ("litdata",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows", "zstd"})
    mixes: ClassVar[str] = "chunks, blocks of 256 rows in each, rows of a block"
    how: ClassVar[str] = "`StreamingDataLoader(StreamingDataset(…, shuffle=True), 256)`, `ds[i]`; `TokensLoader`"
    slow_ingest: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Let `optimize` write chunks of 64 MB, by one worker, which keeps the order of rows."""
        import litdata

        target.mkdir()
        caches = target.with_name(f"{target.name}-caches")
        for variable in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
            os.environ[variable] = str(caches / variable.lower())
        tokens = data.job.layout == "windows"
        size = {"chunk_size": CHUNK_NBYTES // 2} if tokens else {"chunk_bytes": CHUNK_NBYTES}
        litdata.optimize(
            fn=partial(_token_pieces if tokens else _samples, data),
            inputs=[0],
            output_dir=str(target),
            num_workers=1,
            keep_data_ordered=True,
            compression="zstd" if data.job.layout == "zstd" else None,
            item_loader=_item_loader(data.job),
            verbose=False,
            **size,
        )

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the dataset, for random access; each epoch opens another one."""
        return _Streamed(target, data.job)


class LitDataChunks(LitData):
    """The same files, with a full shuffle of each chunk. Rows are decoded one by one: blocks would be in vain."""

    name: ClassVar[str] = "LitData, full shuffle of chunks"
    stored_as: ClassVar[str | None] = LitData.name
    mixes: ClassVar[str] = "chunks, and all rows of each"
    lacks: ClassVar = {"windows": "as LitData", "sequential": "as LitData", "takes": "as LitData"}
    how: ClassVar[str] = '`StreamingDataset(…, shuffle=True, item_shuffle_window="full", batch_decode=0)`'

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the dataset."""
        return _Streamed(target, data.job, item_shuffle_window="full", batch_decode=0)


def _samples(data: Dumps, _: int) -> Iterator[dict[str, Any]]:
    """Yield rows one by one."""
    for block in data.blocks():
        for x, y in zip(block["x"], block["y"].tolist(), strict=True):
            yield {"x": x.tobytes() if data.job.layout == "ragged" else np.array(x), "y": y}


def _token_pieces(data: Dumps, _: int) -> Iterator[Any]:
    """Yield the tokens in pieces that hold whole windows: what is left at the end of a chunk would be lost."""
    import torch

    length = data.job.shape[0]
    pieces = max(1, min(BLOCK_NBYTES // data.job.row_nbytes, CHUNK_NBYTES // 2 // length))
    for block in data.blocks(pieces):
        yield torch.from_numpy(block["x"].reshape(-1).copy())


def _item_loader(job: Job) -> Any:
    import litdata

    return litdata.TokensLoader(block_size=job.shape[0]) if job.layout == "windows" else None


class _Streamed(Dataset):
    def __init__(self, target: Path, job: Job, **shuffle: Any) -> None:
        self.target, self.job, self.shuffle = target, job, shuffle
        # By default a block of 256 rows is decoded for each of them.
        self.random = self._dataset(batch_decode=0)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        return self._batches(self._dataset(shuffle=True, seed=seed, **self.shuffle))

    def sequential(self) -> Iterator[Batch]:
        return self._batches(self._dataset())

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return self._collate([self.random[row] for row in rows.tolist()])

    def _dataset(self, **options: Any) -> litdata.StreamingDataset:
        import litdata

        loader = _item_loader(self.job)
        return litdata.StreamingDataset(str(self.target), item_loader=loader, drop_last=False, **options)

    def _batches(self, dataset: litdata.StreamingDataset) -> Iterator[Batch]:
        import litdata

        return iter(litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=self._collate))

    def _collate(self, samples: list[Any]) -> Batch:
        import torch

        return {"x": torch.stack(samples)} if self.job.layout == "windows" else collate(samples, self.job)


PEERS = (LitData, LitDataChunks)
