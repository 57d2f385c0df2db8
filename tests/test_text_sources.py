"""Texts and bytes of files as rows: every line and file once, in order, with the place of each, whatever is wrong."""

from __future__ import annotations

import gc
import io
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import assert_holds, assert_refused, scratch
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import SourceError, read_files, read_text

Row = dict[str, Any]

# Of everything that some program takes for an end of line, and of every length in bytes.
pieces = st.sampled_from(["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028", "a", "é", "𝄞", "\ufeff", " ", "\0"])
texts = st.lists(pieces, max_size=12).map("".join)


def outcomes(rows: Iterable[Row]) -> list[Row | str]:
    """Return all rows, and in place of one that cannot be read the message."""
    found: list[Row | str] = []
    iterator = iter(rows)
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except SourceError as error:
            found.append(str(error))


def write_all(folder: Path, contents: list[bytes]) -> list[Path]:
    """Write files whose natural order is that of the list."""
    paths = [folder / f"{i}.txt" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@given(st.lists(texts, min_size=1, max_size=12), st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "utf-32-le"]))
def test_texts_are_what_open_gives(contents: list[str], encoding: str) -> None:
    with scratch() as folder:
        paths = write_all(folder, [text.encode(encoding) for text in contents])
        whole = [
            {"text": io.TextIOWrapper(io.BytesIO(path.read_bytes()), encoding).read(), "path": str(path)}
            for path in paths
        ]
        assert list(read_text(folder, encoding=encoding)) == whole
        lines = [
            {"text": line.removesuffix("\n"), "path": row["path"], "line": number}
            for row in whole
            for number, line in enumerate(io.StringIO(row["text"]), 1)
        ]
        reader = read_text(f"{folder}/*.txt", per="line", encoding=encoding)
        assert list(reader) == lines
        assert list(reader) == lines  # a second time, too


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=12))
def test_bytes_come_as_they_are(contents: list[bytes]) -> None:
    with scratch() as folder:
        paths = write_all(folder, contents)
        expected = [{"bytes": data, "path": str(path)} for path, data in zip(paths, contents, strict=True)]
        assert list(read_files(folder)) == expected
        assert list(read_files(paths[::-1])) == expected[::-1]


