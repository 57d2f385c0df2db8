"""`Ragged`: rows of different lengths, end to end in one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstore.buffers import Allocate
from shardstore.casting import exact_array
from shardstore.errors import CorruptionError
from shardstore.selection import Rows, normalize

Side = Literal["right", "left"]

# Up to here an index of every item is faster than a slice of every row.
_SHORT_RUN_NBYTES = 24
# NumPy has no larger elements.
_LARGEST_RUN_NBYTES = 2**31 - 1
# Runs that need a second copy are joined so many bytes at a time.
_BLOCK_NBYTES = 128 << 10


class InvalidRowError(ValueError):
    """What is wrong with one of some rows.

    Attributes:
        row: its number among them.
        what: what was expected and found.
    """

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"row {row:,}: {what}")
        self.row = row
        self.what = what


class Ragged:
    """Rows of different lengths: their items end to end, and where each row begins.

    Row *i* is `values[offsets[i] : offsets[i + 1]]`, an array of any number of items.

    Args:
        values: `(items, *item_shape)`, the items of all rows.
        offsets: int64 `(rows + 1,)`, from 0 to the number of items, never decreasing.

    Raises:
        ValueError: if the offsets do not fit the values.

    Attributes:
        values: as given.
        offsets: as given, as int64.
    """

    def __init__(self, values: ArrayLike, offsets: ArrayLike) -> None:
        self.values: NDArray[Any] = np.asarray(values)
        self.offsets: NDArray[np.int64] = _integers(offsets, "offsets")
        if self.values.ndim == 0:
            raise ValueError("values is a single value; expected an array of items")
        if self.offsets.ndim != 1 or not len(self.offsets):
            raise ValueError("offsets must have one axis, with one entry more than there are rows")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"offsets must go from 0 to the {len(self.values):,} items; "
                f"they go from {self.offsets[0]:,} to {self.offsets[-1]:,}"
            )
        if (bad := first_decrease(self.offsets)) is not None:
            raise ValueError(
                f"offsets must not decrease: offset {bad + 1:,} is {self.offsets[bad + 1]:,}, "
                f"behind {self.offsets[bad]:,}"
            )

    @classmethod
    def checked(cls, values: NDArray[Any], offsets: NDArray[np.int64]) -> Self:
        """Make one of parts that are known to fit, without looking at them again."""
        made = cls.__new__(cls)
        made.values, made.offsets = values, offsets
        return made

    @classmethod
    def from_lengths(cls, values: ArrayLike, lengths: ArrayLike) -> Self:
        """Make one of the items of all rows and the number of items of each row.

        Raises:
            ValueError: if a length is negative, or the lengths do not sum up to the items.
        """
        array, counts = np.asarray(values), _integers(lengths, "lengths")
        if counts.ndim != 1:
            raise ValueError(f"lengths must have one axis, found {counts.ndim}")
        if len(counts) and counts.min() < 0:
            raise InvalidRowError(int(counts.argmin()), f"a length of {counts.min():,}; lengths must not be negative")
        if counts.sum() != len(array):
            raise ValueError(f"lengths sum up to {counts.sum():,}, but there are {len(array):,} items")
        return cls.checked(array, offsets_of(counts))

    @classmethod
    def from_rows(cls, rows: Iterable[ArrayLike], dtype: Any = None, item_shape: Sequence[int] | None = None) -> Self:
        """Make one of a list of arrays, one a row.

        Args:
            rows: arrays of one dtype and one shape behind their first axis. Empty lists fit all.
            dtype: the items' dtype; by default that of the rows.
            item_shape: the items' shape; by default that of the rows.

        Raises:
            ValueError: if the rows differ, or one is a single value.
        """
        arrays = [exact_array(row) for row in rows]
        for i, array in enumerate(arrays):
            if array.ndim == 0:
                raise InvalidRowError(i, "a single value; a row of a ragged column is an array of items")
        # An empty list has no dtype to speak of: NumPy takes it for floats of one axis.
        told = [array for array in arrays if array.size or array.ndim > 1 or array.dtype != np.float64] or arrays
        found = np.dtype(dtype) if dtype is not None else told[0].dtype if told else np.dtype(np.float64)
        shape = tuple(item_shape) if item_shape is not None else told[0].shape[1:] if told else ()
        for i, array in enumerate(arrays):
            if array.size == 0 and len(array) == 0:
                continue
            if array.shape[1:] != shape:
                raise InvalidRowError(i, f"items of shape {array.shape[1:]}, expected {shape}")
            if array.dtype != found and not np.can_cast(array.dtype, found, "safe"):
                raise InvalidRowError(i, f"dtype {array.dtype}, expected {found}")
        lengths = np.array([len(array) for array in arrays], np.int64)
        values = np.empty((int(lengths.sum()), *shape), found)
        if len(values):
            np.concatenate([array for array in arrays if len(array)], out=values, casting="same_kind")
        return cls.checked(values, offsets_of(lengths))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Put the rows of several, of one dtype and item shape, behind one another in fresh arrays."""
        lengths = np.concatenate([part.lengths for part in parts])
        return type(parts[0]).checked(np.concatenate([part.values for part in parts]), offsets_of(lengths))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 `(rows,)`, the number of items of each row."""
        return np.diff(self.offsets)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the items."""
        return self.values.dtype

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        return self.values.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes of values and offsets."""
        return self.values.nbytes + self.offsets.nbytes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        """Return one row (an int) or consecutive rows (a slice) as views, or fresh ones by integers or a mask."""
        index = normalize(index, len(self))
        if isinstance(index, int):
            return self._row(self.values[self.offsets[index] : self.offsets[index + 1]])
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:
                offsets = self.offsets[first : max(first, last) + 1]
                return self.checked(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
            index = np.arange(first, last, step)
        return self.checked(*_picked(self, index))

    def _row(self, items: NDArray[Any]) -> Any:
        """Return a row as the user sees it."""
        return items

    @classmethod
    def _end_to_end(cls, rows: list[bytes]) -> Self:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls.checked(np.frombuffer(bytearray().join(rows), np.uint8), offsets_of(lengths))

    def __iter__(self) -> Iterator[Any]:
        bounds = self.offsets.tolist()
        for start, stop in pairwise(bounds):
            yield self._row(self.values[start:stop])

    def copy(self) -> Self:
        """Return the same rows in fresh arrays."""
        return self.checked(self.values.copy(), self.offsets.copy())

    def to_list(self) -> list[Any]:
        """Return the rows as a list: of nested lists of Python numbers, or of strings or bytes."""
        return [row.tolist() for row in self]

    def to_padded(
        self, fill: Any = 0, length: int | None = None, side: Side = "right"
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the rows as one array, all of one length, and how many items of each are its own.

        Args:
            fill: the value behind (or before) a row's own items; 0 is no byte for fixed-width bytes.
            length: items of every row, at least 0; by default those of the longest row. Longer rows are cut.
            side: where rows are filled and cut: `"right"`, behind their items, or `"left"`, before them.

        Returns:
            A fresh array `(rows, length, *item_shape)` and int64 `(rows,)`, each row's number of own items in it.
        """
        check_padding(length, side)
        _check_fill(fill, self.dtype)
        lengths = self.lengths
        width = int(lengths.max(initial=0)) if length is None else int(length)
        kept = np.minimum(lengths, width)
        values = self.values
        if (kept < lengths).any():
            starts = self.offsets[:-1] if side == "right" else self.offsets[1:] - kept
            values = join_runs(values, starts, starts + kept)
        if self.dtype.kind == "S" and fill == 0:
            fill = b""
        padded = np.full((len(self), width, *self.item_shape), fill, self.dtype)
        places = np.arange(width)
        padded[places < kept[:, None] if side == "right" else places >= (width - kept)[:, None]] = values
        return padded, kept

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.item_shape))
        items = f"{self.dtype}[{shape}]" if shape else str(self.dtype)
        return f"{type(self).__name__}({len(self):,} rows of {items}, {len(self.values):,} items)"


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"a string is not UTF-8 ({error}): shardstore verify --deep names its row") from None


