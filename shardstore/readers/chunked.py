"""`ChunkReader`: a compressed array, chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.decoding import decoders
from shardstore.entries import ArrayEntry
from shardstore.locks import ForkSafeLock
from shardstore.readers.base import Reader, cut_runs, group_rows
from shardstore.readers.footers import Footers
from shardstore.readers.positional import ShardFiles
from shardstore.readers.shared import Shared
from shardstore.selection import Rows
from shardstore.shardfile import ChunkError, read_chunks
from shardstore.shards import ShardDirectory


class ChunkReader(Reader):
    """Reads a compressed column: decodes the chunks that hold the asked-for rows, each once a call."""

    slices_are_views = False
    _SPAN_CHUNKS = 8  # that are read at once and decoded by one thread

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, shared: Shared) -> None:
        super().__init__(entry.layout.field)
        self._chunks = shared.chunks
        self._files = ShardFiles(directory, entry, shared)
        self._layout = entry.layout
        self._footers = Footers(self._files, entry)
        self._decoders = decoders()
        self._decodes = 0
        self._counting = ForkSafeLock()

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows, a chunk at a time, on several threads where there are several chunks."""

        def copy(group: tuple[int, Rows, Rows]) -> None:
            chunk, positions, local = group
            out[positions] = np.take(self._chunk(chunk), local, axis=0)

        self._decoders.for_each(copy, list(group_rows(rows, self._layout.chunk_rows)))

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Decode consecutive rows into a fresh array."""
        return self.join_runs(np.array([start]), np.array([stop]))

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Decode runs of rows into `out`, each chunk once: straight into its place where all of it is wanted."""
        layout = self._layout
        # Whole chunks, side by side in one file: the first, one past the last, and where they go.
        spans: list[tuple[int, int, int]] = []
        parts: dict[int, list[tuple[int, int, int]]] = {}
        place = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            for chunk, first, last in cut_runs(start, stop, layout.chunk_rows):
                before = chunk * layout.chunk_rows
                if last - first < layout.chunk_rows:
                    parts.setdefault(chunk, []).append((first - before, last - before, place))
                elif self._can_follow(spans, chunk, place):
                    spans[-1] = (spans[-1][0], chunk + 1, spans[-1][2])
                else:
                    spans.append((chunk, chunk + 1, place))
                place += last - first
        flat = out.reshape(-1).view(np.uint8)

        def decode(span: tuple[int, int, int]) -> None:
            first, last, place = span
            begin = place * layout.field.row_nbytes
            self._decode(range(first, last), flat[begin : begin + (last - first) * layout.chunk_nbytes])

        def copy(chunk: int) -> None:
            decoded = self._chunk(chunk)  # its other rows are wanted in another window
            for first, last, place in parts[chunk]:
                out[place : place + last - first] = decoded[first:last]

        self._decoders.for_each(decode, spans)
        self._decoders.for_each(copy, list(parts))

    def _can_follow(self, spans: list[tuple[int, int, int]], chunk: int, place: int) -> bool:
        """Whether a chunk lies and goes behind the last span, in the same file, and that has not enough chunks."""
        if not spans or not chunk % self._layout.slots:
            return False
        first, last, begin = spans[-1]
        goes_behind = begin + (last - first) * self._layout.chunk_rows == place
        return last == chunk and goes_behind and chunk - first < self._SPAN_CHUNKS

    @property
    def chunks_decoded(self) -> int:
        """How many chunks were decoded since the column was opened."""
        return self._decodes

    def _chunk(self, chunk: int) -> NDArray[Any]:
        return self._chunks.get((self._layout.field.name, chunk), lambda key: self._decoded_chunk(chunk))

    def _decoded_chunk(self, chunk: int) -> NDArray[Any]:
        layout = self._layout
        decoded = np.empty((layout.chunk_rows, *layout.field.row_shape), layout.field.dtype)
        self._decode(range(chunk, chunk + 1), decoded.reshape(-1).view(np.uint8))
        return decoded

    def _decode(self, chunks: range, out: NDArray[np.uint8]) -> None:
        """Decode chunks of one shard into the bytes `out`."""
        layout = self._layout
        shard, slot = divmod(chunks.start, layout.slots)
        file = self._files.get(shard)
        footer = self._footers.get(shard, file)
        with self._counting:
            self._decodes += len(chunks)
        try:
            read_chunks(file.descriptor, layout, footer, range(slot, slot + len(chunks)), out)
        except ChunkError as error:
            raise self._footers.damage(shard, error) from None
