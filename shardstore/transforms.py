"""Transforms of batches that use what is known of a store's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shardstore.statistics.summary import NUMERIC, ColumnStatistics

# Items that are normalised at a time: their float64 copies stay in the cache. More than a row with statistics of each.
_ITEMS = 1 << 15

Floats = NDArray[np.float64]


class Normalize:
    """A transform that subtracts each column's mean and divides by its standard deviation.

    Each value becomes `(x - mean) / std`, computed in float64 and rounded once. Where the standard deviation is 0,
    which is where all values are equal, it is taken as 1; where there is no finite value to take a mean of, values
    stay as they are. Infinities stay infinite. It can be pickled, and used by many threads at once.

    Args:
        statistics: by column, as `Store.stats` has them.
        columns: which to normalise; by default all that hold floats.
        per_feature: each element of a row by its own mean and standard deviation, as is usual for tables; False for
            one of each for the whole column, as is usual for images. Columns of scalars have only these.
        dtype: float dtype of the normalised columns.
        nan: what NaNs become after the others were normalised (0.0 is the mean); None leaves them.

    Raises:
        ValueError: if a column has no statistics, or none of each feature, or there is nothing to normalise.
        TypeError: if a column is not numeric, or `dtype` is no float dtype.
    """

    def __init__(
        self,
        statistics: Mapping[str, ColumnStatistics],
        columns: Sequence[str] | None = None,
        *,
        per_feature: bool = True,
        dtype: DTypeLike = np.float32,
        nan: float | None = None,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.per_feature = per_feature
        self.nan = nan
        if self.dtype.kind != "f":
            raise TypeError(f"normalised values need a float dtype such as float32, not {self.dtype}")
        if isinstance(columns, str):
            raise TypeError(f"columns is a list of names; to normalise one column, pass [{columns!r}]")
        if columns is None:
            columns = [name for name, found in statistics.items() if _holds_floats(found)]
            if not columns:
                known = ", ".join(statistics) or "none"
                raise ValueError(f"no column with statistics holds floats (there are: {known}); name columns=[...]")
        self._scales = {name: _scale(name, statistics, per_feature) for name in columns}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are normalised."""
        return tuple(self._scales)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch, or a row, whose named columns are fresh normalised arrays; the others are the same objects.

        Columns that the batch has not are passed over.

        Raises:
            ValueError: if a column's rows have another shape than the statistics.
        """
        return {name: self._normalize(name, value) for name, value in batch.items()}

    def inverse(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch, or a row, whose named columns are back in their own units, as float64: `x · std + mean`.

        A NaN that was replaced comes back as a number: one that became 0.0 as the mean.
        """
        return {name: self._restore(name, value) for name, value in batch.items()}

    def _normalize(self, name: str, value: Any) -> Any:
        scale = self._scales.get(name)
        if scale is None:
            return value
        array = scale.checked(name, value)
        out = np.empty(array.shape, self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for part, target in _parts(array, out):
                work = part.astype(np.float64)
                work -= scale.mean
                work /= scale.std
                if self.nan is not None:
                    work[np.isnan(work)] = self.nan
                target[...] = work
        return out if isinstance(value, np.ndarray) else out[()]

    def _restore(self, name: str, value: Any) -> Any:
        scale = self._scales.get(name)
        if scale is None:
            return value
        out = scale.checked(name, value).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            out *= scale.std
            out += scale.mean
        return out if isinstance(value, np.ndarray) else out[()]

    def __repr__(self) -> str:
        options = f"per_feature={self.per_feature}, dtype={self.dtype}, nan={self.nan}"
        return f"Normalize({', '.join(self.columns)}; {options})"


@dataclass(frozen=True)
class _Scale:
    """What one column's values are moved and divided by: float64 of `row_shape`, or `()` for the whole column."""

    mean: Floats
    std: Floats
    row_shape: tuple[int, ...]

    def checked(self, name: str, value: Any) -> NDArray[Any]:
        """Return a value as an array of whole rows."""
        array = np.asarray(value)
        axes = len(self.row_shape)
        if array.shape[max(0, array.ndim - axes) :] != self.row_shape:
            raise ValueError(
                f"column {name!r} has values of shape {array.shape}, but its statistics are of rows of shape "
                f"{self.row_shape}: pass statistics of the same store, or normalise before rows are reshaped"
            )
        return array


def _scale(name: str, statistics: Mapping[str, ColumnStatistics], per_feature: bool) -> _Scale:
    if name not in statistics:
        known = ", ".join(map(repr, statistics)) or "none"
        raise ValueError(f"there are no statistics of column {name!r}; there are of: {known}")
    found = statistics[name]
    if found.kind != NUMERIC:
        raise TypeError(
            f"column {name!r} cannot be normalised: it is {found.kind} ({found.dtype}), "
            "expected bool, integers or floats: leave it out of columns"
        )
    mean = np.array(np.nan if found.mean is None else found.mean)
    std = np.array(np.nan if found.std is None else found.std)
    if per_feature and found.row_shape and found.mean is not None:
        if found.feature_mean is None or found.feature_std is None:
            raise ValueError(
                f"column {name!r} has rows of {prod(found.row_shape):,} elements, too many for statistics of each: "
                "pass per_feature=False to normalise all of it by one mean and standard deviation"
            )
        mean, std = np.array(found.feature_mean), np.array(found.feature_std)
    # Without a finite value there is nothing to move by.
    return _Scale(np.where(np.isnan(mean), 0.0, mean), np.where(std > 0, std, 1.0), found.row_shape)


def _holds_floats(found: ColumnStatistics) -> bool:
    return found.kind == NUMERIC and "float" in found.dtype


def _parts(array: NDArray[Any], out: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Cut two large arrays alike along their first axis; what the statistics of one row describe is never cut."""
    if array.size <= _ITEMS:
        yield array, out
        return
    step = max(1, _ITEMS // (array.size // len(array)))
    for start in range(0, len(array), step):
        yield array[start : start + step], out[start : start + step]
