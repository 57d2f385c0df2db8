"""`Mixture`: batches whose rows come from several stores in given proportions."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Rational, Real
from typing import Any, Literal

import numpy as np

from shardstore.buffers import Allocate
from shardstore.errors import SchemaError
from shardstore.feeds import Feed, MixtureFeed
from shardstore.locks import cached_property
from shardstore.order import (
    BLOCK_ROWS,
    Ends,
    MixtureOrder,
    Order,
    Plan,
    Remainder,
    Sequential,
    WindowShuffle,
    source_seed,
)
from shardstore.planning import WINDOW_BYTES, Shuffle, choose_order
from shardstore.reading import StreamSource
from shardstore.schema import Field, parse_bytes
from shardstore.store import open_store
from shardstore.stream import Streamable, known_columns
from shardstore.table import Table
from shardstore.table_rows import Stopped

Stop = Literal["first", "all"] | int


def mix(sources: Mapping[Any, float], stop: Stop = "first") -> Mixture:
    """Return rows of several stores in given proportions, to be streamed in batches.

    Every source is gone through round after round, each time in another order if it is shuffled, and gives its part of
    every 65,536 rows or a few less: exactly its part where the weights stand in the ratio of whole numbers with a sum
    of at most 65,536, such as 3 and 1 or 0.7, 0.2 and 0.1; otherwise to a row, and at least one row.

    Args:
        sources: paths of stores, opened stores or views, with their weights: positive numbers of any sum.
        stop: when an epoch ends: with the last row of the source that is through `"first"`; once `"all"` were gone
            through; or once all were gone through n times.

    Raises:
        ValueError, TypeError: if there is no source, an empty one, or an argument that makes no sense.
        SchemaError: if the sources have no column in common, or one with different dtypes or row shapes.
        FormatError, CorruptionError: if a path holds no store, or a damaged one.
    """
    if not isinstance(sources, Mapping):
        raise TypeError(f"sources are a {type(sources).__name__}; expected a dict of stores and their weights")
    if not sources:
        raise ValueError("a mixture needs at least one source, found none")
    if len(sources) > BLOCK_ROWS:
        raise ValueError(f"a mixture has at most {BLOCK_ROWS:,} sources, found {len(sources):,}")
    ends = _checked_stop(stop)
    weights = [_exact_weight(source, weight) for source, weight in sources.items()]
    tables = tuple(_table(source) for source in sources)
    for table in tables:
        if not len(table):
            raise ValueError(f"{_name(table)} has no rows to mix")
    return Mixture(tables, block_quotas(weights), ends, _common_columns(tables))


def block_quotas(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Return how many positions of a block each of some positive weights gets: at least 1, at most `BLOCK_ROWS` in all.

    Where whole numbers in the weights' ratio fit, a multiple of these. Otherwise a weight too small for a position
    gets one, and the others share the rest by the method of largest remainders (A. Hamilton's): each has its part,
    rounded down or up.
    """
    scale = math.lcm(*(weight.denominator for weight in weights))
    wholes = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*wholes)
    total = sum(wholes) // divisor
    if total <= BLOCK_ROWS:
        return tuple(whole // divisor * (BLOCK_ROWS // total) for whole in wholes)
    quotas = [0] * len(wholes)
    shared, left = list(range(len(wholes))), BLOCK_ROWS
    while True:
        total = sum(wholes[i] for i in shared)
        rare = [i for i in shared if wholes[i] * left < total]
        if not rare:
            break
        for i in rare:
            quotas[i] = 1
        shared, left = [i for i in shared if not quotas[i]], left - len(rare)
    for i in shared:
        quotas[i] = wholes[i] * left // total
    by_remainder = sorted(shared, key=lambda i: -(wholes[i] * left % total))
    for i in by_remainder[: BLOCK_ROWS - sum(quotas)]:
        quotas[i] += 1
    return tuple(quotas)


class Mixture(Streamable):
    """Rows of several stores in given proportions. Made by `shardstore.mix`.

    Pickles as the stores' paths with the choice of rows and columns, and opens them when they are first needed.
    """

    def __init__(
        self, tables: tuple[Table, ...], quotas: tuple[int, ...], stop: Ends, columns: tuple[str, ...]
    ) -> None:
        self._tables = tables
        self._quotas = quotas
        self._stop = stop
        self._columns = columns
        self._sources = tuple(_name(table) for table in tables)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that all sources have, in the first one's order."""
        return self._columns

    @property
    def schema(self) -> dict[str, Field]:
        """Name, dtype and row shape of each column."""
        return {name: self._tables[0].files.field(name) for name in self._columns}

    @property
    def sources(self) -> tuple[str, ...]:
        """The paths of the stores; a batch's `"source"` numbers count in this order."""
        return self._sources

    def __len__(self) -> int:
        """Return the number of rows of one epoch, the same in every epoch and for every seed and shuffle."""
        return self._num_rows

    @cached_property
    def _num_rows(self) -> int:
        return MixtureOrder(tuple(Sequential(len(table)) for table in self._tables), self._quotas, self._stop, 0).count

    def __repr__(self) -> str:
        columns = ", ".join(f"{name}: {field}" for name, field in self.schema.items())
        block = sum(self._quotas)
        parts = zip(self._quotas, self._sources, strict=True)
        sources = ", ".join(f"{100 * quota / block:.4g}% {source!r}" for quota, source in parts)
        return f"Mixture({len(self):,} rows of {{{columns}}} from {sources}, stop={self._stop!r})"

    def select(self, *columns: str) -> Mixture:
        """Return the same rows with some of the columns, in the given order; raise `KeyError` if one is unknown."""
        return Mixture(self._tables, self._quotas, self._stop, known_columns(columns, self._columns))

    def plan(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        remainder: Remainder = "keep",
        window_bytes: int | str = WINDOW_BYTES,
        lanes: int = 1,
    ) -> Plan:
        """Return which rows each step of each epoch has, numbered as if the sources were put one after the other.

        See `batches` for the arguments. `shuffle` is about each source by itself: False takes the rows of each in
        their own order, and mixes them all the same; True reads compressed sources in windows and permutes all rows
        of the others. The windowed sources share `window_bytes` equally. A mixture has one lane.
        """
        if lanes != 1:
            raise ValueError(f"lanes is {lanes}; a mixture has one lane only")
        orders = self._orders(shuffle, [seed] * len(self._tables), window_bytes, lanes)
        windowed = sum(isinstance(order, WindowShuffle) for order in orders)
        share = max(1, parse_bytes(window_bytes) // max(1, windowed))
        seeds = [source_seed(seed, number) for number in range(len(self._tables))]
        orders = self._orders(shuffle, seeds, share, lanes)
        return Plan(MixtureOrder(orders, self._quotas, self._stop, int(seed)), batch_size, remainder)

    def _orders(self, shuffle: Shuffle, seeds: list[int], window_bytes: int | str, lanes: int) -> tuple[Order, ...]:
        return tuple(
            choose_order(
                [table.files.chunking(name) for name in table.files.columns],
                table.selection,
                shuffle,
                seed,
                window_bytes,
                lanes,
            )
            for table, seed in zip(self._tables, seeds, strict=True)
        )

    def source(self, order: Order) -> StreamSource:
        """Return the rows of this mixture in an order that its plan has."""
        if not isinstance(order, MixtureOrder):
            raise TypeError(f"the rows of a mixture come in an order of its own plan, found a {type(order).__name__}")
        tables = tuple(table.select(*self._columns) for table in self._tables)
        return MixtureRows(tables, order)


class MixtureRows:
    """The rows of a mixture in some order: what streams read. A `shardstore.stream.StreamSource`."""

    def __init__(self, tables: tuple[Table, ...], order: MixtureOrder) -> None:
        self._tables = tables
        self._order = order
        self.count = sum(len(table) for table in tables)
        self.columns = tables[0].columns
        self.names = ("rows", "source")
        self.row_nbytes = tables[0].row_nbytes

    def versions(self) -> tuple[Any, ...]:
        """Return what tells the columns from others of their names in the same stores."""
        return tuple(source.versions() for source in self._sources)

    def check_budget(self, batch_size: int) -> None:
        """Raise `ValueError` if a batch, or windows of all sources, do not fit the memory budgets that were set."""
        for source in self._sources:
            source.check_budget(batch_size)

    def buffer_nbytes(self) -> int:
        """Return how many bytes the smallest memory budget has for buffers."""
        return min(source.buffer_nbytes() for source in self._sources)

    @property
    def is_populated(self) -> bool:
        """Whether `populate` has been through, in this process."""
        return all(source.is_populated for source in self._sources)

    def populate(self, stopped: Stopped) -> None:
        """Bring the sources into the page cache and page tables, unless few of their rows are meant."""
        for source in self._sources:
            source.populate(stopped)

    @cached_property
    def _sources(self) -> tuple[StreamSource, ...]:
        return tuple(table.source(order) for table, order in zip(self._tables, self._order.sources, strict=True))

    def feed(self, empty: Allocate = np.empty, copy: bool = True) -> Feed:
        """Return a new feed of the rows in their order, which are always copied."""
        return MixtureFeed([source.feed(np.empty) for source in self._sources], self._order, empty)

    def fingerprint(self) -> str:
        """Return what tells these rows from others: the stores and selections in their order, but not the columns."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        found = " ".join(source.fingerprint() for source in self._sources)
        return f"mixture/{hashlib.blake2b(found.encode(), digest_size=16).hexdigest()}"


def _name(table: Table) -> str:
    return str(table.files.path)


def _table(source: Any) -> Table:
    if isinstance(source, Table):
        return source
    if isinstance(source, str | os.PathLike):
        return open_store(source)
    raise TypeError(f"a source is a {type(source).__name__}; expected the path of a store, a store or a view")


def _checked_stop(stop: Any) -> Ends:
    """Return after how many rounds of all sources an epoch ends, or that the first source ends it."""
    if isinstance(stop, str):
        if stop not in ("first", "all"):
            raise ValueError(f"stop is {stop!r}; expected 'first', 'all' or a number of rounds")
        return "first" if stop == "first" else 1
    if isinstance(stop, bool) or not isinstance(stop, int | np.integer):
        raise TypeError(f"stop is a {type(stop).__name__}; expected 'first', 'all' or a number of rounds")
    if stop < 1:
        raise ValueError(f"stop is {stop}; expected at least 1 round of all sources")
    return int(stop)


def _exact_weight(source: Any, weight: Any) -> Fraction:
    """Return a weight as a fraction: the one with a small denominator that is written as this float, if there is."""
    name = repr(_name(source) if isinstance(source, Table) else source)
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise TypeError(f"the weight of {name} is a {type(weight).__name__}; expected a positive number")
    if not (isinstance(weight, Rational) or math.isfinite(weight)) or weight <= 0:
        raise ValueError(f"the weight of {name} is {weight}; expected a positive, finite number")
    if isinstance(weight, Rational):
        return Fraction(int(weight.numerator), int(weight.denominator))
    exact = Fraction(float(weight))
    simple = exact.limit_denominator(BLOCK_ROWS)
    return simple if float(simple) == float(weight) else exact


def _common_columns(tables: Sequence[Table]) -> tuple[str, ...]:
    first = tables[0]
    common = tuple(name for name in first.columns if all(name in table for table in tables))
    if not common:
        found = "; ".join(f"{_name(table)} has {', '.join(table.columns)}" for table in tables)
        raise SchemaError(f"the sources have no column in common: {found}")
    for table in tables[1:]:
        for name in common:
            field, other = first.files.field(name), table.files.field(name)
            if field != other:
                # What is called the same has other names for its numbers.
                differs = "" if str(field) != str(other) else " with other categories"
                raise SchemaError(
                    f"column {name!r} is {field} in {_name(first)}, but {other}{differs} in {_name(table)}: "
                    "leave it out with select, or write one of the stores again"
                )
    return common