class Strings(Ragged):
    """Rows that are strings: `values` are their UTF-8 bytes."""

    def _row(self, items: NDArray[Any]) -> str:
        return _decoded(items.tobytes())

    def to_list(self) -> list[str]:
        """Return the strings."""
        text = self.values.tobytes()
        bounds = self.offsets.tolist()
        return [_decoded(text[start:stop]) for start, stop in pairwise(bounds)]

    def to_numpy(self) -> NDArray[Any]:
        """Return the strings as an array of NumPy's `StringDType`."""
        return np.array(self.to_list(), np.dtypes.StringDType())

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> Self:
        """Make one of strings; raise `ValueError` for lone surrogates, which UTF-8 does not have."""
        return cls._end_to_end([text.encode() for text in strings])


class Blobs(Ragged):
    """Rows that are bytes."""

    def _row(self, items: NDArray[Any]) -> bytes:
        return items.tobytes()

    def to_list(self) -> list[bytes]:
        """Return the rows as bytes."""
        return list(self)

    @classmethod
    def from_bytes(cls, rows: Iterable[bytes]) -> Self:
        """Make one of bytes."""
        return cls._end_to_end(list(rows))


def place_parts(parts: Sequence[tuple[slice | Rows, Ragged]]) -> Ragged:
    """Put rows where they belong: each part comes with the places of its rows, and all together fill a range."""
    if len(parts) == 1 and isinstance(parts[0][0], slice):
        return parts[0][1]
    joined = type(parts[0][1]).concatenate([part for _, part in parts])
    places = [np.arange(where.start, where.stop) if isinstance(where, slice) else where for where, _ in parts]
    order = np.argsort(np.concatenate(places))
    return joined if (order[1:] > order[:-1]).all() else type(joined).checked(*_picked(joined, order))


def _picked(rows: Ragged, order: Rows) -> tuple[NDArray[Any], NDArray[np.int64]]:
    starts, stops = rows.offsets[order], rows.offsets[order + 1]
    return join_runs(rows.values, starts, stops), offsets_of(stops - starts)


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{name} must be integers, found {array.dtype}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be below 2**63, found {array.max():,}")
    return array.astype(np.int64, copy=False)


