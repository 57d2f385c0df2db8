"""Choosing the order of a table's rows: what `shuffle` means for its columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from shardstore.order import FullShuffle, Order, Sections, Sequential, WindowShuffle, check_int
from shardstore.schema import Chunking, parse_bytes
from shardstore.selection import Selection

Shuffle = bool | Literal["full", "window"]
SHUFFLES: tuple[Shuffle, ...] = (False, True, "full", "window")
WINDOW_BYTES = "64MiB"
# A state has to stay small.
MAX_SEED_BITS = 512
# Fewer sections than this in a window would be badly mixed.
MIN_SECTIONS = 16
# Sections of a view whose rows do not follow each other share chunks with their neighbours: the fewer, the longer.
SCATTERED_SECTION_ROWS = 1024


def choose_order(
    columns: Iterable[Chunking],
    selection: Selection,
    shuffle: Shuffle,
    seed: int,
    window_bytes: int | str = WINDOW_BYTES,
    lanes: int = 1,
) -> Order:
    """Return the order that a user asked for.

    It depends on the rows and on the store's layout, not on the columns that are read: streams of different columns
    with the same seed go side by side.

    Args:
        columns: what it takes to read each of the store's columns.
        selection: which of the store's rows the order is of.
        shuffle: False, True (`"window"` if any of the columns is compressed, else `"full"`), `"full"` or `"window"`.
        seed: any integer.
        window_bytes: decoded bytes of the compressed columns' rows in the windows of all lanes together.
        lanes: see `WindowShuffle`.

    Raises:
        ValueError, TypeError: if an argument makes no sense.
    """
    lanes = check_int("lanes", lanes)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed is a {type(seed).__name__}; expected an int")
    if int(seed).bit_length() > MAX_SEED_BITS:
        raise ValueError(f"seed has {int(seed).bit_length():,} bits; expected at most {MAX_SEED_BITS}")
    if not isinstance(shuffle, bool | str) or shuffle not in SHUFFLES:
        raise ValueError(f"shuffle is {shuffle!r}; expected one of {', '.join(map(repr, SHUFFLES))}")
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; expected at least 1")
    window_nbytes = parse_bytes(window_bytes)
    stored = [column for column in columns if column.row_nbytes]
    decoded = [column for column in stored if column.decoded]
    if shuffle is True:
        shuffle = "window" if decoded else "full"
    if lanes > 1 and shuffle != "window":
        raise ValueError(f"lanes={lanes} deals chunks to ranks, which needs shuffle='window'; found {shuffle!r}")
    if shuffle is False:
        return Sequential(len(selection))
    if shuffle == "full":
        return FullShuffle(len(selection), int(seed))
    cut = decoded or stored
    # Where the rows of some columns are scattered, those of others may still follow each other in their chunks.
    whole = [column for column in cut if column.phase is not None]
    chunk_rows = [column.chunk_rows for column in whole or cut] or [1]
    window_rows = window_nbytes // max(1, sum(column.row_nbytes for column in cut))
    # Whole chunks of all columns, so that each is decoded once; but where the longest (those of narrow columns) would
    # leave few sections in a window, sections are as short as the wide columns' chunks, and narrow ones are cached.
    mixed = 1 << (max(1, window_rows // MIN_SECTIONS).bit_length() - 1)
    section_rows = min(max(chunk_rows), max(min(chunk_rows), mixed))
    is_scattered = not selection.is_contiguous or bool(cut and not whole)
    if is_scattered:
        section_rows = max(section_rows, min(mixed, SCATTERED_SECTION_ROWS))
    window = max(1, window_rows // section_rows // lanes)
    # Elsewhere than in a row the view's rows have no chunks of their own; neighbours in the view stay together.
    phase = max(whole, key=lambda column: column.row_nbytes).phase if whole else 0
    missing = 0 if is_scattered else (selection.start + (phase or 0)) % section_rows
    return WindowShuffle(Sections(len(selection), section_rows, missing), window, int(seed), lanes)
