"""Statistics that a store keeps of its columns, in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardstore.changes.commits import Change
from shardstore.column_bodies import shown
from shardstore.errors import CorruptionError
from shardstore.manifest import Manifest
from shardstore.statistics.summary import ColumnStatistics

_KEY = "statistics"


def kept_statistics(manifest: Manifest) -> dict[str, ColumnStatistics]:
    """Return the statistics that a store keeps, by column, of those columns that have any.

    Raises:
        FormatError: if some are of a kind of a later release.
        CorruptionError: if some are none.
    """
    return {name: _read(name, entry.extra[_KEY]) for name, entry in manifest.columns.items() if _KEY in entry.extra}


def _read(name: str, body: Any) -> ColumnStatistics:
    try:
        return ColumnStatistics.from_json(body)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptionError(
            f"the statistics that the store keeps of column {name!r} are wrong ({shown(error)}); compute them "
            "anew with compute_stats"
        ) from None


def keep_statistics(change: Change, found: Mapping[str, ColumnStatistics], manifest: Manifest) -> None:
    """Put statistics into a store's manifest, of those columns that are still the ones that were read.

    Args:
        change: what changes the store.
        found: by column.
        manifest: the store as it was when the columns were read.
    """
    columns = dict(change.manifest.columns)
    for name, statistics in found.items():
        if name in columns and columns[name].since == manifest.columns[name].since:
            columns[name] = replace(columns[name], extra={**columns[name].extra, _KEY: statistics.to_json()})
    change.commit(columns)
