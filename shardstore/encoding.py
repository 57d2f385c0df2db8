"""What users give for the rows of a column, turned into what is stored: an array, or a `Ragged`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.casting import Cast, exact_array, rounded
from shardstore.column_types import ColumnType, check_category
from shardstore.errors import SchemaError
from shardstore.ragged import Blobs, InvalidRowError, Ragged, Strings, Values
from shardstore.schema import EXTENDED_DTYPES, Field

_LAST_CHARACTER = 0x10FFFF
_FIRST_SURROGATE = 0xD800


class ColumnEncoder:
    """Turns the rows of one column into what is stored, from the first ones on in one dtype and shape.

    Args:
        name: the column's name.
        declared: its type, where the user said it; else the first rows settle it.
        known: the categories that a column with an open list of them has already.
    """

    def __init__(self, name: str, declared: ColumnType | None = None, known: Sequence[str] = ()) -> None:
        self._name = name
        self._declared = declared
        self._codes: dict[str, int] | None = None
        if declared is not None and declared.kind == "categorical":
            self._codes = {category: code for code, category in enumerate(declared.categories or known)}

    def encode(self, values: Any, settled: Field | None, first_row: int) -> Values:
        """Return rows as an array of one entry a row, or as a `Ragged`.

        Args:
            values: an array, a `Ragged`, or a list of numbers, arrays, strings or bytes.
            settled: the column as its first rows made it, or None if these are the first.
            first_row: number of the first of these rows, for messages.

        Raises:
            SchemaError: if they cannot be rows of the column.
        """
        _refuse_masks(self._name, values)
        kind = self._kind(values, settled)
        try:
            if kind == "categorical":
                return self._encode_categories(values, first_row)
            if kind == "utf8":
                return _checked_utf8(_as_strings(values))
            if kind == "binary":
                return _as_blobs(values)
            if kind == "ragged":
                return self._encode_ragged(values, settled, first_row)
            return self._encode_fixed(values, first_row)
        except InvalidRowError as error:
            raise SchemaError(f"column {self._name!r}, row {first_row + error.row:,}: {error.what}") from None
        except (ValueError, TypeError, OverflowError) as error:
            raise SchemaError(f"column {self._name!r}, rows from {first_row:,} on: {error}") from None

    def forget(self, known: int) -> None:
        """Know no more categories than the first ones: rows that came with others were refused."""
        if self._codes is not None:
            self._codes = {name: code for name, code in self._codes.items() if code < known}

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of a categorical column so far, in the order of their numbers; empty for others."""
        return tuple(self._codes or ())

    def field(self, rows: Values) -> Field:
        """Return the column as encoded rows make it."""
        if self._codes is not None:
            return Field.of(self._name, rows.dtype, rows.shape[1:], "categorical", self._codes)  # type: ignore[union-attr]
        if not isinstance(rows, Ragged):
            return Field.of(self._name, rows.dtype, rows.shape[1:])
        kind = {Strings: "utf8", Blobs: "binary"}.get(type(rows), "ragged")
        return Field.of(self._name, rows.dtype, rows.item_shape, kind)  # type: ignore[arg-type]

    def _kind(self, values: Any, settled: Field | None) -> str:
        if self._declared is not None:
            return self._declared.kind
        if isinstance(values, Ragged):
            return {Strings: "utf8", Blobs: "binary"}.get(type(values), "ragged")
        if isinstance(values, np.ndarray):
            return "utf8" if values.dtype.kind in "UT" else "fixed"
        if settled is not None and settled.is_ragged:
            return settled.kind
        return _kind_of_list(values) if isinstance(values, list | tuple) else "fixed"

    def _encode_fixed(self, values: Any, first_row: int) -> NDArray[Any]:
        array = exact_array(values)
        if array.ndim == 0:
            raise SchemaError(f"column {self._name!r} is a single value; expected an array of rows")
        if self._declared is None or self._declared.dtype is None or array.dtype == self._declared.dtype:
            return array
        return self._cast(array, self._declared.dtype, first_row)

    def _cast(
        self, array: NDArray[Any], dtype: np.dtype[Any], first_row: int, offsets: NDArray[np.int64] | None = None
    ) -> NDArray[Any]:
        """Return an array in the declared dtype; raise `SchemaError` if a value would change.

        With `offsets`, the array holds the items of ragged rows.
        """
        extended = EXTENDED_DTYPES.get(dtype.name)
        if extended is not None:
            if array.dtype == extended or array.dtype == f"V{dtype.itemsize}":
                return np.ascontiguousarray(array).view(dtype)  # the bits, as an export writes them
            return rounded(array, dtype)
        if not array.size and array.dtype == np.float64:
            return array.astype(dtype)  # what NumPy takes an empty list for
        result, changed = _exact_cast(array, dtype)
        if changed is not None:
            item = changed // max(1, array[:1].size)
            row = item if offsets is None else int(np.searchsorted(offsets, item, "right")) - 1
            raise SchemaError(
                f"column {self._name!r}, row {first_row + row:,}: the value {array.reshape(-1)[changed]} would change "
                f"in {dtype}, the column's declared type"
            )
        return result

    def _encode_ragged(self, values: Any, settled: Field | None, first_row: int) -> Ragged:
        dtype = settled.dtype if settled is not None and settled.is_ragged else None
        shape = settled.row_shape if settled is not None and settled.is_ragged else None
        if self._declared is not None:
            dtype = dtype or self._declared.dtype
            shape = shape if shape is not None else self._declared.item_shape
        if isinstance(values, Ragged):
            rows = Ragged(values.values, values.offsets)
        elif isinstance(values, np.ndarray) and values.ndim >= 2:
            count, width = values.shape[:2]
            rows = Ragged.from_lengths(values.reshape(count * width, *values.shape[2:]), np.full(count, width))
        else:
            declares = self._declared is not None and self._declared.dtype is not None
            return Ragged.from_rows(_with_dtype(list(values), dtype, declares), dtype, shape)
        if dtype is not None and rows.dtype != dtype and self._declared is not None:
            return Ragged(self._cast(rows.values, dtype, first_row, rows.offsets), rows.offsets)
        return rows

    def _encode_categories(self, values: Any, first_row: int) -> NDArray[Any]:
        assert self._codes is not None
        assert self._declared is not None
        dtype = self._declared.dtype
        is_open = self._declared.categories is None
        names = values.to_list() if isinstance(values, Strings) else values
        if isinstance(names, list | tuple):
            _check_names(names, is_open)
        array = np.asarray(names)
        if array.dtype.kind in "iu" and not is_open:
            bad = (array < 0) | (array >= len(self._codes))
            if bad.any():
                raise InvalidRowError(
                    int(bad.reshape(-1).argmax()) // max(1, array[:1].size),
                    f"{array.reshape(-1)[bad.reshape(-1).argmax()]} is the number of no category; "
                    f"there are {len(self._codes):,}",
                )
            return array.astype(dtype)
        if array.dtype.kind == "S":
            array = np.strings.decode(array, "utf-8")
        elif array.dtype.kind == "U":
            _check_characters(array)
        if array.size and array.dtype.kind not in "UT":
            raise ValueError(f"categories are strings, found {array.dtype}")
        if array.dtype.kind == "U" and not isinstance(names, np.ndarray):
            array = np.array(names, np.dtypes.StringDType())  # a fixed width drops zeros at the end of a string
        found, inverse = np.unique(array.astype(np.dtypes.StringDType()), return_inverse=True)
        inverse = inverse.reshape(array.shape)
        # New names get their numbers in the order in which they come, not in the alphabet's.
        for category in _by_first(found, inverse) if is_open else ():
            self._codes.setdefault(category, len(self._codes))
        unknown = [number for number, category in enumerate(found) if category not in self._codes]
        if unknown:
            row = int((inverse == unknown[0]).reshape(len(array), -1).any(axis=1).argmax())
            raise InvalidRowError(
                row,
                f"unknown category {str(found[unknown[0]])!r}; the categories are "
                f"{', '.join(map(repr, list(self._codes)[:10]))}{', …' if len(self._codes) > 10 else ''}",
            )
        numbers = np.array([self._codes[category] for category in found], dtype)
        return numbers[inverse] if len(found) else np.empty(array.shape, dtype)


