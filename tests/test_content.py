"""A deep verification finds what was written wrongly, with checksums that fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import edit_manifest, write_store

import shardstore
from shardstore.damage import Damage
from shardstore.shardfile import check_chunks, read_footer


def write(path: Path, columns: dict[str, Any], **types: str) -> Path:
    with shardstore.Writer(path, shard_bytes=1 << 10, chunk_bytes=256, types=types) as writer:
        writer.append(columns)
    return path


def found(path: Path) -> list[Damage]:
    """Return what only a deep verification finds."""
    with shardstore.open(path) as store:
        assert store.verify(progress=False).ok
        return list(store.verify(progress=False, deep=True).damages)


def take_over(path: Path, other: Path, column: str) -> None:
    """Give a column the shard files of another store, and the manifest their checksums."""
    with shardstore.open(other) as store:
        entry = store.manifest.columns[column].data
    for key in entry.keys:
        shutil.copyfile(other / key, path / key)
    body = {"shard_nbytes": entry.nbytes.tolist(), "footer_crc32c": entry.footer_crc32c.tolist()}
    edit_manifest(path, lambda manifest: manifest["columns"][0].update(body))


texts = st.lists(st.binary(max_size=6) | st.text(max_size=6).map(str.encode), min_size=1, max_size=40)


@given(rows=texts)
@settings(max_examples=30)
def test_text_that_is_not_utf8(tmp_path_factory: pytest.TempPathFactory, rows: list[bytes]) -> None:
    path = write(tmp_path_factory.mktemp("text") / "s", {"t": rows}, t="binary")
    edit_manifest(path, lambda body: body["columns"][0].update(logical="utf8"))

    def is_text(row: bytes) -> bool:
        try:
            row.decode()
        except UnicodeDecodeError:
            return False
        return True

    wrong = [row for row in range(len(rows)) if not is_text(rows[row])]
    assert [damage.rows for damage in found(path)] == [(row, row + 1) for row in wrong[:1]]


def test_a_character_that_two_rows_share(tmp_path: Path) -> None:
    path = write(tmp_path / "s", {"t": [b"a", "ö".encode()[:1], "ö".encode()[1:], b"b"]}, t="binary")
    edit_manifest(path, lambda body: body["columns"][0].update(logical="utf8"))
    assert found(path) == [Damage("t/ranges/c/0/0", "the text is not UTF-8", 0, (1, 2))]


def test_codes_of_no_category(tmp_path: Path) -> None:
    codes = np.zeros(700, np.int8)
    codes[[600, 650]] = 3, -1
    path = write(tmp_path / "s", {"c": codes})
    body = {"logical": "categorical", "categories": ["a", "b", "c"]}
    edit_manifest(path, lambda manifest: manifest["columns"][0].update(body))
    assert found(path) == [Damage("c/c/0", "a code of none of 3 categories", 2, (600, 601))]


def test_bools_that_are_none(tmp_path: Path) -> None:
    flags = np.ones((90, 2), np.uint8)
    path = write(tmp_path / "s", {"f": flags.view(np.bool_)})
    assert not found(path)
    flags[70, 1] = 2
    take_over(path, write(tmp_path / "other", {"f": flags}), "f")
    assert found(path) == [Damage("f/c/0/0", "a bool that is neither 0 nor 1", 0, (70, 71))]


def test_padding_that_is_not_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "s", {"x": np.arange(1, 61)})
    assert not found(path)
    take_over(path, write(tmp_path / "other", {"x": np.arange(1, 62)}), "x")
    assert found(path) == [Damage("x/c/0", "the places behind the last row are not zero", 1)]


@pytest.mark.parametrize("codec", ["zstd", "blosc:lz4"])
def test_compressed_chunks_that_do_not_decode(tmp_path: Path, codec: str) -> None:
    """Chunks of another size, with checksums that fit."""
    path = write_store(tmp_path / "s", {"x": np.zeros(40)}, codec)
    # Of the same layout: the numbers are half as wide, and so are shards and chunks.
    other = write_store(tmp_path / "other", {"x": np.zeros(40, np.float32)}, codec, 256, 32)
    take_over(path, other, "x")
    first, *_ = found(path)
    assert (first.file, first.chunk, first.rows) == ("x/c/0", 0, (0, 8))
    assert "32 bytes, expected 64" in first.reason


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file that cannot be read")
def test_a_chunk_that_cannot_be_read_is_named_and_the_others_are_checked(tmp_path: Path) -> None:
    """The process's own memory: where nothing is mapped, reading it is an error of the system."""
    path = write(tmp_path / "s", {"x": np.arange(128)})
    with shardstore.open(path) as store:
        entry = store.manifest.columns["x"].data
    descriptor = os.open(path / "x/c/0", os.O_RDONLY)
    footer = read_footer(descriptor, path, entry.layout, entry.record(0), 128)
    os.close(descriptor)
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        problems = list(check_chunks(descriptor, entry.layout, footer, 128))
    finally:
        os.close(descriptor)
    assert [problem.chunk for problem in problems] == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert all("Input/output error" in problem.reason for problem in problems)  # type: ignore[union-attr]
