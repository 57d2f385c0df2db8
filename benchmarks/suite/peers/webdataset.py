"""WebDataset: samples in tar files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Job, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer, Unsupported
from benchmarks.suite.peers.samples import collate

BUFFER = 1_000
NO_TAKES = "no random access: tar files are read from the beginning"


class WebDataset(Peer):
    """Shards in tar format, read in the loop's own process."""

    name: ClassVar[str] = "WebDataset"
    distributions: ClassVar = ("webdataset",)
    imports: ClassVar = ("webdataset",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows"})
    lacks: ClassVar = {"takes": NO_TAKES, "zstd": "no zstd, only gzip"}
    mixes: ClassVar[str] = "shards, and a buffer of 1,000 rows"
    how: ClassVar[str] = "`WebDataset(urls, shardshuffle=n).shuffle(1000)`, `.map` of bytes to arrays, `.batched(256)`"
    slow_ingest: ClassVar[bool] = True
    sharded: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write a member of raw bytes for `x` and one for `y`: the cheapest to decode."""
        import webdataset

        target.mkdir()
        job = data.job
        each = -(-job.rows // job.shards)
        pattern = str(target / "%05d.tar")
        with webdataset.ShardWriter(pattern, maxcount=each, maxsize=1 << 40, verbose=0, mtime=0) as writer:
            for block in data.blocks():
                numbers = block["y"].tolist()
                for x, number in zip(block["x"], numbers, strict=True):
                    sample: dict[str, Any] = {"__key__": f"{number:09d}", "x": x.tobytes()}
                    if job.layout != "windows":
                        sample["y"] = number.to_bytes(8, "little")
                    writer.write(sample)

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Find the shards."""
        return _Tars(sorted(map(str, target.glob("*.tar"))), data.job)


class _Tars(Dataset):
    def __init__(self, paths: list[str], job: Job) -> None:
        self.paths, self.job = paths, job

    def shuffled(self, seed: int) -> Iterator[Batch]:
        import webdataset

        rows = webdataset.WebDataset(self.paths, shardshuffle=len(self.paths), seed=seed)
        return self._batches(rows.shuffle(BUFFER, rng=random.Random(seed)))

    def sequential(self) -> Iterator[Batch]:
        import webdataset

        return self._batches(webdataset.WebDataset(self.paths, shardshuffle=False))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        raise Unsupported(NO_TAKES)

    def _batches(self, rows: Any) -> Iterator[Batch]:
        return iter(rows.map(self._decode).batched(BATCH, collation_fn=self._collate))

    def _decode(self, sample: dict[str, Any]) -> dict[str, Any]:
        x = sample["x"]
        decoded = {"x": x if self.job.layout == "ragged" else np.frombuffer(x, self.job.dtype)}
        if "y" in sample:
            decoded["y"] = int.from_bytes(sample["y"], "little")
        return decoded

    def _collate(self, samples: list[dict[str, Any]]) -> Batch:
        return collate(samples, self.job)


PEERS = (WebDataset,)
