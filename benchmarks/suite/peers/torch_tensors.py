"""torch: a TensorDataset in RAM behind a DataLoader, and a memory-mapped TensorDict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer

ROWS: frozenset[Layout] = frozenset({"array", "windows"})


def tensors_of(data: Dumps) -> dict[str, Any]:
    """Return all rows as torch tensors in RAM; uint16, which torch cannot index, as int16 of the same bits."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in data.table().items()}
    if data.job.dtype == "uint16":
        tensors["x"] = tensors["x"].view(torch.int16)
    return tensors


class TensorDataset(Peer):
    """A TensorDataset, whose rows the DataLoader collates."""

    name: ClassVar[str] = "torch TensorDataset"
    distributions: ClassVar = ("torch",)
    layouts: ClassVar = ROWS
    keeps_dumps: ClassVar[bool] = True
    how: ClassVar[str] = "`DataLoader(TensorDataset(x, y), batch_size=256, shuffle=True)`; takes: `dataset[rows]`"

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Load the dumps."""
        return self.loaded(data)

    @staticmethod
    def loaded(data: Dumps) -> _Loaded:
        """Return the dataset of all rows."""
        return _Loaded(data)


class TensorDatasetWorkers(TensorDataset):
    """The same with two worker processes."""

    name: ClassVar[str] = "torch TensorDataset, 2 workers"
    how: ClassVar[str] = "the same with `num_workers=2`"
    lacks: ClassVar = {"takes": "as without workers"}
    workers: ClassVar[int] = 2

    @staticmethod
    def loaded(data: Dumps) -> _Loaded:
        """Return the dataset of all rows, read by workers."""
        return _Loaded(data, num_workers=2)


class TensorDatasetBatches(TensorDataset):
    """A TensorDataset that is asked for whole batches."""

    name: ClassVar[str] = "torch TensorDataset, batch sampler"
    how: ClassVar[str] = (
        "`DataLoader(dataset, batch_size=None, sampler=BatchSampler(RandomSampler(dataset), 256, False))`"
    )
    lacks: ClassVar = {"takes": "as torch TensorDataset"}

    @staticmethod
    def loaded(data: Dumps) -> _Loaded:
        """Return the dataset of all rows, asked for batches."""
        return _Loaded(data, whole=True)


class _Loaded(Dataset):
    def __init__(self, data: Dumps, whole: bool = False, **options: Any) -> None:
        import torch.utils.data

        self.tensors = tensors_of(data)
        self.dataset = torch.utils.data.TensorDataset(*self.tensors.values())
        self.whole, self.options = whole, options
        self.dtype = getattr(torch, data.job.dtype)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        import torch.utils.data

        generator = torch.Generator()
        generator.manual_seed(seed)
        return self._batches(torch.utils.data.RandomSampler(self.dataset, generator=generator))

    def sequential(self) -> Iterator[Batch]:
        import torch.utils.data

        return self._batches(torch.utils.data.SequentialSampler(self.dataset))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        import torch

        return self._batch(self.dataset[torch.from_numpy(rows)])

    def _batches(self, sampler: Iterable[int]) -> Iterator[Batch]:
        from torch.utils.data import BatchSampler, DataLoader

        if self.whole:
            loader = DataLoader(self.dataset, batch_size=None, sampler=BatchSampler(sampler, BATCH, False))
        else:
            loader = DataLoader(self.dataset, BATCH, sampler=sampler, **self.options)
        return map(self._batch, loader)

    def _batch(self, tensors: Iterable[Any]) -> Batch:
        x, y = tensors
        return {"x": x.view(self.dtype), "y": y}


class MappedTensorDict(Peer):
    """A TensorDict in memory-mapped files."""

    name: ClassVar[str] = "tensordict memmap"
    distributions: ClassVar = ("tensordict",)
    imports: ClassVar = ("tensordict",)
    layouts: ClassVar = ROWS
    how: ClassVar[str] = "`TensorDict.load_memmap(path)[rows]` by a permutation"

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write a TensorDict of all rows."""
        from tensordict import TensorDict

        TensorDict(tensors_of(data), batch_size=[data.job.rows]).memmap(str(target))

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Map the files."""
        return _Mapped(target, data)


class _Mapped(Dataset):
    def __init__(self, target: Path, data: Dumps) -> None:
        import torch
        from tensordict import TensorDict

        self.rows = TensorDict.load_memmap(target)
        self.dtype = getattr(torch, data.job.dtype)

    def shuffled(self, seed: int) -> Iterator[Batch]:
        import torch

        generator = torch.Generator()
        generator.manual_seed(seed)
        for rows in torch.randperm(len(self.rows), generator=generator).split(BATCH):
            yield self._batch(self.rows[rows])

    def sequential(self) -> Iterator[Batch]:
        for part in self.rows.split(BATCH):
            yield self._batch(part.clone())

    def take(self, rows: NDArray[np.int64]) -> Batch:
        import torch

        return self._batch(self.rows[torch.from_numpy(rows)])

    def _batch(self, rows: Any) -> Batch:
        return {"x": rows["x"].view(self.dtype), "y": rows["y"]}


PEERS = (TensorDataset, TensorDatasetBatches, TensorDatasetWorkers, MappedTensorDict)