def check_padding(length: int | None, side: str) -> None:
    """Raise `ValueError` if rows cannot be padded to a length, or on a side."""
    if side not in ("right", "left"):
        raise ValueError(f"side is {side!r}; expected 'right' or 'left'")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 0):
        raise ValueError(f"length is {length!r}; expected at least 0, or None for that of the longest row")


def _check_fill(fill: Any, dtype: np.dtype[Any]) -> None:
    """Raise `ValueError` if integers cannot be filled up with a value."""
    if dtype.kind in "iu" and isinstance(fill, float | np.floating) and not float(fill).is_integer():
        raise ValueError(f"fill is {fill}, which is no {dtype}: convert the values first")


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64 `(rows + 1,)`, where rows of these lengths begin when they lie end to end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def first_decrease(offsets: NDArray[np.int64]) -> int | None:
    """Return the first position whose successor is smaller, or None."""
    down = offsets[1:] < offsets[:-1]
    return int(down.argmax()) if down.any() else None


def join_runs(values: NDArray[Any], starts: Rows, stops: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Copy runs of consecutive items, one after the other, into one array.

    Args:
        values: C-contiguous `(items, *item_shape)`.
        starts: int64 `(runs,)`, in range.
        stops: int64 `(runs,)`, in range and not before their starts.
        out: C-contiguous, of all runs' items; by default a fresh array.
    """
    lengths = stops - starts
    item_nbytes = values.dtype.itemsize * prod(values.shape[1:])
    length = int(lengths[0]) if len(lengths) else 0
    if 0 < length * item_nbytes <= _LARGEST_RUN_NBYTES and (lengths == length).all():
        return _join_equal(values, starts, length, out)
    total = int(lengths.sum())
    if not total * item_nbytes:
        return np.empty((total, *values.shape[1:]), values.dtype) if out is None else out
    offsets = offsets_of(lengths)
    if total * item_nbytes <= _SHORT_RUN_NBYTES * len(starts):
        items = np.arange(total) + np.repeat(starts - offsets[:-1], lengths)
        return values.take(items, axis=0, out=out, mode="clip")
    if out is None:
        return _joined_slices(values, starts, stops)
    cuts = np.searchsorted(offsets, np.arange(0, total, max(1, _BLOCK_NBYTES // item_nbytes)))
    for first, last in pairwise(np.unique([*cuts.tolist(), len(starts)]).tolist()):
        out[offsets[first] : offsets[last]] = _joined_slices(values, starts[first:last], stops[first:last])
    return out


def _joined_slices(values: NDArray[Any], starts: Rows, stops: Rows) -> NDArray[Any]:
    # Joining slices of a buffer costs half of what concatenating slices of an array does.
    item_nbytes = values.dtype.itemsize * prod(values.shape[1:])
    buffer = values.reshape(-1).view(np.uint8).data
    bounds = zip((starts * item_nbytes).tolist(), (stops * item_nbytes).tolist(), strict=True)
    joined = bytearray().join([buffer[start:stop] for start, stop in bounds])
    return np.frombuffer(joined, values.dtype).reshape(-1, *values.shape[1:])


def _join_equal(values: NDArray[Any], starts: Rows, length: int, out: NDArray[Any] | None) -> NDArray[Any]:
    """Gather runs of one length, each as one element: a run then costs some nanoseconds and the copying of it."""
    item_nbytes = values.dtype.itemsize * prod(values.shape[1:])
    run = np.dtype(f"V{length * item_nbytes}")
    if out is None:
        # A run begins at every item, so these overlap. Indexing copes with that, `take` would copy all of them first.
        buffer = values.reshape(-1).view(np.uint8).data
        runs: NDArray[Any] = np.ndarray((len(values) - length + 1,), run, buffer, strides=(item_nbytes,))
        return runs[starts].view(values.dtype).reshape(-1, *values.shape[1:])
    target = out.reshape(-1).view(run)
    block = max(1, _BLOCK_NBYTES // run.itemsize)
    for first in range(0, len(starts), block):  # small enough that the second copy reads from the cache
        target[first : first + block] = (
            _join_equal(values, starts[first : first + block], length, None).reshape(-1).view(run)
        )
    return out


# What columns give for several rows.
Values = NDArray[Any] | Ragged


def owned(values: Values, empty: Allocate = np.empty) -> Values:
    """Return rows in writable arrays: those that are views of files, as copies in arrays made by `empty`."""
    if isinstance(values, Ragged):
        return values.checked(_owned(values.values, empty), values.offsets)
    return _owned(values, empty)


def _owned(array: NDArray[Any], empty: Allocate) -> NDArray[Any]:
    if array.flags.writeable:
        return array
    copied = empty(array.shape, array.dtype)
    copied[...] = array
    return copied


RAGGED_CLASSES: dict[str, type[Ragged]] = {"ragged": Ragged, "utf8": Strings, "binary": Blobs}
