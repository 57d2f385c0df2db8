"""Grain on ArrayRecord files: its own pipeline of rows, and the format's batched reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Job, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer

if TYPE_CHECKING:
    from grain.sources import ArrayRecordDataSource

NUMBER_NBYTES = 8


class Grain(Peer):
    """A pipeline over records, which it reads one by one. Threads that read ahead made it slower here."""

    name: ClassVar[str] = "Grain + ArrayRecord"
    distributions: ClassVar = ("grain", "array_record")
    imports: ClassVar = ("grain", "grain.sources", "array_record.python.array_record_module")
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows", "zstd"})
    lacks: ClassVar = {"takes": "as ArrayRecord's batched reads"}
    how: ClassVar[str] = "`MapDataset.source(records).shuffle(seed).batch(256, batch_fn=…)`, no read threads"
    sharded: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write records, each one its own group, as Grain asks for: a row's bytes, then its number."""
        from array_record.python.array_record_module import ArrayRecordWriter

        target.mkdir()
        job = data.job
        each = -(-job.rows // job.shards)
        options = "zstd:3,group_size:1" if job.layout == "zstd" else "uncompressed,group_size:1"
        writer = None
        for number, record in enumerate(_records(data)):
            if number % each == 0:
                if writer is not None:
                    writer.close()
                writer = ArrayRecordWriter(str(target / f"{number // each:05d}.array_record"), options)
            writer.write(record)
        writer.close()

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the files."""
        return _Pipeline(_source(target), data.job)


class ArrayRecord(Peer):
    """The same files, by what their readers have for many records at once, beside Grain's pipeline."""

    name: ClassVar[str] = "ArrayRecord, batched reads"
    distributions: ClassVar = Grain.distributions
    imports: ClassVar = Grain.imports
    stored_as: ClassVar[str | None] = Grain.name
    layouts: ClassVar = Grain.layouts
    how: ClassVar[str] = "`ArrayRecordDataSource.__getitems__(rows)` of a permutation"
    sharded: ClassVar[bool] = True

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the files."""
        return _Records(_source(target), data.job)


def _source(target: Path) -> ArrayRecordDataSource:
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource(sorted(map(str, target.glob("*.array_record"))))


def _records(data: Dumps) -> Iterator[bytes]:
    for block in data.blocks():
        numbers = np.ascontiguousarray(block["y"]).astype("<i8").tobytes()
        for place, row in enumerate(block["x"]):
            yield row.tobytes() + numbers[NUMBER_NBYTES * place : NUMBER_NBYTES * (place + 1)]


def _batch(records: Sequence[bytes], job: Job) -> Batch:
    """Return records as a batch, all of them at once."""
    import torch

    if job.layout == "ragged":
        offsets = np.cumsum([0, *(len(record) - NUMBER_NBYTES for record in records)])
        values = bytearray().join([record[:-NUMBER_NBYTES] for record in records])
        numbers = bytearray().join([record[-NUMBER_NBYTES:] for record in records])
        return {
            "values": torch.frombuffer(values, dtype=torch.uint8),
            "offsets": torch.from_numpy(offsets),
            "y": torch.frombuffer(numbers, dtype=torch.int64),
        }
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)
    x = table[:, :-NUMBER_NBYTES].copy().view(job.dtype).reshape(-1, *job.shape)
    return {"x": torch.from_numpy(x), "y": torch.from_numpy(table[:, -NUMBER_NBYTES:].copy().view(np.int64)[:, 0])}


class _Records(Dataset):
    def __init__(self, source: ArrayRecordDataSource, job: Job) -> None:
        self.source, self.job = source, job

    def shuffled(self, seed: int) -> Iterator[Batch]:
        order = np.random.default_rng(seed).permutation(self.job.rows)
        return (self.take(order[first : first + BATCH]) for first in range(0, self.job.rows, BATCH))

    def sequential(self) -> Iterator[Batch]:
        for first in range(0, self.job.rows, BATCH):
            rows = range(first, min(first + BATCH, self.job.rows))
            yield _batch(self.source.__getitems__(rows), self.job)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return _batch(self.source.__getitems__(rows.tolist()), self.job)


class _Pipeline(_Records):
    def shuffled(self, seed: int) -> Iterator[Batch]:
        import grain

        return self._batches(grain.MapDataset.source(self.source).shuffle(seed=seed))

    def sequential(self) -> Iterator[Batch]:
        import grain

        return self._batches(grain.MapDataset.source(self.source))

    def _batches(self, rows: Any) -> Iterator[Batch]:
        import grain

        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return iter(rows.batch(BATCH, batch_fn=partial(_batch, job=self.job)).to_iter_dataset(options))


PEERS = (Grain, ArrayRecord)
