"""np.memmap: one file a column, and one file a shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.arrays import Documents, Rows


def joined(data: Dumps, name: str, path: Path) -> None:
    """Write all dumps of one name end to end as one `.npy`."""
    parts = [np.load(part, mmap_mode="r") for part in data.paths(name)]
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    whole = np.lib.format.open_memmap(path, "w+", parts[0].dtype, shape)
    first = 0
    for part in parts:
        whole[first : first + len(part)] = part
        first += len(part)
    whole.flush()


class OneMemmap(Peer):
    """A memory-mapped file for each column."""

    name: ClassVar[str] = "one np.memmap"
    distributions: ClassVar = ("numpy",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows"})
    how: ClassVar[str] = "fancy indexing by a permutation; documents and tokens: a slice for each"

    def ingest(self, data: Dumps, target: Path) -> None:
        """Join the dumps."""
        target.mkdir()
        layout = data.job.layout
        for name in {"ragged": ("values", "y"), "windows": ("tokens",)}.get(layout, ("x", "y")):
            joined(data, name, target / f"{name}.npy")
        if layout == "ragged":
            np.save(target / "offsets.npy", data.offsets())

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Map the files."""
        maps = {path.stem: np.load(path, mmap_mode="r") for path in target.iterdir()}
        if data.job.layout == "ragged":
            return Documents(maps["values"], maps["offsets"], maps["y"])
        if data.job.layout == "windows":
            return TokenSlices(maps["tokens"], data.job.rows, data.job.shape[0])
        return Rows(maps, data.job.rows, fancy=True)


class TokenSlices(Dataset):
    """Windows of one long array of tokens, a slice for each: the usual loop of language models."""

    def __init__(self, tokens: NDArray[np.uint16], count: int, length: int) -> None:
        self.tokens, self.count, self.length = tokens, count, length

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Slice by a permutation."""
        order = np.random.default_rng(seed).permutation(self.count)
        return (self.take(order[first : first + BATCH]) for first in range(0, self.count, BATCH))

    def sequential(self) -> Iterator[Batch]:
        """Copy one slice a batch."""
        import torch

        items = BATCH * self.length
        for first in range(0, self.count * self.length, items):
            last = min(first + items, self.count * self.length)
            yield {"x": torch.from_numpy(self.tokens[first:last].copy().reshape(-1, self.length))}

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Slice each window, and stack the slices."""
        import torch

        starts = (rows * self.length).tolist()
        return {"x": torch.from_numpy(np.stack([self.tokens[start : start + self.length] for start in starts]))}


class MemmapPerShard(Peer):
    """A memory-mapped file for each shard of a column."""

    name: ClassVar[str] = "np.memmap per shard"
    distributions: ClassVar = ("numpy",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "windows"})
    how: ClassVar[str] = "rows sorted and split by shard, fancy indexing in each"
    sharded: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Cut the rows into files of so many."""
        target.mkdir()
        each = -(-data.job.rows // data.job.shards)
        for name, rows in data.table().items():
            for number, first in enumerate(range(0, len(rows), each)):
                np.save(target / f"{name}-{number:05d}.npy", rows[first : first + each])

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Map the files."""
        names = ("x", "y")
        return Shards({name: [np.load(p, mmap_mode="r") for p in sorted(target.glob(f"{name}-*"))] for name in names})


class Shards(Dataset):
    """Columns as lists of arrays, all but the last of one length."""

    def __init__(self, columns: dict[str, list[NDArray[Any]]]) -> None:
        self.columns = columns
        self.each = len(columns["y"][0])
        self.count = sum(map(len, columns["y"]))

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Pick by a permutation of all rows."""
        order = np.random.default_rng(seed).permutation(self.count)
        return (self.take(order[first : first + BATCH]) for first in range(0, self.count, BATCH))

    def sequential(self) -> Iterator[Batch]:
        """Copy slices, of two shards where a batch ends in the next one."""
        import torch

        for first in range(0, self.count, BATCH):
            last = min(first + BATCH, self.count)
            batch = {}
            for name, shards in self.columns.items():
                parts = [
                    shards[k][max(0, first - k * self.each) : last - k * self.each]
                    for k in range(first // self.each, (last - 1) // self.each + 1)
                ]
                batch[name] = torch.from_numpy(np.concatenate(parts))
            yield batch

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Pick what each shard has of the rows, and put it where it belongs."""
        import torch

        by_row = np.argsort(rows, kind="stable")
        numbers, places = np.divmod(rows[by_row], self.each)
        touched, starts = np.unique(numbers, return_index=True)
        ends = np.append(starts[1:], len(rows))
        batch = {}
        for name, shards in self.columns.items():
            out = np.empty((len(rows), *shards[0].shape[1:]), shards[0].dtype)
            for shard, start, end in zip(touched.tolist(), starts.tolist(), ends.tolist(), strict=True):
                out[by_row[start:end]] = shards[shard][places[start:end]]
            batch[name] = torch.from_numpy(out)
        return batch


PEERS = (OneMemmap, MemmapPerShard)
