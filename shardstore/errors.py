"""Every error that shardstore raises on purpose, below one base class.

Each message says what was expected, what was found, where, and what to do about it. Mistakes in an index
or an argument raise the built-in `IndexError`, `TypeError` or `ValueError`, as NumPy does.
"""

from __future__ import annotations


class ShardStoreError(Exception):
    """Base class of all errors of this package."""


class FormatError(ShardStoreError):
    """What was opened is not a store, or is a store of a version that this release cannot read."""


class CorruptionError(ShardStoreError):
    """A store's bytes are not the ones that were written: the message names the file, chunk and rows."""


class SchemaError(ShardStoreError):
    """Column names, dtypes, row shapes, codecs or row counts that do not fit together."""


class SourceError(ShardStoreError):
    """An input of an ingest cannot be taken: the message names the source file and, where it can, the row."""


class RowError(SourceError):
    """One row of a source that cannot be taken, where the rows after it can.

    Attributes:
        where: the place of the row, such as its file and line.
        reason: what is wrong with it.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class DestinationError(ShardStoreError):
    """The place to write to cannot be used: it exists, is not a store, or has no space left."""


class LockedError(ShardStoreError):
    """Somebody else is changing the store: only one writer at a time may."""


class StateError(ShardStoreError):
    """A state to resume from does not fit the stream: the message names both values, or what is missing."""
