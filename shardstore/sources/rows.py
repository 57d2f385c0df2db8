"""Where blocks of rows come from: any iterable of rows or of batches, or the arrays of files."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import accumulate, islice
from typing import Any, Protocol

import numpy as np

from shardstore.errors import SourceError
from shardstore.pipeline.blocks import BLOCK_BYTES, BadRow, Block, Ended, collect_rows, cut_batches, owned, reason_of
from shardstore.ragged import RAGGED_CLASSES, Values
from shardstore.schema import Field
from shardstore.sources.inputs import Inputs
from shardstore.sources.named import Sources
from shardstore.sources.paths import Paths

Rows = Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]


class BlockSource(Protocol):
    """Gives blocks of rows, once."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def blocks(self, block_rows: int | None, *, skip: bool, copy: bool) -> Iterator[Block | BadRow]:
        """Yield blocks and the rows that could not be read.

        Args:
            block_rows: the most rows of a block; None for about 2 MiB.
            skip: whether bad rows are skipped.
            copy: whether a block must stay valid when the next one is asked for.
        """

    def describe_row(self, number: int) -> str | None:
        """Return the place of a row, such as its file and the row there, if it is known."""

    def close(self) -> None:
        """Let go of what is open."""


class RowStream:
    """Rows, or batches of rows, from an iterator that can be gone through once.

    An iterator that goes on after an error says so by an attribute `resumable` that is true; every other one has ended
    with its first error. An iterable may have a `name` for messages and a method `describe_row(number)`, which returns
    the place of a row or None.
    """

    def __init__(self, source: Any, iterator: Iterator[Any], batched: bool) -> None:
        self.name = _name(source)
        self._batched = batched
        self._iterator = iterator
        self._resumable = bool(getattr(iterator, "resumable", False))
        self._describe: Callable[[int], str | None] = getattr(source, "describe_row", lambda number: None)
        self._peeked: list[Any] = []
        self._ended = False

    def peek(self) -> list[Any]:
        """Return the first item, which stays the first; nothing if there is none."""
        self._peeked = list(islice(self._following(), 1))
        return self._peeked

    def items(self) -> Iterator[Any]:
        """Yield the items; an exception in place of one that could not be read, or `Ended` if nothing more can be."""
        yield from self._peeked
        yield from self._following()

    def _following(self) -> Iterator[Any]:
        while not self._ended:
            try:
                item = next(self._iterator)
            except StopIteration:
                self._ended = True
                return
            except MemoryError:
                raise
            except Exception as error:
                item = error if self._resumable else Ended(error)
                self._ended = not self._resumable
            yield item

    def blocks(self, block_rows: int | None, *, skip: bool, copy: bool) -> Iterator[Block | BadRow]:
        """Yield blocks; see `BlockSource`."""
        if self._batched:
            return cut_batches(self.items(), block_rows, copy)
        return collect_rows(self.items(), block_rows, skip)

    def describe_row(self, number: int) -> str | None:
        """Return what the source itself says of a row's place."""
        return self._describe(number)

    def close(self) -> None:
        """Close the iterator if it can be closed: generators can."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


class InputRows:
    """The rows of files, as blocks of arrays."""

    name = "the input"

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._first_column = next(iter(inputs.parts.values()))
        self._ends = list(accumulate(part.rows for part in self._first_column))

    def blocks(self, block_rows: int | None, *, skip: bool, copy: bool) -> Iterator[Block | BadRow]:
        """Yield blocks, none from two files; see `BlockSource`."""
        row_nbytes = -(-self._inputs.nbytes // max(1, self._inputs.rows))
        size = block_rows or max(1, BLOCK_BYTES // max(1, row_nbytes))
        names = list(self._inputs.parts)
        if not self._inputs.rows:
            yield Block([], {field.name: _no_rows(field) for field in self._inputs.fields})
        number = 0
        for parts in zip(*self._inputs.parts.values(), strict=True):
            with ExitStack() as opened:
                reads = [opened.enter_context(closing(part.blocks(size))) for part in parts]
                for arrays in zip(*reads, strict=True):
                    columns = dict(zip(names, owned(arrays) if copy else arrays, strict=True))
                    numbers = range(number, number + len(arrays[0]))
                    number = numbers.stop
                    yield Block(numbers, columns, len(numbers) * row_nbytes)

    def describe_row(self, number: int) -> str | None:
        """Return a row's file, and its number there."""
        part = bisect_right(self._ends, number)
        before = self._ends[part] - self._first_column[part].rows
        return f"{self._first_column[part].label}, row {number - before:,}"

    def close(self) -> None:
        """Nothing is open between blocks that are asked for."""


def _no_rows(field: Field) -> Values:
    values = np.empty((0, *field.row_shape), field.dtype)
    return RAGGED_CLASSES[field.kind].checked(values, np.zeros(1, np.int64)) if field.is_ragged else values


def rows_or_paths(sources: Any, batched: bool) -> RowStream | Sources:
    """Return the stream of rows that `sources` are, or else the paths.

    A mapping names files; of any other iterable the first item tells what it is of.

    Raises:
        SourceError: if there is no item.
        TypeError: if it is neither paths nor rows.
    """
    if isinstance(sources, str | os.PathLike | Mapping):
        return sources
    stream = _stream(sources, batched)
    first = stream.peek()
    if first and isinstance(first[0], str | os.PathLike) and not batched:
        return _paths(stream)
    if not first:
        stream.close()
        if isinstance(sources, list | tuple) and not batched:
            return list(sources)
        raise SourceError(f"{stream.name} gave no rows, so the columns are unknown")
    return stream


def _paths(stream: RowStream) -> Paths:
    paths = []
    for path in stream.items():
        if isinstance(path, Ended):
            raise path.error
        paths.append(path)
    return paths


def _stream(sources: Any, batched: bool) -> RowStream:
    source = sources
    if not hasattr(sources, "__iter__") and callable(sources):
        try:
            source = sources()
        except Exception as error:
            raise SourceError(f"{_name(sources)} gave no rows: it raised {reason_of(error)}") from error
    try:
        iterator = iter(source)
    except TypeError as error:
        raise TypeError(
            f"sources is {source!r}; expected paths, or rows as an iterable of dicts, or a function that returns one "
            f"({error})"
        ) from error
    return RowStream(source, iterator, batched)


def _name(source: Any) -> str:
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return name
    name = getattr(source, "__name__", None)  # of a generator: its function's
    if isinstance(name, str) and name.isidentifier():
        return f"{name}()"
    return f"the {type(source).__name__}"
