"""Where rows are written: into a new store, or behind those of an existing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardstore.building import Build, Mode, building, check_destination
from shardstore.changes.appending import Growth, appending

Target = Build | Growth


@contextmanager
def writing(destination: Path, mode: Mode) -> Iterator[Target]:
    """Open what rows are written to; unless it is left with a commit, the destination stays as it was.

    Raises:
        DestinationError: if the destination cannot be used.
        LockedError: if somebody else is writing to it.
    """
    if mode == "append":
        check_destination(destination, mode)
        with appending(destination) as growth:
            yield growth
    else:
        with building(destination, mode) as build:
            yield build
