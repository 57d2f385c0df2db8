"""Columns by name: the files of a column's array, or of the arrays that make a ragged column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardstore.errors import SchemaError, SourceError
from shardstore.sources.paths import Paths, find_files

Sources = Paths | Mapping[str, Paths | Mapping[str, Paths]]
# How a column is written in dumps: one array, or by what each of its arrays is called.
ARRAY = "array"
RAGGED_FORMS = (("values", "offsets"), ("values", "lengths"), ("padded", "lengths"), ("rows",))
ROLES = ("values", "offsets", "lengths", "padded", "rows")


@dataclass(frozen=True)
class NamedColumn:
    """The files of one column.

    Attributes:
        name: the column's name.
        files: by what their arrays are, in one of `RAGGED_FORMS` or `("array",)`; as many of each.
    """

    name: str
    files: Mapping[str, list[Path]]

    @property
    def form(self) -> tuple[str, ...]:
        """What the arrays are."""
        return tuple(self.files)

    @property
    def groups(self) -> list[tuple[Path, ...]]:
        """The files that belong together, in the order of `form`."""
        return list(zip(*self.files.values(), strict=True))

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for paths in self.files.values() for path in paths]


def find_columns(sources: Mapping[str, Paths | Mapping[str, Paths]]) -> list[NamedColumn]:
    """Find the files of each column.

    Raises:
        SourceError: if a file is missing, or the files of a ragged column do not pair up.
        SchemaError: if a ragged column is described by other arrays than it has.
    """
    return [_find_column(name, given) for name, given in sources.items()]


def _find_column(name: str, given: Paths | Mapping[str, Paths]) -> NamedColumn:
    if not isinstance(given, Mapping):
        return NamedColumn(name, {ARRAY: find_files(given)})
    form = ragged_form(name, list(given))
    files = {role: find_files(given[role]) for role in form}
    first, *others = form
    for other in others:
        if len(files[other]) != len(files[first]):
            raise SourceError(
                f"parallel files must pair up: column {name!r} has {len(files[first])} files of {first}, "
                f"{len(files[other])} of {other}"
            )
    return NamedColumn(name, files)


def ragged_form(name: str, roles: list[Any]) -> tuple[str, ...]:
    """Return which form of a ragged column has these arrays; raise `SchemaError` if none has."""
    for form in RAGGED_FORMS:
        if set(form) == set(roles):
            return form
    forms = "; ".join(" and ".join(form) for form in RAGGED_FORMS)
    raise SchemaError(
        f"column {name!r}: a ragged column is given by {forms}; found {' and '.join(map(str, roles)) or 'nothing'}"
    )


def held(sources: Any) -> Any:
    """Return sources that can be gone through more than once: an iterator of paths becomes a list."""
    if isinstance(sources, Mapping):
        return {name: held(paths) for name, paths in sources.items()}
    return sources if isinstance(sources, str | os.PathLike) else list(sources)


def each_path(sources: Sources) -> Iterator[str | os.PathLike[str]]:
    """Yield every path, glob or directory that is named."""
    if isinstance(sources, str | os.PathLike):
        yield sources
    elif isinstance(sources, Mapping):
        for paths in sources.values():
            yield from each_path(paths)
    else:
        yield from sources
