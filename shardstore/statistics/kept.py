"""Statistics that a store keeps of its columns, in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shardstore.changes.commits import Change
from shardstore.column_bodies import shown
from shardstore.entries import STATISTICS
from shardstore.errors import CorruptionError
from shardstore.manifest import Manifest
from shardstore.statistics.summary import ColumnStatistics


def kept_statistics(manifest: Manifest) -> dict[str, ColumnStatistics]:
    """Return the statistics that a store keeps, by column, of those columns that have any.

    Raises:
        FormatError: if some are of a kind of a later release.
        CorruptionError: if some are none.
    """
    kept = {name: entry.extra for name, entry in manifest.columns.items() if STATISTICS in entry.extra}
    return {name: _read(name, extra[STATISTICS]) for name, extra in kept.items()}


def _read(name: str, body: Any) -> ColumnStatistics:
    try:
        return ColumnStatistics.from_json(body)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptionError(
            f"the statistics that the store keeps of column {name!r} are wrong ({shown(error)}); compute them "
            "anew with compute_stats"
        ) from None


def keep_statistics(change: Change, found: Mapping[str, ColumnStatistics], manifest: Manifest) -> bool:
    """Put statistics into a store's manifest, of those columns that are still the ones that were read.

    Returns whether the store still has the rows that were read: else nothing is kept.

    Args:
        change: what changes the store.
        found: by column.
        manifest: the store as it was when the columns were read.
    """
    if change.manifest.rows != manifest.rows:
        return False
    columns = dict(change.manifest.columns)
    for name, statistics in found.items():
        if name in columns and columns[name].since == manifest.columns[name].since:
            columns[name] = replace(columns[name], extra={**columns[name].extra, STATISTICS: statistics.to_json()})
    change.commit(columns)
    return True