def _check_names(names: Sequence[Any], is_open: bool) -> None:
    """Raise `InvalidRowError` for what NumPy would make a string of: a missing label is no category."""
    kinds = {type(name) for name in names}
    numbers = not is_open and all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds)
    if numbers or kinds & {list, tuple, np.ndarray}:
        return
    for row, name in enumerate(names):
        if not isinstance(name, str | bytes):
            raise InvalidRowError(row, f"expected the name of a category, found {name!r}, a {type(name).__name__}")
        if isinstance(name, str):
            check_category(name, row)


def contiguous(rows: Values, field: Field) -> Values:
    """Return rows in C order and in the field's dtype, as a `ColumnWriter` takes them."""
    if isinstance(rows, Ragged):
        values = np.ascontiguousarray(rows.values, field.dtype).reshape(rows.values.shape)
        return Ragged.checked(values, rows.offsets)
    return np.ascontiguousarray(rows, field.dtype).reshape(rows.shape)


def _by_first(found: NDArray[Any], inverse: NDArray[np.intp]) -> list[str]:
    first = np.full(len(found), inverse.size)
    flat = inverse.reshape(-1)
    np.minimum.at(first, flat, np.arange(flat.size))
    return [str(found[number]) for number in np.argsort(first)]


def _kind_of_list(values: Sequence[Any]) -> str:
    """Return what a list of rows is: of strings, bytes, arrays of different lengths, or an array in other words."""
    if values and all(isinstance(value, str) for value in values):
        return "utf8"
    if values and all(isinstance(value, bytes | bytearray | memoryview) for value in values):
        return "binary"
    lengths = {
        len(value) if isinstance(value, list | tuple | np.ndarray) and np.ndim(value) else -1 for value in values
    }
    return "ragged" if len(lengths) > 1 and -1 not in lengths else "fixed"


