"""`vacuum`: a store without the files that no generation of it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardstore.building import dead_builds, explained_errors
from shardstore.changes.leftovers import finish_commit, leftovers, remove, settle, unfinished_columns
from shardstore.changes.writelock import store_lock
from shardstore.manifest import load_manifest


@dataclass(frozen=True)
class VacuumReport:
    """What was removed.

    Attributes:
        removed: paths of files and folders, relative to the folder in which the store is.
        nbytes: bytes of all files among them.
    """

    removed: tuple[str, ...]
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def vacuum(store: Path) -> VacuumReport:
    """Remove what interrupted changes have left in a store, and interrupted builds beside it.

    Also what another call could go on with: columns that were being added, and new stores of this name.

    Raises:
        LockedError: if somebody is changing the store.
        FormatError, CorruptionError: if there is no store, or its manifest is damaged.
        DestinationError: if files cannot be removed.
    """
    store = store.absolute()
    removed: list[str] = []
    nbytes = 0
    with explained_errors(store, "what was not removed yet is still there"), store_lock(store):
        _, manifest = load_manifest(store)
        settle(store, manifest)
        finish_commit(store, manifest)
        for path in _needless(store, leftovers(store, manifest) + unfinished_columns(store, manifest)):
            nbytes += _nbytes(path)
            remove(path)
            removed.append(str(path.relative_to(store.parent)))
    return VacuumReport(tuple(removed), nbytes)


def _needless(store: Path, inside: list[Path]) -> Iterator[Path]:
    yield from dict.fromkeys(inside)
    yield from dead_builds(store)


def _nbytes(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
