"""Changes to an existing store: one writer at a time, and a single moment at which each takes effect.

New files are written first and brought to disk; then the group's `zarr.json` is replaced in one step. What is killed at
any moment leaves the old store or the new one. Files that the manifest does not lead to mean nothing, and are removed
when their names are needed. Nothing that a manifest leads to is ever written again: readers have it open.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shardstore import files
from shardstore.building import explained_errors
from shardstore.changes.leftovers import (
    finish_commit,
    is_left_over,
    remove,
    remove_leftovers,
    settle,
    unfinished_columns,
)
from shardstore.changes.writelock import store_lock
from shardstore.entries import STATISTICS, ArrayEntry, ColumnEntry
from shardstore.errors import DestinationError, FormatError, SchemaError, ShardStoreError
from shardstore.journals import remove_journal
from shardstore.manifest import METADATA_FILE, Manifest, encode_document, load_manifest
from shardstore.schema import check_different, check_name
from shardstore.shards import check_shards
from shardstore.zarr_documents import column_documents

# A column that is to replace another one has this before its name while it is made, and as a key of its `extra`.
REPLACING = "_replacing_"


_log = logging.getLogger("shardstore")


@contextmanager
def changing(store: Path, store_id: str | None = None) -> Iterator[Change]:
    """Hold the lock of a store, and give what changes it.

    What is left of a writer that was killed is finished or removed first.

    Args:
        store: its directory.
        store_id: which store it must be; None for whichever is there.

    Raises:
        LockedError: if somebody else is changing it.
        FormatError: if another store is there now, or none.
        CorruptionError: if its manifest is damaged.
        DestinationError: if it cannot be written to, or its disk is full.
    """
    with explained_errors(store, "the store is whole, with the change or without"), store_lock(store):
        _, manifest = load_manifest(store)
        if store_id not in (None, manifest.store_id):
            raise FormatError(
                f"{store}: expected the store {store_id}, found {manifest.store_id}: it was replaced; open it again"
            )
        settle(store, manifest)
        finish_commit(store, manifest)
        remove_leftovers(store, manifest)
        yield Change(store, manifest)


class Change:
    """What changes a store while its lock is held. Made by `changing`.

    Attributes:
        path: the store's directory.
        manifest: the store as it is now: not as somebody opened it earlier, and after each commit the new one.
        settled: whether that is known. Where it is not, nothing may be removed: a commit was interrupted, and whether
            it took place could not be read.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.settled = True

    def commit(self, columns: Mapping[str, ColumnEntry], new: Sequence[str] = ()) -> None:
        """Make these the store's columns, in this order.

        Args:
            columns: by name, all of them.
            new: those whose shard files were written for this commit, each in a folder that `free_folder` cleared.
        """
        generation = self.manifest.generation + 1
        entries = dict(columns)
        for name in new:
            entries[name] = replace(entries[name], extra={**entries[name].extra, "since": generation})
            for path, document in column_documents(name, entries[name]).items():
                files.write_file(self.path / path / METADATA_FILE, encode_document(document))
            files.fsync_tree(self.path / name)
        self._commit(replace(self.manifest, generation=generation, columns=MappingProxyType(entries)))

    def grow(self, rows: int, columns: Mapping[str, ColumnEntry], provenance: Mapping[str, Any]) -> None:
        """Make these the store's columns, with the rows that were written behind those that there were.

        Args:
            rows: how many rows there are now.
            columns: by name, all of them, as their writers have left them.
            provenance: what the manifest says of the rows' origin.
        """
        before, entries = self.manifest, dict[str, ColumnEntry]()
        for name, old in before.columns.items():
            new = columns[name]
            extra = {key: value for key, value in old.extra.items() if key != STATISTICS}  # which are of fewer rows
            entries[name] = replace(old, field=new.field, data=new.data, ranges=new.ranges, extra=extra)
            for one, other in zip(old.arrays, new.arrays, strict=True):
                self._sync_new(one, other)
        self._commit(before.grown(rows, entries, provenance))
        generation = self.manifest.generation
        try:
            finish_commit(self.path, self.manifest)
        except OSError as error:  # the rows are in, and who hears otherwise would append them again
            _log.warning(
                "%s: generation %s is committed; the next writer finishes it (%s)", self.path, generation, error
            )
        for folder in unfinished_columns(
            self.path, self.manifest
        ):  # nobody can go on with those: they are of fewer rows
            remove(folder)

    def _sync_new(self, old: ArrayEntry, new: ArrayEntry) -> None:
        """Bring the names of an array's new shard files to disk, and those of their folders."""
        top = self.path / new.layout.field.name
        folders = set()
        for shard in range(old.rows // old.layout.shard_rows, len(new.nbytes)):
            folder = (self.path / new.layout.shard_key(shard)).parent
            while folder != top.parent and folder not in folders:
                folders.add(folder)
                folder = folder.parent
        for folder in folders:
            files.fsync_directory(folder)

    def _commit(self, manifest: Manifest) -> None:
        files.fsync_directory(self.path)
        self.settled = False
        try:
            files.write_file(self.path / METADATA_FILE, manifest.encode())
            self.manifest = manifest
        except BaseException:
            # An interrupt, or an error of a file system behind a network, may also come when the name is changed.
            with suppress(OSError, ShardStoreError):
                self.manifest = load_manifest(self.path)[1]
                self.settled = True
            raise
        self.settled = True
        files.fsync_directory(self.path)

    def folder(self, name: str) -> Path:
        """Return a column's folder."""
        return self.path / name

    def free_folder(self, name: str) -> Path:
        """Return the folder of a column to come, once nothing is there.

        Raises:
            SchemaError: if a store cannot have a column of this name beside the others.
            DestinationError: if something is there that no column leaves behind.
        """
        check_different([*self.manifest.columns, check_name(name)])
        folder = self.folder(name)
        if os.path.lexists(folder):
            if folder.is_symlink() or not folder.is_dir() or not is_left_over(folder):
                raise DestinationError(
                    f"{folder}: in the way of a column of this name, and none of the store's files: remove it yourself"
                )
            shutil.rmtree(folder)
        return folder

    def drop(self, name: str) -> None:
        """Take a column out of the store, and then remove its files.

        Raises:
            KeyError: if there is none of this name.
            SchemaError: if it is the last one.
        """
        self._known(name)
        if len(self.manifest.columns) == 1:
            raise SchemaError(f"{name!r} is the only column of {self.path}, and a store has at least one")
        self._forget(name)
        self.commit({other: entry for other, entry in self.manifest.columns.items() if other != name})
        self._remove(name)

    def rename(self, old: str, new: str) -> None:
        """Give a column another name; its shard files are linked where the file system can, else copied.

        Raises:
            KeyError: if there is none of this name.
            SchemaError: if the new name cannot be a column's, or is taken.
            CorruptionError: if a shard file is missing or has another size.
        """
        entry = self._known(old)
        if new == old:
            return
        for array in entry.arrays:
            check_shards(files.Directory(self.path), array)
        folder = self.free_folder(new)
        renamed = _renamed(entry, new)
        try:
            for source, target in zip(entry.arrays, renamed.arrays, strict=True):
                for key, new_key in zip(source.keys, target.keys, strict=True):
                    _link(self.path / key, self.path / new_key)
            columns = {new if name == old else name: found for name, found in self.manifest.columns.items()}
            self._forget(old)
            self.commit({**columns, new: renamed}, [new])
        except BaseException:
            if self.settled and new not in self.manifest.columns:
                shutil.rmtree(folder, ignore_errors=True)  # what failed says why; the rest means nothing
            raise
        self._remove(old)

    def _known(self, name: str) -> ColumnEntry:
        if name not in self.manifest.columns:
            raise KeyError(f"no column {name!r}; the columns are {', '.join(self.manifest.columns)}")
        return self.manifest.columns[name]

    def _forget(self, name: str) -> None:
        """Remove the journal of a column that is about to go: nobody may go on with files that others have open."""
        if remove_journal(self.folder(name)):
            files.fsync_directory(self.folder(name))

    def _remove(self, name: str) -> None:
        if self.folder(name).is_symlink():
            self.folder(name).unlink()
            return
        # It has gone from the store already. Where files in use cannot be removed, the rest means nothing.
        shutil.rmtree(self.folder(name), ignore_errors=True)


def _renamed(entry: ColumnEntry, name: str) -> ColumnEntry:
    spec = replace(entry.field, name=name)
    entry = replace(entry, extra={key: value for key, value in entry.extra.items() if key != REPLACING})
    if entry.ranges is None:
        return replace(entry, field=spec, data=_with_field_name(entry.data, name))
    return replace(
        entry,
        field=spec,
        data=_with_field_name(entry.data, spec.values.name),
        ranges=_with_field_name(entry.ranges, spec.ranges.name),
    )


def _with_field_name(entry: ArrayEntry, name: str) -> ArrayEntry:
    layout = entry.layout
    return replace(entry, layout=replace(layout, field=replace(layout.field, name=name)))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # not on this file system, or too many of them
        shutil.copyfile(source, target)
        with target.open("r+b") as file:
            os.fsync(file.fileno())
