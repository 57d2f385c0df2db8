"""MosaicML Streaming: MDS shards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Job, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.samples import collate


class MosaicML(Peer):
    """A dataset in MDS format, read in the loop's own process.

    Its shared memory and locks belong to one dataset of a process at a time, so that there is one for each mode.
    """

    name: ClassVar[str] = "MosaicML Streaming"
    distributions: ClassVar = ("mosaicml-streaming",)
    imports: ClassVar = ("benchmarks.suite.peers.streaming_import",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows", "zstd"})
    how: ClassVar[str] = '`StreamingDataLoader(StreamingDataset(…, shuffle_algo="naive"), 256)`, `ds[rows]`'
    slow_ingest: ClassVar[bool] = True
    sharded: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write samples one by one; arrays of a shape that the shards know, which is the fastest kind to read."""
        from streaming import MDSWriter

        job = data.job
        shape = ",".join(map(str, job.shape))
        columns = {"x": "bytes" if job.layout == "ragged" else f"ndarray:{job.dtype}:{shape}"}
        if job.layout != "windows":
            columns["y"] = "int64"
        compression = "zstd" if job.layout == "zstd" else None
        limit = max(1, -(-job.rows // job.shards)) * (job.row_nbytes + 12)
        with MDSWriter(out=str(target), columns=columns, compression=compression, size_limit=limit) as writer:
            for block in data.blocks():
                for x, y in zip(block["x"], np.asarray(block["y"]), strict=True):
                    writer.write({"x": x.tobytes() if job.layout == "ragged" else np.asarray(x), "y": y})

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Make a place for its locks and, if the shards are compressed, for what it makes of them."""
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        return _Shards(target, data.job)


class _Shards(Dataset):
    def __init__(self, target: Path, job: Job) -> None:
        self.target, self.job = target, job
        self.own = Path(tempfile.mkdtemp(prefix="cache-", dir=target))
        tempfile.tempdir = str(self.own)  # there it puts its locks
        self.dataset: Any = None

    def shuffled(self, seed: int) -> Iterator[Batch]:
        # Of its shuffles only this one mixes all rows; with local shards it costs no more than the others.
        return self._batches(shuffle=True, shuffle_algo="naive", shuffle_seed=seed)

    def sequential(self) -> Iterator[Batch]:
        return self._batches()

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return collate(self._open()[rows], self.job)

    def close(self) -> None:
        from streaming.base.util import clean_stale_shared_memory

        reading = getattr(self.dataset, "_iterator", None)
        if reading is not None:
            reading.exit()  # as the next epoch would: threads of one that was left go on, and make their locks anew
        self.dataset = None
        clean_stale_shared_memory()
        tempfile.tempdir = None
        shutil.rmtree(self.own)

    def _open(self, **options: Any) -> Any:
        """Return the dataset, which is opened only once: each further epoch is another one of its shuffle."""
        from streaming import StreamingDataset

        if self.dataset is None:
            # Compressed shards are unpacked beside them, and kept: in a place of each process's own.
            zipped = self.job.layout == "zstd"
            places = {"remote": str(self.target), "local": str(self.own / "shards")} if zipped else {}
            self.dataset = StreamingDataset(
                **(places or {"local": str(self.target)}), batch_size=BATCH, num_canonical_nodes=1, **options
            )
        return self.dataset

    def _batches(self, **options: Any) -> Iterator[Batch]:
        from streaming import StreamingDataLoader

        dataset = self._open(**options)
        gather = partial(collate, job=self.job)
        return iter(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, collate_fn=gather))


PEERS = (MosaicML,)
