"""What is known of a column's values: how many, how large, how spread; pure values with an exact JSON form.

The JSON form holds integers, strings, lists, null and objects, no floats: a float is the string that Python's `repr`
gives and `float` reads back, an array of floats is its little-endian bytes in Base64. What was written is read back
bit for bit, also -0.0, NaN and infinities.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import FormatError

NUMERIC, COMPLEX, TIME, BYTES = "numeric", "complex", "time", "bytes"
CATEGORICAL, RAGGED, TEXT = "categorical", "ragged", "text"
# How many bins a histogram has at most where nothing else is asked for.
DEFAULT_BINS = 32
KINDS = (NUMERIC, COMPLEX, TIME, BYTES, CATEGORICAL, RAGGED, TEXT)


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many finite values lie in each bin.

    A bin holds the values `edge <= value < next edge`; the last one its upper edge, too.

    Attributes:
        edges: float64 `(bins + 1,)`, strictly increasing. Those of integers are whole numbers, the last one above the
            maximum, and each is exactly a float64.
        counts: int64 `(bins,)`, exact.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"edges": _write_array(self.edges), "counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Histogram:
        """Read the JSON form; raise `ValueError`, `KeyError` or `TypeError` if it is none."""
        edges, counts = _read_array(body["edges"]), _read_counts(body["counts"])
        if edges.shape != (len(counts) + 1,) or not len(counts) or not (np.diff(edges) > 0).all():
            raise ValueError("a histogram needs increasing edges, one more than it has counts")
        return cls(edges, counts)


@dataclass(frozen=True, eq=False)
class ColumnStatistics:
    """What is known of a column's values. Two are equal if they are bit for bit.

    Numbers are those of finite values: NaNs (also NaT) and infinities are only counted. Values that are not there
    (no finite value, a kind without such numbers) are None.

    Attributes:
        kind: "numeric" (bool, integers, floats), "complex" (all numbers are of magnitudes), "time" (datetime64 and
            timedelta64: all numbers are int64 ticks of the dtype's unit), "bytes" (counts only), "categorical",
            "ragged" or "text".
        dtype: the name of the values' dtype, as `str(numpy.dtype)` gives it.
        row_shape: the shape of one row; `()` for scalars.
        count: rows.
        values: items of all rows, NaNs and infinities among them.
        nans: NaNs, NaTs, or codes of no category.
        infinities: values that are infinite and not NaN.
        minimum: least finite value, exact: an int for bool, integers and times, else a float.
        maximum: greatest finite value, as `minimum`.
        mean: of all finite values.
        std: their population standard deviation; exactly 0.0 where all are equal.
        feature_mean: float64 `row_shape`, the mean of each element of a row over all rows; NaN where it has no finite
            value. None for scalars and for rows of more than `moments.MAX_FEATURES` elements.
        feature_std: float64 `row_shape`, as `feature_mean`.
        histogram: of all finite values.
        categories: the names of a categorical column's codes 0, 1, ….
        category_counts: int64 `(categories,)`, the rows of each.
        lengths: of the rows of a ragged or text column.
        elements: of what the rows of a ragged column hold.
    """

    kind: str
    dtype: str
    row_shape: tuple[int, ...]
    count: int
    values: int
    nans: int = 0
    infinities: int = 0
    minimum: int | float | None = None
    maximum: int | float | None = None
    mean: float | None = None
    std: float | None = None
    feature_mean: NDArray[np.float64] | None = None
    feature_std: NDArray[np.float64] | None = None
    histogram: Histogram | None = None
    categories: tuple[str, ...] | None = None
    category_counts: NDArray[np.int64] | None = None
    lengths: ColumnStatistics | None = None
    elements: ColumnStatistics | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without what is None."""
        body: dict[str, Any] = {
            "kind": self.kind,
            "dtype": self.dtype,
            "row_shape": list(self.row_shape),
            **{name: getattr(self, name) for name in _COUNTS},
            **{name: _write_number(getattr(self, name)) for name in _NUMBERS},
            **{name: _write_array(getattr(self, name)) for name in _ARRAYS},
            "categories": None if self.categories is None else list(self.categories),
            "category_counts": None if self.category_counts is None else self.category_counts.tolist(),
            **{name: None if (part := getattr(self, name)) is None else part.to_json() for name in _PARTS},
        }
        return {key: value for key, value in body.items() if value is not None}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ColumnStatistics:
        """Read the JSON form.

        Raises:
            FormatError: if the kind is unknown: a later release wrote it.
            ValueError, KeyError, TypeError: if it is none.
        """
        kind = body["kind"]
        if kind not in KINDS:
            raise FormatError(f"statistics have the kind {kind!r}, which this release cannot read")
        row_shape = tuple(_read_counts(body["row_shape"]).tolist())
        read: dict[str, Any] = {name: _read_count(body[name]) for name in _COUNTS}
        read |= {name: _read_number(body[name]) for name in _NUMBERS if name in body}
        read |= {name: _read_array(body[name]).reshape(row_shape) for name in _ARRAYS if name in body}
        read |= {name: cls.from_json(body[name]) for name in ("lengths", "elements") if name in body}
        if "histogram" in body:
            read["histogram"] = Histogram.from_json(body["histogram"])
        if "categories" in body:
            read["categories"] = tuple(map(_read_text, body["categories"]))
        if "category_counts" in body:
            read["category_counts"] = _read_counts(body["category_counts"])
        found = cls(kind, _read_text(body["dtype"]), row_shape, **read)
        found._check()
        return found

    def _check(self) -> None:
        """Raise `ValueError` if the parts do not belong together."""
        if (self.feature_mean is None) != (self.feature_std is None):
            raise ValueError("a mean of each feature needs a standard deviation of each, and the other way round")
        named, counted = self.categories, self.category_counts
        if (named is None) != (self.kind != CATEGORICAL) or (named is None) != (counted is None):
            raise ValueError("categories and their counts belong to categorical columns, and to no other")
        if named is not None and counted is not None and len(named) != len(counted):
            raise ValueError(f"{len(named)} categories have {len(counted)} counts")
        if (self.lengths is None) != (self.kind not in (RAGGED, TEXT)):
            raise ValueError("lengths belong to ragged and text columns, and to no other")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ColumnStatistics) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]


_COUNTS = ("count", "values", "nans", "infinities")
_NUMBERS = ("minimum", "maximum", "mean", "std")
_ARRAYS = ("feature_mean", "feature_std")
_PARTS = ("histogram", "lengths", "elements")


def _write_number(value: int | float | None) -> int | str | None:
    return repr(value) if isinstance(value, float) else value


def _read_number(value: Any) -> int | float:
    if type(value) is int:
        return value
    if type(value) is str:
        return float(value)
    raise TypeError(f"expected an integer or a float as a string, found {value!r}")


def _write_array(array: NDArray[np.float64] | None) -> str | None:
    return None if array is None else base64.b64encode(array.astype("<f8").tobytes()).decode()


def _read_array(text: Any) -> NDArray[np.float64]:
    try:
        return np.frombuffer(base64.b64decode(_read_text(text), validate=True), "<f8").astype(np.float64)
    except binascii.Error as error:
        raise ValueError(f"not an array of floats in Base64: {error}") from None


def _read_count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a count, found {value!r}")
    return value


def _read_counts(values: Any) -> NDArray[np.int64]:
    if type(values) is not list:
        raise TypeError(f"expected a list of counts, found {values!r}")
    return np.array([_read_count(value) for value in values], np.int64)


def _read_text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a string, found {value!r}")
    return value
