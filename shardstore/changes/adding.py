"""Adding a column to a store: what may be added, and what is there already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shardstore.changes.addition import BLOCK_NBYTES, Addition, AddOptions, check_count, fits
from shardstore.changes.commits import REPLACING, Change
from shardstore.changes.fingerprints import function_fingerprint
from shardstore.changes.lineage import MadeBy
from shardstore.column_types import ColumnType, parse_type
from shardstore.entries import ColumnEntry
from shardstore.errors import SchemaError
from shardstore.manifest import Manifest
from shardstore.ragged import Ragged
from shardstore.schema import check_different, check_name
from shardstore.stream import column_names, known_columns
from shardstore.table import Table


def add_column(change: Change, table: Table, name: str, values: Any, options: AddOptions) -> None:
    """Add a column to a store whose lock is held; see `Store.add_column`.

    Args:
        change: what changes the store.
        table: the store as it is now.
        name: the new column's name.
        values: its rows, blocks of them, or a function of batches.
        options: all else.
    """
    check_name(name)
    options.check(callable(values))
    declared = None if options.type is None else parse_type(name, options.type)
    made_by = _made_by(change.manifest, name, values, options)
    interim = f"{REPLACING}{name}"
    left = change.manifest.columns.get(interim)
    if left is not None and REPLACING not in left.extra:
        raise SchemaError(f"column {interim!r} has the name of what replaces {name!r} while it is made: rename it")
    if left is not None and name not in change.manifest.columns:
        change.rename(interim, name)  # a replacement that was interrupted at its last step
    existing = change.manifest.columns.get(name)
    if existing is not None and _is_done(existing, made_by, declared):
        return
    check_different([*(other for other in change.manifest.columns if other != name), name])
    if existing is not None and not options.replace:
        raise SchemaError(_why_not(change.manifest, name, existing, made_by))
    if not callable(values):
        values = _checked_rows(name, values, change.manifest.rows)
    if existing is None:
        Addition(change, table, name, options, declared, made_by, callable(values)).run(values)
        return
    # The old one stays until the new one is complete.
    left = change.manifest.columns.get(interim)
    if left is not None and not _is_done(left, made_by, declared):
        change.drop(interim)
        left = None
    if left is None:
        extra = {REPLACING: name}
        Addition(change, table, interim, options, declared, made_by, callable(values), extra).run(values)
    change.drop(name)
    change.rename(interim, name)


def _made_by(manifest: Manifest, name: str, values: Any, options: AddOptions) -> MadeBy | None:
    if not callable(values):
        return None if options.fingerprint is None else MadeBy.of(manifest, options.fingerprint, ())
    existing = manifest.columns.get(name)
    known = [other for other in manifest.columns if other not in (name, f"{REPLACING}{name}")]
    before = None if existing is None else MadeBy.read_entry(existing)
    if options.columns is not None:
        sources = known_columns(column_names(options.columns), known)
    elif before is not None and set(before.columns) <= set(known):
        sources = before.columns  # "all" were these; columns that came later were made elsewhere
    else:
        sources = tuple(known)
    if not sources:
        raise SchemaError(f"column {name!r} would be made of no columns; a store has no others")
    return MadeBy.of(manifest, options.fingerprint or function_fingerprint(values), sources)


def _is_done(existing: ColumnEntry, made_by: MadeBy | None, declared: ColumnType | None) -> bool:
    return made_by is not None and MadeBy.read_entry(existing) == made_by and fits(existing.field, declared)


def _why_not(manifest: Manifest, name: str, existing: ColumnEntry, made_by: MadeBy | None) -> str:
    """Return why a column cannot be added in the place of another one."""
    before = MadeBy.read_entry(existing)
    if before is None or made_by is None:
        return f"there is a column {name!r} already: choose another name, or pass replace=True"
    if changed := before.change_since(manifest):
        reason = changed
    elif before.columns != made_by.columns:
        reason = f"it was made of the columns {', '.join(before.columns)}, not of {', '.join(made_by.columns)}"
    elif before.fingerprint != made_by.fingerprint:
        reason = f"it was made by another function ({before.fingerprint}, now {made_by.fingerprint})"
    else:
        reason = f"it holds {existing.field}, which is not the type asked for"
    return f"the column {name!r} is stale: {reason}; pass replace=True to drop it and make it again"


def _checked_rows(name: str, values: Any, rows: int) -> Iterable[Any]:
    """Return blocks of rows that are there already, or come from an iterable."""
    if isinstance(values, str | bytes | bytearray | Mapping | Table) or not (
        isinstance(values, Ragged) or hasattr(values, "__array__") or hasattr(values, "__iter__")
    ):
        raise TypeError(
            f"column {name!r} is given as a {type(values).__name__}; expected an array, a list or a Ragged of rows, "
            "an iterable of blocks of rows, or a function of batches"
        )
    if isinstance(values, list | tuple | range):
        check_count(name, len(values), rows)
        return (values,)
    if not isinstance(values, Ragged) and not hasattr(values, "__array__"):
        return values  # type: ignore[no-any-return]
    if getattr(values, "ndim", 1) == 0:
        raise SchemaError(f"column {name!r} is a single value; expected an array of rows")
    check_count(name, len(values), rows)
    step = max(1, BLOCK_NBYTES // max(1, int(getattr(values, "nbytes", rows * 8)) // max(1, rows)))
    return (values[start : start + step] for start in range(0, max(1, rows), step))
