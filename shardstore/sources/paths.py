"""From what a user names (files, globs, directories) to a list of files in a definite order."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from shardstore.errors import SourceError

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
SUFFIXES = (".npy", ".npz")


def natural_key(path: Path) -> tuple[list[int | str], str]:
    """Return a sort key by which part-2 comes before part-10; part-02 and part-2 have an order, too."""
    pieces = re.split(r"(\d+)", str(path))
    # Numbers stand at the odd places, so that a piece is only ever compared with one of its own kind.
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], str(path)


def find_files(sources: Paths, suffixes: tuple[str, ...] | None = SUFFIXES) -> list[Path]:
    """Return the files that `sources` name: a list in the order given, each glob or directory in natural order.

    Args:
        sources: files, globs and directories.
        suffixes: which files of a directory are meant; None for all whose names do not begin with a dot.

    Raises:
        SourceError: if a file is missing, a glob matches nothing, or a directory has no such file in it.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    files = [file for source in sources for file in _expand(os.fspath(source), suffixes)]
    if not files:
        raise SourceError(f"no source files: name {_such_a_file(suffixes)}, a glob or a directory")
    return files


def is_directory_source(source: str | os.PathLike[str]) -> bool:
    """Whether a source stands for all the files in a directory."""
    return Path(source).is_dir()


def order_note(files: list[Path]) -> str | None:
    """Return a remark if files were named in another than their natural order, else None."""
    natural = sorted(files, key=natural_key)
    if natural == files:
        return None
    first = next(i for i, (given, sorted_) in enumerate(zip(files, natural, strict=True)) if given != sorted_)
    return (
        f"note: files are taken in the order given: {files[first].name} comes where natural order has "
        f"{natural[first].name}; name a directory or a quoted glob for natural order"
    )


def _such_a_file(suffixes: tuple[str, ...] | None) -> str:
    return "a file" if suffixes is None else f"a {' or '.join(suffixes)} file"


def _expand(source: str, suffixes: tuple[str, ...] | None) -> list[Path]:
    try:
        return _expand_one(source, suffixes)
    except OSError as error:
        raise SourceError(f"{source}: cannot be read: {error.strerror}") from None


def _expand_one(source: str, suffixes: tuple[str, ...] | None) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        shown = [p for p in path.iterdir() if not p.name.startswith(".") and not p.is_dir()]
        files = [p for p in shown if suffixes is None or p.suffix in suffixes]
        if not files:
            raise SourceError(f"{source}: no {_such_a_file(suffixes).removeprefix('a ')} in this directory")
        return sorted(files, key=natural_key)
    if path.exists():
        return [path]
    if not glob.has_magic(source):
        raise SourceError(f"{source}: no such file")
    matches = [Path(match) for match in glob.glob(source, recursive=True)]
    # A link to nothing stays in: to leave it out would lose its rows unseen.
    files = [match for match in matches if not match.is_dir()]
    if not files:
        raise SourceError(f"{source}: the pattern matches no file")
    return sorted(files, key=natural_key)
