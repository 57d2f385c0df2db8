"""Transforms: a user's function called for one block after the other, on workers, with results in order."""

from __future__ import annotations

import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from shardstore.errors import SourceError
from shardstore.pipeline.blocks import BadRow, Block, Columns, checked_columns, owned

Transform = Callable[[Columns], Mapping[str, Any]]


@dataclass(frozen=True)
class Done:
    """What became of rows `[start, stop)` of a block: any number of rows."""

    start: int
    stop: int
    columns: Columns


@dataclass(frozen=True)
class Failed:
    """Rows `[start, stop)` of a block could not be transformed: a single row, unless none fails by itself."""

    start: int
    stop: int
    error: Exception


Piece = Done | Failed
_Waiting = deque[tuple[Block | BadRow, Future[list[Piece]] | None]]


@dataclass(frozen=True)
class BlockTransform:
    """Transforms a block's columns. Picklable if the transform is.

    A block that fails is transformed again half by half, so that the rows that fail are known. The transform gets
    copies of its own, since it may have changed some of a block in place before it failed.

    Attributes:
        transform: the user's function.
        skip: whether to go on after a row that fails, and give a piece for each run of rows; else the first failure is
            the only piece.
        process: number of the process that handles the errors.
    """

    transform: Transform
    skip: bool
    process: int

    def __call__(self, columns: Columns, rows: int) -> list[Piece]:
        """Transform a block of so many rows."""
        pieces = self._run(Block(range(rows), columns))
        if os.getpid() == self.process:
            return pieces
        return [_sendable(piece) if isinstance(piece, Failed) else piece for piece in pieces]

    def _run(self, block: Block) -> list[Piece]:
        start, stop = (block.numbers[0], block.numbers[-1] + 1) if block.rows else (0, 0)
        try:
            result = self.transform(owned(block.columns))
            return [Done(start, stop, checked_columns(result, "what the transform gave")[0])]
        except MemoryError:
            raise
        except Exception as error:
            if self.skip and block.rows:
                error.__traceback__ = None  # it would keep the block in memory, and only what the error says is kept
            failed = Failed(start, stop, error)
        if block.rows <= 1:
            return [failed]
        pieces: list[Piece] = []
        for half in block.halves():
            found = self._run(half)
            if not self.skip and isinstance(found[0], Failed):
                return found
            pieces += found
        return pieces if self.skip else [failed]


def _sendable(failed: Failed) -> Failed:
    """Return the failure with an error that gets to another process, and with its traceback as a note."""
    failed.error.add_note("".join(traceback.format_exception(failed.error)).rstrip())
    try:
        pickle.loads(pickle.dumps(failed.error))
    except Exception:  # whatever a class of the user's raises, what it said goes on
        error = RuntimeError(f"{type(failed.error).__name__}: {failed.error}")
        error.add_note(failed.error.__notes__[-1])
        return Failed(failed.start, failed.stop, error)
    return failed


def in_order(
    executor: Executor, work: BlockTransform, blocks: Iterable[Block | BadRow], ahead: int
) -> Generator[tuple[Block | BadRow, list[Piece]], None, None]:
    """Yield blocks with their pieces in order, while workers transform up to `ahead` of them.

    No more blocks are asked for while so many wait. When it is closed early, what has begun is waited for and nothing
    else begins.
    """
    waiting: _Waiting = deque()
    try:
        for block in blocks:
            future = None if isinstance(block, BadRow) else executor.submit(work, block.columns, block.rows)
            waiting.append((block, future))
            if len(waiting) >= ahead:
                yield _oldest(waiting)
        while waiting:
            yield _oldest(waiting)
    finally:
        futures = [future for _, future in waiting if future is not None]
        for future in futures:
            future.cancel()
        wait(futures)


def _oldest(waiting: _Waiting) -> tuple[Block | BadRow, list[Piece]]:
    block, future = waiting[0]  # an interrupt while it is waited for must not lose it
    if isinstance(block, BadRow) or future is None:
        pieces: list[Piece] = []
    else:
        pieces = _result(block, future)
    waiting.popleft()
    return block, pieces


def _result(block: Block, future: Future[list[Piece]]) -> list[Piece]:
    try:
        return future.result()
    except MemoryError:
        raise
    except BrokenExecutor as error:
        rows = f"the block of {block.rows:,} rows at row {block.numbers[0]:,}" if block.rows else "a block"
        raise SourceError(f"a worker process ended while it transformed {rows}: it crashed or was killed") from error
    except Exception as error:  # the transform's own errors come as pieces
        raise SourceError(
            f"a block could not be sent to a worker and back ({type(error).__name__}: {error}): processes take a "
            "transform that is a function of a module, and values that pickle"
        ) from error
