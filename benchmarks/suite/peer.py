"""What a peer is: a way to store rows and to read them back, as its own documentation recommends.

A peer is a class without state. `ingest` and `open` are each called in a fresh process, and what they need is imported
inside of them, so that the table can name a peer that is not installed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import Dumps, Layout

MODES = ("shuffled", "sequential", "takes")
"""What is read: an epoch in the peer's best shuffle; an epoch in order; batches of any 256 rows."""

Batch = dict[str, Any]
"""256 rows (the last batch of an epoch may have fewer) as torch tensors, which the consumer may write to:

- `x`: `(n, *shape)` in the job's dtype. Documents: a list of n uint8 tensors, or instead of `x` the tensors `values`,
  uint8, and `offsets`, int64 `(n + 1,)`, whichever the peer gives with the least work;
- `y`: int64 `(n,)`, the rows' numbers. Windows of tokens may leave it out.
"""


class Unsupported(Exception):  # noqa: N818 - it is an answer, not an error
    """The peer has no such mode, or cannot hold such data. The message is the reason that the table shows."""


class Dataset(ABC):
    """An opened peer. What has no way raises `Unsupported`. Each epoch may be followed by another one."""

    @abstractmethod
    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Return the batches of one epoch in the best shuffle that the peer has."""

    @abstractmethod
    def sequential(self) -> Iterator[Batch]:
        """Return the batches of one epoch in the order of the rows."""

    @abstractmethod
    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Return any rows, in the order asked for, as one batch.

        Args:
            rows: their numbers, int64 `(256,)`, in no order; some may come twice.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Let go of files, threads and processes."""


class Peer(ABC):
    """A way to store and to read rows.

    Attributes:
        name: what the tables call it.
        distributions: the packages whose versions are told; without them the peer is "not installed".
        imports: modules that are imported before any clock starts. torch, and shardstore with its own datasets, are
            there anyway.
        stored_as: the peer whose files it reads, if it has none of its own: it is then not ingested.
        keeps_dumps: whether it reads the dumps as they are: it is then not ingested either.
        layouts: what it can hold.
        lacks: by layout or mode, the reason why it has none, such as `{"takes": "no random access"}`.
        mixes: what its shuffle mixes: `"all rows"`, `"a buffer of 1,000 rows"`, `"none"`.
        how: how it is read, in a few words: the call that its documentation recommends.
        slow_ingest: whether it is so slow to ingest that it gets the job's `few_rows`.
        workers: processes that it starts to read.
        sharded: whether the number of files matters to it, and is what `Job.shards` says.
    """

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[tuple[str, ...]] = ()
    stored_as: ClassVar[str | None] = None
    keeps_dumps: ClassVar[bool] = False
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array"})
    lacks: ClassVar[Mapping[str, str]] = {}
    mixes: ClassVar[str] = "all rows"
    how: ClassVar[str] = ""
    slow_ingest: ClassVar[bool] = False
    workers: ClassVar[int] = 0
    sharded: ClassVar[bool] = False

    def ingest(self, data: Dumps, target: Path) -> None:
        """Convert the dumps into the peer's own files.

        Args:
            data: the dumps; `data.job` says what they are of.
            target: a path that does not exist: the peer makes a directory of it.
        """
        raise NotImplementedError(f"{self.name} has files of its own, but no ingest")

    @abstractmethod
    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open what `ingest` has written.

        Args:
            target: where it is.
            data: the dumps it was made of, which a peer may ask for `data.job`, and read only if it `keeps_dumps`.
        """

    @classmethod
    def reason_without(cls, layout: Layout, mode: str) -> str | None:
        """Return why the peer has no such layout or mode, or None if it has."""
        if layout in cls.lacks:
            return cls.lacks[layout]
        if layout not in cls.layouts:
            return NO_LAYOUT[layout]
        return cls.lacks.get(mode)


NO_LAYOUT: Mapping[str, str] = {
    "array": "no rows of one shape",
    "ragged": "no rows of different lengths",
    "windows": "no windows of a stream",
    "zstd": "no compression",
}
