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


class DestinationError(ShardStoreError):
    """The place to write to cannot be used: it exists, is not a store, or has no space left."""


class StateError(ShardStoreError):
    """A state to resume from does not fit the stream: the message names both values, or what is missing."""