def _with_dtype(rows: list[Any], dtype: np.dtype[Any] | None, casts_arrays: bool) -> list[Any]:
    """Return Python lists as arrays of the column's dtype, and arrays too, or else these stay what they are."""
    if dtype is None:
        return rows
    if dtype.name in EXTENDED_DTYPES:
        bits = (np.dtype(EXTENDED_DTYPES[dtype.name]), np.dtype(f"V{dtype.itemsize}"))
        are_bits = [isinstance(row, np.ndarray) and row.dtype in bits for row in rows]
        return [
            row.view(dtype) if b else rounded(np.asarray(row), dtype) for row, b in zip(rows, are_bits, strict=True)
        ]
    keeps = () if casts_arrays else np.ndarray
    return [row if isinstance(row, keeps) else _exact(i, row, dtype) for i, row in enumerate(rows)]


def _exact(number: int, row: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = exact_array(row)
    if not array.size or array.dtype == dtype:
        return array.astype(dtype)
    result, changed = _exact_cast(array, dtype)
    if changed is not None:
        raise InvalidRowError(number, f"the value {array.reshape(-1)[changed]} would change in {dtype}")
    return result


def _exact_cast(array: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int | None]:
    """Return an array in another dtype, and the flat index of the first value that changed on the way, or None."""
    if array.dtype.kind in "biufc" and dtype.kind in "biufc":
        return Cast(dtype).apply(array)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"{array.dtype} cannot be cast to {dtype}")
    result = array.astype(dtype)
    back = result.astype(array.dtype)
    # NaT is not equal to itself. Fixed-width bytes and times that do not fit are cut off, or wrap.
    changed = ((back != array) & ~((back != back) & (array != array))).reshape(-1)
    return result, int(changed.argmax()) if changed.any() else None


def _as_strings(values: Any) -> Strings:
    if isinstance(values, Ragged):
        return Strings(values.values, values.offsets)
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        return Strings(*_parts_of(Blobs.from_bytes(values.tolist())))
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        _check_characters(values)
    rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
    encoded = []
    for i, row in enumerate(rows):
        if isinstance(row, str):
            try:
                encoded.append(row.encode())
            except UnicodeEncodeError as error:
                raise InvalidRowError(
                    i, f"not to be written as UTF-8: {error.reason} at character {error.start}"
                ) from None
        elif isinstance(row, bytes | bytearray | memoryview):
            encoded.append(bytes(row))
        else:
            raise InvalidRowError(i, f"expected a string, found a {type(row).__name__}")
    return Strings(*_parts_of(Blobs.from_bytes(encoded)))


def _check_characters(array: NDArray[Any]) -> None:
    """Raise `InvalidRowError` if fixed-width strings hold lone surrogates, or bits that are no character."""
    codes = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1).view(np.uint32)
    bad = (codes > _LAST_CHARACTER) | ((codes & ~np.uint32(0x7FF)) == _FIRST_SURROGATE)
    if bad.any():
        first = int(bad.argmax())
        row = first // (len(codes) // len(array))
        raise InvalidRowError(row, f"not to be written as UTF-8: U+{codes[first]:04X} is no character")


def _parts_of(rows: Ragged) -> tuple[NDArray[Any], NDArray[np.int64]]:
    return rows.values, rows.offsets


def _as_blobs(values: Any) -> Blobs:
    if isinstance(values, Ragged):
        return Blobs(values.values, values.offsets)
    rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for i, row in enumerate(rows):
        if not isinstance(row, bytes | bytearray | memoryview):
            raise InvalidRowError(i, f"expected bytes, found a {type(row).__name__}")
    return Blobs.from_bytes(bytes(row) for row in rows)


def _checked_utf8(strings: Strings) -> Strings:
    """Return strings all of which are UTF-8."""
    if strings.values.dtype != np.uint8 or strings.item_shape:
        raise ValueError(f"strings are rows of uint8, found {strings.values.dtype} of shape {strings.item_shape}")
    try:
        strings.values.tobytes().decode()
    except UnicodeDecodeError:
        pass
    else:
        # All of it may be right where a character is cut in two: no row may begin with the rest of one.
        begins = strings.offsets[:-1][strings.lengths > 0]
        if not ((strings.values[begins] & 0xC0) == 0x80).any():
            return strings
    for row, (start, stop) in enumerate(pairwise(strings.offsets.tolist())):
        try:
            strings.values[start:stop].tobytes().decode()
        except UnicodeDecodeError as error:
            raise InvalidRowError(row, f"not UTF-8: {error.reason} at byte {error.start}") from None
    return strings


def _refuse_masks(name: str, values: Any) -> None:
    masked = sys.modules.get("numpy.ma")  # an import of 15 ms; without it there is no masked array
    if masked is None:
        return
    rows = values if isinstance(values, list | tuple) else ()
    if isinstance(values, masked.MaskedArray) or any(isinstance(row, masked.MaskedArray) for row in rows):
        raise SchemaError(f"column {name!r} is a masked array, and a store keeps no masks: fill it first")
