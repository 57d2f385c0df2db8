"""Rows from files that are no arrays: texts, line by line or whole, and bytes."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from shardstore.errors import RowError
from shardstore.sources.paths import Paths, find_files

Row = dict[str, Any]
_Read = Callable[[Path], Iterator[Row | RowError]]
# What the handler "surrogateescape" makes of bytes that cannot be decoded.
_ESCAPES = range(0xDC80, 0xDD00)


class FileRows:
    """An iterable of the rows of files, one file after the other; each `iter` reads them anew.

    Attributes:
        files: the files, in order.
        name: what messages call it.
    """

    name = "the files"

    def __init__(self, files: list[Path], read: _Read) -> None:
        self.files = files
        self._read = read

    def __iter__(self) -> FileRowIterator:
        return FileRowIterator(row for file in self.files for row in self._rows_of(file))

    def _rows_of(self, file: Path) -> Iterator[Row | RowError]:
        if file.exists() and not file.is_file():  # a pipe would be waited for, and a device may never end
            return iter((RowError(str(file), "not a regular file"),))
        return self._read(file)


class FileRowIterator:
    """Raises `RowError` for a row that cannot be read; the next `next` gives the row after it.

    Attributes:
        resumable: tells an ingest that it may go on after an error.
    """

    resumable = True

    def __init__(self, rows: Generator[Row | RowError, None, None]) -> None:
        self._rows = rows

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        row = next(self._rows)
        if isinstance(row, RowError):
            raise row
        return row

    def close(self) -> None:
        """Close the file that is open."""
        self._rows.close()


def read_text(
    paths: Paths, *, per: Literal["file", "line"] = "file", encoding: str = "utf-8", errors: str = "strict"
) -> FileRows:
    """Return the texts of files as rows for an `ingest`; nothing is read before they are iterated over.

    Rows are `{"text": str, "path": str}`, and `"line": int` (from 1) where a row is a line. Lines come without their
    end; `\\r\\n` and `\\r` end lines, too, and in whole texts they become `\\n`. Memory is that of one file or line.

    Args:
        paths: files, globs (also `**`), directories (all files in them, not those in folders below), or a list of
            these; globs and directories in natural order.
        per: whether a row is a file or a line.
        encoding: how text is encoded; `"utf-8-sig"` takes a byte order mark away.
        errors: what becomes of bytes that cannot be decoded: `"strict"`, `"replace"`, `"ignore"`; see `codecs`.

    Raises:
        SourceError: if a file is missing; while iterating, if one cannot be read or decoded (the message names file,
            line and byte).
        ValueError: if an argument is unknown.
    """
    if per not in ("file", "line"):
        raise ValueError(f"per is {per!r}; expected 'file' or 'line'")
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding).close()
        codecs.lookup_error(errors)
    except LookupError as error:
        raise ValueError(f"text cannot be read with encoding={encoding!r}, errors={errors!r}: {error}") from None
    read = _lines if per == "line" else _text
    return FileRows(find_files(paths, suffixes=None), lambda path: read(path, encoding, errors))


def read_files(paths: Paths) -> FileRows:
    """Return the bytes of files as rows for an `ingest`: `{"bytes": bytes, "path": str}`, for images and the like.

    Args:
        paths: as `read_text` takes them.

    Raises:
        SourceError: if a file is missing; while iterating, if one cannot be read.
    """
    return FileRows(find_files(paths, suffixes=None), _bytes)


def _bytes(path: Path) -> Iterator[Row | RowError]:
    try:
        data = path.read_bytes()
    except OSError as error:
        yield _unreadable(str(path), error)
    else:
        yield {"bytes": data, "path": str(path)}


def _text(path: Path, encoding: str, errors: str) -> Iterator[Row | RowError]:
    for row in _bytes(path):
        if isinstance(row, RowError):
            yield row
            continue
        data: bytes = row["bytes"]
        try:
            text = data.decode(encoding, errors)
        except UnicodeError as error:
            yield RowError(_place_of(path, data, encoding, error), _undecodable(error))
        else:
            yield {"text": text.replace("\r\n", "\n").replace("\r", "\n"), "path": str(path)}


def _lines(path: Path, encoding: str, errors: str) -> Iterator[Row | RowError]:
    # A decoder that fails cannot go on, so bytes that it cannot decode pass through it and are looked for afterwards.
    strict = errors == "strict"
    number = 0
    try:
        with path.open(encoding=encoding, errors="surrogateescape" if strict else errors) as stream:
            for line in stream:
                number += 1
                bad = _first_escape(line) if strict else None
                if bad is None:
                    yield {"text": line.removesuffix("\n"), "path": str(path), "line": number}
                else:
                    byte = len(line[:bad].encode(encoding, "surrogateescape"))
                    reason = f"byte {ord(line[bad]) - 0xDC00:#04x}, {byte:,} bytes into the line, is not {encoding}"
                    yield RowError(f"{path}, line {number}", reason)
    except OSError as error:
        yield _unreadable(f"{path}, line {number + 1}", error)
    except UnicodeError as error:
        yield RowError(f"{path}, line {number + 1} or soon after", f"{_undecodable(error)}; the rest cannot be read")


def _first_escape(line: str) -> int | None:
    try:
        line.encode()
    except UnicodeEncodeError as error:  # surrogates, which some encodings let pass
        return next((i for i in range(error.start, len(line)) if ord(line[i]) in _ESCAPES), None)
    return None


def _place_of(path: Path, data: bytes, encoding: str, error: UnicodeError) -> str:
    """Return the file, and the line if what stands before the error can be decoded."""
    if not isinstance(error, UnicodeDecodeError):
        return str(path)
    before = data[: error.start].decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")
    return f"{path}, line {before.count(chr(10)) + 1}, byte {error.start:,}"


def _undecodable(error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return f"cannot be decoded: {error}"
    found = error.object[error.start : error.start + 1].hex()
    return f"byte 0x{found} is not {error.encoding} ({error.reason})"


def _unreadable(where: str, error: OSError) -> RowError:
    return RowError(where, f"cannot be read: {error.strerror}")
