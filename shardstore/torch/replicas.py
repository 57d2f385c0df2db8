"""Which of the processes that train together this one is."""

from __future__ import annotations

import sys
from types import FrameType

import torch.distributed

from shardstore.errors import StateError
from shardstore.order import Replica


class ReplicaFinder:
    """Finds rank and world size: the given ones, or those of torch.distributed once it is initialised, or 0 of 1.

    Pickles with what was found, since worker processes that were not forked have no process group.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank is {rank} and world_size is {world_size}: give both, or none of them")
        self._given = None if rank is None or world_size is None else Replica(rank, world_size)
        self._inherited: Replica | None = None
        self._world_size: int | None = None

    def find(self) -> Replica:
        """Return rank and world size as they are now."""
        if self._given is not None:
            return self._given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return Replica(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return self._inherited or Replica()

    def settle(self) -> Replica:
        """Return rank and world size for reading; raise `StateError` if what was read before had another world size."""
        replica = self.find()
        if self._world_size not in (None, replica.world_size):
            raise StateError(
                f"the world size was {self._world_size} and is {replica.world_size} now, which would lose or repeat "
                "rows: save state_dict() before it changes, and load it into a new dataset"
            )
        self._world_size = replica.world_size
        return replica

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_inherited": self.find()}


def check_not_sharded_again(dataset: object, replica: Replica) -> None:
    """Raise `StateError` if a dataset that gives a rank its share is being dealt to ranks once more by who called.

    Libraries that do so wrap the dataset in an object that has it as `dataset`, or has a loader with it, and knows a
    number of processes (Accelerate and Transformers: `IterableDatasetShard`; Accelerate: `DataLoaderDispatcher`). They
    never tell the dataset, but they are among its callers.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and replica.world_size > 1:
        caller = frame.f_locals.get("self")
        if caller is not None and caller is not dataset and _deals(caller, dataset):
            raise StateError(
                f"this dataset gives rank {replica.rank} of {replica.world_size} its share, and "
                f"{type(caller).__name__} deals that to the ranks once more, so that rows would be lost: keep its "
                "loader out of what wraps it (accelerator.prepare), or make the dataset with rank=0, world_size=1"
            )
        frame = frame.f_back


def _deals(caller: object, dataset: object) -> bool:
    # Not getattr: adapters delegate it to what they wrap.
    attributes = getattr(caller, "__dict__", {})
    names = {kind.__name__ for kind in type(caller).__mro__}
    if attributes.get("dataset") is dataset:
        counts = (attributes.get(name) for name in ("num_processes", "num_replicas", "world_size"))
        return any(isinstance(count, int) and count > 1 for count in counts)
    if "DataLoaderDispatcher" in names:
        return getattr(attributes.get("base_dataloader"), "dataset", None) is dataset
    return False
