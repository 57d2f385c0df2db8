"""Types of columns as users write them: `"float32"`, `"ragged[uint16]"`, `"utf8"`, `Categorical(["cat", "dog"])`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from shardstore.errors import SchemaError
from shardstore.ragged import InvalidRowError
from shardstore.schema import RAGGED_KINDS, Kind, dtype_named

TypeLike = DTypeLike | str
_FORMS = (
    'expected a dtype such as "float32" or "bfloat16", "ragged", "ragged[DTYPE]", "ragged[DTYPE, 3]", "utf8", '
    '"binary", "categorical" or Categorical([...])'
)
_RAGGED = re.compile(r"ragged(?:\[\s*([\w\[\]]+?)\s*((?:,\s*\d+\s*)*)\])?")


@dataclass(frozen=True)
class ColumnType:
    """What is known of a column before its first row.

    Attributes:
        kind: see `Field`.
        dtype: the dtype of its items, or None: that of the first rows.
        item_shape: of a ragged column, the shape of an item; None: that of the first rows.
        categories: the names of a categorical column, or None: collected as they come.
    """

    kind: Kind
    dtype: np.dtype[Any] | None = None
    item_shape: tuple[int, ...] | None = None
    categories: tuple[str, ...] | None = None


class Categorical(ColumnType):
    """The type of a column of names from a fixed list, kept as their numbers.

    Args:
        categories: the names, in the order of their numbers.

    Raises:
        SchemaError: if a name comes twice or is no string.
    """

    def __init__(self, categories: Iterable[str]) -> None:
        names = tuple(categories)
        if isinstance(categories, str):
            raise SchemaError(f"categories are {categories!r}, one string; expected a list of them")
        for number, name in enumerate(names):
            if not isinstance(name, str):
                raise SchemaError(f"a category is {name!r}, a {type(name).__name__}; expected strings")
            try:
                check_category(name, number)
            except InvalidRowError as error:
                raise SchemaError(f"category {number} is {name!r}: {error.what}") from None
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise SchemaError(f"the category {twice!r} is named twice")
        super().__init__("categorical", codes_dtype(len(names)), None, names)


def check_category(name: str, row: int) -> None:
    """Raise `InvalidRowError` unless a category can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        reason = f"{error.reason} at character {error.start}"
        raise InvalidRowError(row, f"not to be written as UTF-8: {reason}") from None


def codes_dtype(categories: int) -> np.dtype[Any]:
    """Return the dtype of the numbers of so many categories: one that torch has, too."""
    return np.dtype(np.uint8 if categories <= 256 else np.int32)


def parse_type(name: str, given: ColumnType | TypeLike) -> ColumnType:
    """Return what a user's type of a column says; raise `SchemaError` if it says nothing."""
    if isinstance(given, ColumnType):
        return given
    if given == "categorical":
        return ColumnType("categorical", np.dtype(np.int32))
    for kind in RAGGED_KINDS[1:]:
        if given == kind:
            return ColumnType(kind, np.dtype(np.uint8), ())
    try:
        if isinstance(given, str) and (match := _RAGGED.fullmatch(given.strip())):
            if match[1] is None:
                return ColumnType("ragged")
            shape = tuple(int(n) for n in re.findall(r"\d+", match[2]))
            return ColumnType("ragged", dtype_named(match[1]).newbyteorder("<"), shape)
        dtype = dtype_named(given) if isinstance(given, str) else np.dtype(given)
    except TypeError:
        raise SchemaError(f"the type of column {name!r} is {given!r}; {_FORMS}") from None
    return ColumnType("fixed", dtype.newbyteorder("<"))
