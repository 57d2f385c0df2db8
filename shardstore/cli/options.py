"""Options that may be given several times, `NAME=VALUE` each."""

from __future__ import annotations

from shardstore.cli.app import fail
from shardstore.column_types import Categorical, ColumnType
from shardstore.sources.named import ROLES


def _pairs(items: list[str], option: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            fail(f"{option} {item!r}: expected {form}", 2)
        if name in pairs:
            fail(f"{option}: {name!r} is named twice", 2)
        pairs[name] = value
    return pairs


def named_sources(items: list[str]) -> dict[str, str | dict[str, str]]:
    """Return the sources of columns by name; `NAME.values=GLOB` and its like belong to one ragged column."""
    columns: dict[str, str | dict[str, str]] = {}
    for key, paths in _pairs(items, "--column", "NAME=GLOB").items():
        name, dot, role = key.partition(".")
        if dot and role not in ROLES:
            fail(f"--column {key!r}: expected NAME, or NAME with one of {', '.join('.' + r for r in ROLES)}", 2)
        if (not dot and name in columns) or isinstance(columns.get(name), str):
            fail(f"--column: {name!r} is named twice", 2)
        group = columns.setdefault(name, {} if dot else paths)
        if dot and isinstance(group, dict):
            group[role] = paths
    return columns


def column_types(items: list[str]) -> dict[str, str | ColumnType]:
    """Return the types of columns by name, from `NAME=TYPE`."""
    types: dict[str, str | ColumnType] = {}
    for name, text in _pairs(items, "--type", "NAME=TYPE").items():
        kind, colon, categories = text.partition(":")
        types[name] = Categorical(categories.split(",")) if colon and kind == "categorical" else text
    return types


def column_codecs(items: list[str]) -> str | dict[str, str]:
    """Return one codec, or those of columns by name, from `COLUMN=CODEC`."""
    if len(items) == 1 and "=" not in items[0]:
        return items[0]
    return _pairs(items, "--codec", "COLUMN=CODEC")