def test_a_folder_gives_its_files_and_a_pattern_those_below(tmp_path: Path) -> None:
    for name in ("b/10.md", "b/9.txt", "a", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [row["text"] for row in read_text(tmp_path)] == ["a"]
    assert [row["text"] for row in read_text(f"{tmp_path}/**/*.*")] == ["b/9.txt", "b/10.md"]
    assert [row["text"] for row in read_text([tmp_path / "b", tmp_path / "a"])] == ["b/9.txt", "b/10.md", "a"]


@given(st.data(), st.lists(st.lists(st.sampled_from([b"x", b"\xc3\xa9", b"", b"\xff", b"\xed\xa0\x80"]), max_size=5)))
def test_lines_that_are_not_utf8_are_named_and_the_others_come(data: st.DataObject, lines: list[list[bytes]]) -> None:
    contents = [b"".join(line) for line in lines]
    end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    with scratch() as folder:
        path = folder / "lines"
        path.write_bytes(b"".join(content + end for content in contents))
        found = outcomes(read_text(path, per="line"))
        assert len(found) == len(contents)
        for number, (content, outcome) in enumerate(zip(contents, found, strict=True), 1):
            try:
                expected: Any = {"text": content.decode(), "path": str(path), "line": number}
            except UnicodeDecodeError as error:
                byte = content[error.start]
                expected = f"{path}, line {number}: byte {byte:#x}, {error.start} bytes into the line, is not utf-8"
            assert outcome == expected
        replaced = [row["text"] for row in read_text(path, per="line", errors="replace")]
        assert replaced == [content.decode(errors="replace") for content in contents]


def test_files_that_are_not_utf8_are_named_and_the_others_come(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [b"fine", b"two\r\nlines\xff", b"", b"\xc3", b"end"])
    found = outcomes(read_text(tmp_path))
    assert [row["text"] if isinstance(row, dict) else None for row in found] == ["fine", None, "", None, "end"]
    assert found[1] == f"{paths[1]}, line 2, byte 10: byte 0xff is not utf-8 (invalid start byte)"
    assert found[3] == f"{paths[3]}, line 1, byte 0: byte 0xc3 is not utf-8 (unexpected end of data)"


def test_where_a_decoder_cannot_go_on_the_next_file_comes(tmp_path: Path) -> None:
    good = "a\nb\n".encode("utf-16-le")
    paths = write_all(tmp_path, [good, good + b"\x00", good])
    found = outcomes(read_text(tmp_path, per="line", encoding="utf-16-le"))
    assert [row["text"] for row in found if isinstance(row, dict)][:2] == ["a", "b"]
    assert [row["text"] for row in found if isinstance(row, dict)][-2:] == ["a", "b"]
    (bad,) = [row for row in found if isinstance(row, str)]
    assert bad.startswith(f"{paths[1]}, line ")
    assert "truncated data; the rest cannot be read" in bad or "truncated data); the rest cannot be read" in bad


@pytest.mark.parametrize("read", [read_text, lambda paths: read_text(paths, per="line"), read_files])
def test_files_that_cannot_be_read(tmp_path: Path, read: Any) -> None:
    paths = write_all(tmp_path, [b"a", b"b", b"c"])
    rows = read(paths)
    paths[1].unlink()
    found = outcomes(rows)
    assert len(found) == 3
    assert [row["path"] for row in found if isinstance(row, dict)] == [str(paths[0]), str(paths[2])]
    assert str(paths[1]) in str(found[1])
    assert "cannot be read: No such file" in str(found[1])
    for missing in (tmp_path / "none", f"{tmp_path}/*.none", []):
        with pytest.raises(SourceError, match=r"no such file|matches no file|no source files: name a file"):
            read(missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no file in this directory"):
        read(tmp_path / "empty")


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    path = write_all(tmp_path, [b"a"])[0]
    for options in ({"per": "word"}, {"encoding": "utf-9"}, {"encoding": "hex"}, {"errors": "lenient"}):
        with pytest.raises(ValueError, match=next(iter(options.values()))):
            read_text(path, **options)  # type: ignore[arg-type]


def test_lines_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with path.open("wb") as stream:
        for _ in range(300):
            stream.write((b"x" * 99 + b"\n") * 1000)
    gc.collect()
    tracemalloc.start()
    try:
        assert sum(len(row["text"]) for row in read_text(path, per="line")) == 300 * 1000 * 99
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a list of open files")
def test_no_file_stays_open(tmp_path: Path) -> None:
    path = write_all(tmp_path, [b"a\nb\n"])[0]
    rows = iter(read_text(path, per="line"))
    before = len(os.listdir("/proc/self/fd"))
    next(rows)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    rows.close()
    assert len(os.listdir("/proc/self/fd")) == before


# Ingested


def codes(block: dict[str, Any]) -> dict[str, Any]:
    """Encode texts as arrays of 4 code points."""
    return {"codes": np.array([[ord(c) for c in f"{text:4.4}"] for text in block["text"]], "u4").reshape(-1, 4)}


@settings(max_examples=25)
@given(st.lists(texts, min_size=1, max_size=4), st.sampled_from(["file", "line"]), st.sampled_from([None, 1, 2]))
def test_an_ingest_of_texts(contents: list[str], per: Any, block_rows: int | None) -> None:
    with scratch() as folder:
        paths = write_all(folder, [text.encode() for text in contents])
        rows = list(read_text(paths, per=per))
        options: Any = {"transform": codes, "block_rows": block_rows}
        if not rows:
            with pytest.raises(SourceError, match="gave no rows"):
                shardstore.ingest(read_text(paths, per=per), folder / "store", **options)
            return
        with shardstore.ingest(read_text(paths, per=per), folder / "store", **options) as store:
            assert_holds(store, codes({"text": [row["text"] for row in rows]}))
            assert store.manifest.provenance["sources"] == {}


def test_bad_lines_end_an_ingest_or_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = write_all(tmp_path / "in", [b"one\ntw\xff\nthree\n", b"four\nfive"])
    message = assert_refused(
        SourceError,
        lambda: shardstore.ingest(read_text(paths, per="line"), tmp_path / "store", transform=codes),
        tmp_path,
        f"row 1 of the files ({paths[0]}, line 2): byte 0xff",
    )
    assert message.endswith("is not utf-8")
    with shardstore.ingest(
        read_text(paths, per="line"), tmp_path / "store", transform=codes, on_error="skip", workers=1
    ) as store:
        assert_holds(store, codes({"text": ["one", "three", "four", "five"]}))
        assert store.manifest.provenance["skipped"] == {
            "rows": 1,
            "examples": [
                {
                    "row": 1,
                    "where": f"{paths[0]}, line 2",
                    "reason": "byte 0xff, 2 bytes into the line, is not utf-8",
                }
            ],
        }


def test_a_transform_that_fails_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = write_all(tmp_path / "in", [b"1\n2", b"3\nfour\n5"])

    def numbers(block: dict[str, Any]) -> dict[str, Any]:
        return {"n": np.array([int(text) for text in block["text"]])}

    assert_refused(
        SourceError,
        lambda: shardstore.ingest(read_text(paths, per="line"), tmp_path / "store", transform=numbers),
        tmp_path,
        f"row 3 of the files ({paths[1]}, line 2): ValueError: invalid literal",
    )
    with shardstore.ingest(
        read_text(paths, per="line"), tmp_path / "store", transform=numbers, on_error="skip"
    ) as store:
        assert_holds(store, {"n": np.array([1, 2, 3, 5])})


def test_images_as_arrays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (30, 5, 7), np.uint8)
    for i, image in enumerate(images):
        header = b"P5 7 5 255\n" if i != 11 else b"P6 7 5 255\n"
        (tmp_path / "in" / f"{i}.pgm").write_bytes(header + image.tobytes())

    def decoded(block: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for data in block["bytes"]:
            kind, _, _, _ = data.split(b"\n", 1)[0].split()
            if kind != b"P5":
                raise ValueError("not a grey image")
            rows.append(np.frombuffer(data.split(b"\n", 1)[1], np.uint8).reshape(5, 7))
        return {"image": rows}

    rows = read_files(tmp_path / "in")
    with shardstore.ingest(rows, tmp_path / "store", transform=decoded, on_error="skip", workers=2) as store:
        assert_holds(store, {"image": np.delete(images, 11, 0)})
        (example,) = store.manifest.provenance["skipped"]["examples"]
        assert example["row"] == 11
        assert example["where"] == str(tmp_path / "in" / "11.pgm")


def test_images_become_arrays(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    images = np.random.default_rng(0).integers(0, 256, (50, 9, 7, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        image_module.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "50.png").write_bytes(b"no image")

    def decode(block: dict[str, list[Any]]) -> dict[str, Any]:
        return {
            "image": np.stack([np.asarray(image_module.open(io.BytesIO(data))) for data in block["bytes"]]),
            "name": [Path(path).name for path in block["path"]],
        }

    files = shardstore.read_files(tmp_path / "images")
    with pytest.raises(shardstore.SourceError, match=r"50\.png.*cannot identify image"):
        shardstore.ingest(files, tmp_path / "store", transform=decode, block_rows=8)
    store = shardstore.ingest(files, tmp_path / "store", transform=decode, block_rows=8, on_error="skip")
    assert store["image"].dtype == np.uint8
    assert np.array_equal(store["image"][:], images)
    assert store["name"][:].to_list() == [f"{i}.png" for i in range(50)]
    assert store.manifest.provenance["skipped"]["rows"] == 1
