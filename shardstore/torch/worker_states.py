"""The states of a loader's worker processes: what each of them gave of a pass, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from shardstore.errors import StateError
from shardstore.order import REMAINDERS, Remainder, State


@dataclass(frozen=True)
class Share:
    """What one worker gave of a pass.

    Attributes:
        worker: its number.
        workers: how many there were.
        taken: how many items it gave.
        batch: rows of an item; 0 where items were single rows.
        ranks: the world size.
        remainder: what became of the rows after the last whole step.
    """

    worker: int
    workers: int
    taken: int
    batch: int
    ranks: int
    remainder: Remainder

    def add_to(self, begin: State) -> State:
        """Return the worker's state, for the state with which its pass began."""
        return {**begin, **asdict(self)}


_FIELDS = tuple(field.name for field in fields(Share))


def is_of_worker(state: Any) -> bool:
    """Whether a state is that of a worker."""
    return isinstance(state, Mapping) and not state.keys().isdisjoint(_FIELDS)


def read_worker(state: Mapping[str, Any], worker: int, workers: int) -> tuple[Share, dict[str, Any]]:
    """Return what a worker gave, and the state with which its pass began.

    Raises:
        StateError: if the state is incomplete, or not that of this worker.
    """
    for name in ("worker", "workers", "taken", "batch", "ranks"):
        if type(state.get(name)) is not int or state[name] < 0:
            raise StateError(f"the state has {name}={state.get(name)!r}; expected a whole number from 0 on")
    if not state["ranks"] or state.get("remainder") not in REMAINDERS:
        raise StateError(f"the state has ranks={state['ranks']} and remainder={state.get('remainder')!r}")
    share = Share(**{name: state[name] for name in _FIELDS})
    if (share.worker, share.workers) != (worker, workers):
        raise StateError(
            f"the state is of worker {share.worker} of {share.workers}, this is worker {worker} of {workers}: "
            "load the whole loader's state into the dataset, which takes it for any number of workers"
        )
    return share, {name: value for name, value in state.items() if name not in _FIELDS}


def read_loader(state: Mapping[str, Any]) -> tuple[Share, dict[str, Any]]:
    """Return what all workers of a StatefulDataLoader gave together, and the state with which their pass began.

    Raises:
        StateError: if the state is none of such a loader, or does not tell which rows were delivered.
    """
    try:
        snapshots = state["_snapshot"]["_worker_snapshots"]
        states = [snapshots[f"worker_{i}"]["dataset_state"] for i in range(len(snapshots))]
        more = int(state["_steps_since_snapshot"])
    except (KeyError, TypeError, ValueError):
        states, more = [], 0
    if not states or not all(isinstance(each, Mapping) for each in states):
        raise StateError("this is no state of a StatefulDataLoader over a StoreIterableDataset")
    shares = [read_worker(each, i, len(states)) for i, each in enumerate(states)]
    first, begin = shares[0]
    for share, own_begin in shares:
        if own_begin != begin or (share.batch, share.ranks, share.remainder) != (
            first.batch,
            first.ranks,
            first.remainder,
        ):
            raise StateError("the workers' states in this state are of different passes")
    if not first.batch and len(states) > 1:
        raise StateError(
            f"{len(states)} workers each filled batches of their own with single rows: which rows were delivered "
            f"fits only {len(states)} workers again; load the state into a StatefulDataLoader with as many"
        )
    if not first.batch and more:
        raise StateError(
            f"{more} batches of single rows were delivered since the loader's last snapshot, and it does not tell "
            "how many rows these had: save with snapshot_every_n_steps=1, or load the state into a "
            "StatefulDataLoader like the one that saved it"
        )
    taken = sum(share.taken for share, _ in shares) + more
    return Share(0, 1, taken, first.batch, first.ranks, first.remainder), begin
