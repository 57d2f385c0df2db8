"""What a column was made by, so that one whose function or sources have changed since is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from shardstore.column_bodies import column_body
from shardstore.entries import ColumnEntry
from shardstore.manifest import Manifest

_KEY = "made_by"


@dataclass(frozen=True)
class MadeBy:
    """What made a column; kept in the manifest as `extra["made_by"]` of the column.

    Attributes:
        fingerprint: what tells the function from others.
        columns: the names of the columns that it was given.
        sources: digest of their data as it was then.
    """

    fingerprint: str
    columns: tuple[str, ...]
    sources: str

    @classmethod
    def of(cls, manifest: Manifest, fingerprint: str, columns: Iterable[str]) -> Self:
        """Return what a function of columns as they are now makes."""
        names = tuple(columns)
        return cls(fingerprint, names, sources_digest(manifest, names))

    @classmethod
    def read(cls, found: Any) -> Self | None:
        """Return what was kept as plain JSON values, or None if that is nothing to be understood."""
        try:
            fingerprint, columns, sources = found["fingerprint"], tuple(found["columns"]), found["sources"]
        except (KeyError, TypeError):
            return None
        ok = all(isinstance(text, str) for text in (fingerprint, sources, *columns))
        return cls(fingerprint, columns, sources) if ok else None

    @classmethod
    def read_entry(cls, entry: ColumnEntry) -> Self | None:
        """Return what made a column, or None if that is not known."""
        return cls.read(entry.extra.get(_KEY))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"fingerprint": self.fingerprint, "columns": list(self.columns), "sources": self.sources}

    def to_extra(self) -> dict[str, Any]:
        """Return what the manifest keeps of it."""
        return {_KEY: self.to_json()}

    def change_since(self, manifest: Manifest) -> str | None:
        """Return what happened to the sources since, or None."""
        missing = [name for name in self.columns if name not in manifest.columns]
        if missing:
            return f"its source column {missing[0]!r} is no longer there"
        if self.sources != sources_digest(manifest, self.columns):
            return f"its source columns ({', '.join(self.columns)}) have changed since"
        return None


def sources_digest(manifest: Manifest, columns: Iterable[str]) -> str:
    """Return 32 hex digits that identify the data of some columns: types, shapes, and checksums of all footers."""
    bodies: list[Any] = [manifest.rows, manifest.shard_rows]
    for name in columns:
        entry = replace(manifest.columns[name], extra={}, unknown={})
        bodies.append(column_body(entry))
    return hashlib.blake2b(json.dumps(bodies, sort_keys=True).encode(), digest_size=16).hexdigest()


def stale_columns(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the columns whose sources are not what they were made from."""
    made = {name: MadeBy.read_entry(entry) for name, entry in manifest.columns.items()}
    return tuple(name for name, by in made.items() if by is not None and by.change_since(manifest))
