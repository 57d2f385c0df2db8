"""`Pad`: ragged columns of a batch as arrays in which all rows have one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from shardstore.ragged import Blobs, Ragged, Side, Strings, check_padding
from shardstore.stream import column_names


@dataclass(frozen=True)
class Padding:
    """Which columns are padded, and how.

    Attributes:
        columns: the columns; None: see the classes below.
        fill: the value behind (or before) a row's own items.
        length: items of every row, at least 0; None: those of the longest row of the batch. Longer rows are cut.
        side: where rows are filled and cut: `"right"`, behind their items, or `"left"`, before them.
        lengths: whether to add the number of items of each row that are its own, int64 `(rows,)`, as `NAME_length`.
    """

    columns: str | Sequence[str] | None = None
    _: KW_ONLY
    fill: Any = 0
    length: int | None = None
    side: Side = "right"
    lengths: bool = True

    def __post_init__(self) -> None:
        check_padding(self.length, self.side)
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(column_names(self.columns)))

    def check_columns(self, batch: Mapping[str, Any]) -> None:
        """Raise `KeyError` if a batch has not all the columns."""
        for name in self.columns or ():
            if name not in batch:
                raise KeyError(f"no column {name!r} to pad; the batch has {', '.join(batch)}")

    def with_lengths(self, batch: Mapping[str, Any], lengths: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch with the lengths of its padded columns last, if they are wanted.

        Raises:
            ValueError: if a name is taken.
        """
        added = {f"{name}_length": own for name, own in lengths.items()} if self.lengths else {}
        for name in added:
            if name in batch:
                raise ValueError(
                    f"the lengths of a padded column go under {name!r}, but the batch has that already: "
                    "leave it out with columns=…, or pad with lengths=False"
                )
        return {**batch, **added}


@dataclass(frozen=True)
class Pad(Padding):
    """A transform of batches of NumPy arrays that pads ragged columns: `store.batches(64, transform=Pad())`.

    Each padded column becomes an array `(rows, length, *item_shape)`. Without `columns` all ragged columns are padded
    but strings and bytes; these are padded as arrays of uint8 if they are named.

    See `Padding` for the arguments.

    Raises:
        KeyError: for a batch without a named column.
        ValueError: for an argument that makes no sense, a named column that is not ragged, a batch without ragged
            columns, or one that has a `NAME_length` already.
    """

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch with its ragged columns padded, and their lengths last."""
        self.check_columns(batch)
        padded = dict(batch)
        lengths: dict[str, Any] = {}
        for name in _ragged_columns(batch) if self.columns is None else self.columns:
            rows = batch[name]
            if not isinstance(rows, Ragged):
                raise ValueError(
                    f"column {name!r} is not ragged, so there is nothing to pad: found a {type(rows).__name__}"
                )
            padded[name], lengths[name] = rows.to_padded(self.fill, self.length, self.side)
        return self.with_lengths(padded, lengths)


def _ragged_columns(batch: Mapping[str, Any]) -> list[str]:
    found = [name for name, rows in batch.items() if isinstance(rows, Ragged) and not isinstance(rows, Strings | Blobs)]
    if not found:
        raise ValueError(
            f"no ragged column to pad among {', '.join(batch)}: Pad is for whole batches; for single rows, "
            "shardstore.torch.PadCollate pads where they are put together"
        )
    return found
