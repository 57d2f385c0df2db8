"""Rows on their way into an existing store, behind those that it has."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardstore.changes.commits import Change, changing
from shardstore.changes.leftovers import remove_leftovers
from shardstore.codecs import DEFAULT_CODEC, Codec
from shardstore.column_types import ColumnType
from shardstore.columns import ColumnStart
from shardstore.entries import ColumnEntry
from shardstore.errors import SchemaError
from shardstore.schema import ColumnLayout, Field, parse_bytes
from shardstore.version import __version__


class Growth:
    """Rows on their way into an existing store, whose lock is held. Made by `appending`.

    Attributes:
        directory: the store's directory, into which shard files are written.
        rows: how many rows there are already.
        shard_rows: rows of every shard but the last.
        kept: what messages say of the store if an append fails.
    """

    kept = "the store is as it was"

    def __init__(self, change: Change) -> None:
        self._change = change
        self.directory = change.path
        self.rows = change.manifest.rows
        self.shard_rows = change.manifest.shard_rows

    @property
    def fields(self) -> dict[str, Field]:
        """The store's columns."""
        return self._change.manifest.fields

    def layouts(
        self,
        fields: Iterable[Field],
        codec: str | Mapping[str, str],
        shard_bytes: int | str,
        chunk_bytes: int | str | None,
    ) -> dict[str, ColumnLayout]:
        """Return how the columns are cut: sizes stay as they are.

        Raises:
            SchemaError: if columns of new rows, or a codec that is asked for, are not those of the store.
        """
        parse_bytes(shard_bytes)
        if chunk_bytes is not None:
            parse_bytes(chunk_bytes)
        for name in () if isinstance(codec, str) else codec:
            if name not in self.fields:
                raise SchemaError(f"a codec is given for column {name!r}, but the columns are {', '.join(self.fields)}")
        found = {field.name: field for field in fields}
        if found.keys() != self.fields.keys():
            raise SchemaError(
                f"{self.directory} has the columns {', '.join(self.fields)}, but these rows have {', '.join(found)}"
            )
        layouts = {}
        for name, entry in self._change.manifest.columns.items():
            if not _fits(found[name], entry.field):
                raise SchemaError(
                    f"column {name!r} of {self.directory} holds {entry.field}, but these rows are {found[name]}"
                )
            wanted = codec if isinstance(codec, str) else codec.get(name, DEFAULT_CODEC)
            if wanted != DEFAULT_CODEC and Codec.parse(wanted) != entry.data.layout.codec:
                raise SchemaError(
                    f"column {name!r} of {self.directory} is stored with the codec {entry.data.layout.codec}, and rows "
                    f"that are appended are, too; asked for is {wanted}"
                )
            ranges = None if entry.ranges is None else entry.ranges.layout
            layouts[name] = ColumnLayout(entry.field, entry.data.layout, ranges)
        return layouts

    def start(self, name: str) -> ColumnStart:
        """Return where writing a column goes on."""
        manifest = self._change.manifest
        return ColumnStart.of(self.directory, manifest.columns[name], manifest.generation + 1)

    def commit(self, rows: int, columns: Mapping[str, ColumnEntry], provenance: Mapping[str, Any]) -> None:
        """Make the rows that were written the store's; see `Build.commit`. Without new rows nothing happens."""
        if rows > self.rows:
            self._change.grow(rows, columns, _joined(self._change.manifest.provenance, provenance))


@contextmanager
def appending(store: Path) -> Iterator[Growth]:
    """Hold the lock of a store, and give what appends to it; unless it is left with a commit, nothing stays behind.

    Raises:
        LockedError, FormatError, CorruptionError, DestinationError: as `changing`.
    """
    process = os.getpid()
    with changing(store) as change:
        try:
            yield Growth(change)
        finally:
            # The error that ends an append is worth more than one of cleaning up, which the next writer does again.
            with suppress(OSError):
                if change.settled and os.getpid() == process:  # a child of a fork may leave here, too
                    remove_leftovers(store, change.manifest)


def appended_type(field: Field, declared: ColumnType | None = None) -> ColumnType:
    """Return what makes rows to be appended those of a column: values are cast to its dtype if none changes.

    With the declared type `"categorical"` a column gets new categories behind those that it has.
    """
    if declared is not None:
        is_open = declared.kind == field.kind == "categorical" and declared.categories is None
        return replace(declared, dtype=field.dtype) if is_open else declared
    categories = field.categories if field.kind == "categorical" else None
    return ColumnType(field.kind, field.dtype, field.row_shape if field.is_ragged else None, categories)


def _fits(found: Field, field: Field) -> bool:
    same = (found.dtype, found.row_shape, found.kind) == (field.dtype, field.row_shape, field.kind)
    # An open list is known only once its rows are read: it goes on with those of the store.
    return same and found.categories[: len(field.categories)] in ((), field.categories)


def _joined(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the rows of a store come from, the new ones included."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    joined = {**before, "appended": {"tool": f"shardstore {__version__}", "last": now}}
    if sources := new.get("sources"):
        old = before.get("sources", {})
        joined["sources"] = {**old, **{key: [*old.get(key, ()), *values] for key, values in sources.items()}}
    if skipped := new.get("skipped"):
        old = before.get("skipped", {"rows": 0, "examples": []})
        joined["skipped"] = {"rows": old["rows"] + skipped["rows"], "examples": old["examples"] or skipped["examples"]}
    return joined
