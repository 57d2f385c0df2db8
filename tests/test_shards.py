"""Finding and opening the shard files of an array, also while others append to it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import CODECS, compressible_array

from shardstore.codecs import Codec
from shardstore.columns import ArrayStart, ArrayWriter
from shardstore.entries import ArrayEntry, Successor, successor_key
from shardstore.errors import CorruptionError
from shardstore.files import Directory
from shardstore.schema import ArrayLayout, Field
from shardstore.shards import check_shards, open_shard


def write_array(folder: Path, rows: int, codec: str = "raw") -> ArrayEntry:
    array = compressible_array("int32", (rows, 2))
    layout = ArrayLayout(Field.of("x", array.dtype, (2,)), Codec.parse(codec), 8, 4)
    with ArrayWriter(folder, layout) as writer:
        writer.append(array)
        return ArrayStart().entry(layout, rows, writer.finish())


@pytest.mark.parametrize("codec", CODECS)
def test_missing_short_and_overlong_files_are_found(tmp_path: Path, codec: str) -> None:
    entry = write_array(tmp_path, 12, codec)
    directory = Directory(tmp_path)
    check_shards(directory, entry)
    for shard in (0, 1):
        path = tmp_path / entry.layout.shard_key(shard)
        data, nbytes = path.read_bytes(), int(entry.nbytes[shard])
        for found, what in ((data[:-1], "short"), (b"", "short"), (data + b"\0", "overlong"), (2 * data, "overlong")):
            path.write_bytes(found)
            message = f"{shard}/0: the shard file is {what}: expected {nbytes:,} bytes, found {len(found):,}"
            with pytest.raises(CorruptionError, match=message):
                open_shard(directory, entry, shard)
            with pytest.raises(CorruptionError, match=message):
                check_shards(directory, entry)
        path.unlink()
        with pytest.raises(CorruptionError, match=f"{shard}/0: the shard file is missing"):
            open_shard(directory, entry, shard)
        path.mkdir()
        with pytest.raises(CorruptionError, match="is a directory"):
            open_shard(directory, entry, shard)
        path.rmdir()
        path.write_bytes(data)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"")
    with pytest.raises(CorruptionError, match="1/0: the shard file is missing"):
        open_shard(directory, entry, 1)


def test_a_successor_comes_before_the_file_that_it_replaces(tmp_path: Path) -> None:
    entry = write_array(tmp_path, 12)
    key = entry.layout.shard_key(1)
    entry = replace(entry, successor=Successor(1, 7))
    path, successor = tmp_path / key, tmp_path / successor_key(key, 7)
    assert successor.name == ".0.tail-7"
    path.rename(successor)
    for expected in (successor, path):
        check_shards(Directory(tmp_path), entry)
        opened = open_shard(Directory(tmp_path), entry, 1)
        assert os.pread(opened.descriptor, 8, 0) == compressible_array("int32", (12, 2))[8].tobytes()
        assert (opened.path, opened.rows) == (expected, 4)
        os.close(opened.descriptor)
        if successor.exists():
            path.write_bytes(b"of another length")
            check_shards(Directory(tmp_path), entry)
            successor.rename(path)


def test_the_first_rows_of_an_array(tmp_path: Path) -> None:
    entry = replace(write_array(tmp_path, 21), successor=Successor(2, 7))
    for rows, shards in ((0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (17, 3)):
        first = entry.up_to(rows)
        assert (first.rows, len(first.nbytes), first.rows_in_file(0)) == (rows, shards, 8)
        assert (first.successor is None) == (shards < 3)
        assert [first.is_growing(shard) for shard in range(shards)] == [shard == 2 for shard in range(shards)]
        check_shards(Directory(tmp_path), first)
    assert np.array_equal(entry.up_to(17).up_to(9).nbytes, entry.nbytes[:2])
