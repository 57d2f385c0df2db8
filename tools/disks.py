"""A model of a disk: what of recorded calls it has for certain, and what it may have if the power goes.

An fsync of a file makes its bytes certain, one of a directory the names in it, and neither the other. All else may be
there or not.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.watching import Call

# What may be there of the bytes that were written to a file since it was last fsynced: all; none, so that it is
# shorter; zeros in their place; the first half of them; any of the writes.
Kept = Literal["all", "none", "zeros", "half", "some"]
KEPT: tuple[Kept, ...] = ("all", "none", "zeros", "half", "some")
# What lies below a folder: by path, the bytes of files and None for directories.
Tree = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Choice:
    """What is kept of what is not certain: which of the changes of names, and what of the files' bytes."""

    changes: frozenset[int]
    kept: Kept
    seed: int = 0


@dataclass
class _Change:
    """A change of names that happens as a whole or not: for a name in a directory, what it leads to then."""

    number: int
    names: tuple[tuple[int, str, int | None], ...]
    uncertain: set[int]


@dataclass(frozen=True)
class _Write:
    """Bytes written at an offset, or the size that a file was given."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray, data: bytes | None) -> None:
        """Change a file's content, with these bytes in the place of the write's own."""
        end = self.offset + len(data or b"")
        if data is None:
            del content[self.offset :]
        content.extend(bytes(max(0, end - len(content))))
        if data is not None:
            content[self.offset : end] = data


class Disk:
    """A folder on a disk whose cache is lost with the power."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._numbers = itertools.count()
        self._top = next(self._numbers)
        # By directory, what its names lead to: as the system has it, and what is certain of it.
        self._names: dict[int, dict[str, int]] = {self._top: {}}
        self._certain_names: dict[int, dict[str, int]] = {self._top: {}}
        # By file, the bytes that are certain, and those that are not.
        self._bytes: dict[int, bytes] = {}
        self._writes: dict[int, list[_Write]] = {}
        self._changes: list[_Change] = []
        self._count = 0
        # All changes before this one have happened if they happen in order.
        self._in_order_from = 0
        self._handles: dict[int, int] = {}

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """Return a disk that has all of a folder for certain."""
        disk = cls(os.path.realpath(folder))
        for path in sorted(folder.rglob("*")):
            where = os.path.join(disk._root, path.relative_to(folder))
            number = disk._new_directory() if path.is_dir() else disk._new_file(path.read_bytes())
            directory, name = disk._place(where)
            disk._names[directory][name] = disk._certain_names[directory][name] = number
        return disk

    def is_directory(self, call: Call) -> bool:
        """Whether a call is made on a directory."""
        return call.handle not in self._handles and self._find(call.path) in self._names

    def do(self, call: Call) -> None:
        """Let a call happen."""
        if call.name == "open":
            self._open(call)
        elif call.name in ("write", "truncate"):
            file = self._file(call)
            self._writes[file].append(_Write(call.offset, call.data if call.name == "write" else None))
        elif call.name == "fsync":
            self._fsync(call)
        elif call.name == "mkdir":
            self._change((call.path, self._new_directory()))
        elif call.name in ("unlink", "rmdir"):
            self._change((call.path, None))
        elif call.name == "link":
            self._change((call.target, self._known(call.path)))
        elif call.name == "rename":
            self._change((call.target, self._known(call.path)), (call.path, None))
        elif call.name == "exchange":
            self._change((call.target, self._known(call.path)), (call.path, self._known(call.target)))
        else:
            raise ValueError(f"no such call: {call.name}")

    def choices(self, most: int, draws: random.Random) -> Iterator[Choice]:
        """Yield what may be kept now: all there is, or about so many of it."""
        numbers = [change.number for change in self._changes]
        in_order = list(itertools.product(range(self._in_order_from, self._count + 1), KEPT))
        for stop, kept in in_order if len(in_order) <= most else draws.sample(in_order, most):
            yield Choice(frozenset(number for number in numbers if number < stop), kept, draws.randrange(1 << 30))
        if 2 ** len(numbers) * len(KEPT) <= most:
            for size in range(len(numbers) + 1):
                for some in itertools.combinations(numbers, size):
                    for kept in KEPT:
                        yield Choice(frozenset(some), kept, draws.randrange(1 << 30))
            return
        everything = frozenset(numbers)
        ways = [(lambda n: everything - {n}), (lambda n: frozenset({n}))]  # all but one, one of all
        one_by_one = list(itertools.product(numbers, ways))
        for number, way in one_by_one if len(one_by_one) <= most else draws.sample(one_by_one, most):
            yield Choice(way(number), draws.choice(KEPT), draws.randrange(1 << 30))
        for _ in range(most):
            part = draws.random()
            some = tuple(number for number in numbers if draws.random() < part)
            yield Choice(frozenset(some), draws.choice(KEPT), draws.randrange(1 << 30))

    def tree(self, choice: Choice, at: str = "") -> Tree:
        """Return what there is at a path in the folder and below it, and of the directories on the way to it."""
        changes: dict[int, list[tuple[str, int | None]]] = {}
        for change in self._changes:
            if change.number in choice.changes:
                for directory, name, number in change.names:
                    changes.setdefault(directory, []).append((name, number))
        draws = random.Random(choice.seed)
        found: list[tuple[str, bytes | None]] = []

        def names_in(directory: int) -> dict[str, int]:
            names = dict(self._certain_names.get(directory, {}))
            for name, number in changes.get(directory, ()):
                if number is None:
                    names.pop(name, None)
                else:
                    names[name] = number
            return names

        def add(path: str, number: int) -> None:
            is_file = number in self._bytes
            found.append((path, self._content(number, choice.kept, draws) if is_file else None))

        def walk(directory: int, path: str) -> None:
            for name, number in sorted(names_in(directory).items()):
                add(f"{path}{name}", number)
                walk(number, f"{path}{name}/")

        place, path = self._top, ""
        for part in at.split("/") if at else ():
            following = names_in(place).get(part)
            if following is None:
                return tuple(found)
            place = following
            add(f"{path}{part}", place)
            path = f"{path}{part}/"
        walk(place, path)
        return tuple(found)

    def _content(self, file: int, kept: Kept, draws: random.Random) -> bytes:
        writes = self._writes[file]
        if not writes or kept == "none":
            return self._bytes[file]
        content = bytearray(self._bytes[file])
        for number, write in enumerate(writes):
            data = write.data
            if kept == "zeros" and data is not None:
                data = bytes(len(data))
            if kept == "half" and number == len(writes) // 2 and data is not None:
                data = data[: len(data) // 2]
            if (kept == "half" and number > len(writes) // 2) or (kept == "some" and draws.random() < 0.5):
                continue
            write.apply(content, data)
        return bytes(content)

    def _open(self, call: Call) -> None:
        file = self._find(call.path)
        if file is None:
            file = self._new_file(b"")
            self._change((call.path, file))
        elif call.empties:
            self._writes[file].append(_Write(0, None))
        self._handles[call.handle] = file

    def _fsync(self, call: Call) -> None:
        if not self.is_directory(call):
            file = self._file(call)
            self._bytes[file] = self._content(file, "all", random.Random())
            self._writes[file] = []
            return
        directory = self._known(call.path)
        for change in self._changes:
            change.uncertain.discard(directory)
            if not change.uncertain:
                self._in_order_from = max(self._in_order_from, change.number + 1)
                for place, name, number in change.names:
                    if number is None:
                        self._certain_names[place].pop(name, None)
                    else:
                        self._certain_names[place][name] = number
        self._changes = [change for change in self._changes if change.uncertain]

    def _change(self, *changes: tuple[str, int | None]) -> None:
        names = []
        for path, number in changes:
            directory, name = self._place(path)
            names.append((directory, name, number))
            if number is None:
                del self._names[directory][name]
            else:
                self._names[directory][name] = number
        self._changes.append(_Change(self._count, tuple(names), {directory for directory, _, _ in names}))
        self._count += 1

    def _new_directory(self) -> int:
        number = next(self._numbers)
        self._names[number], self._certain_names[number] = {}, {}
        return number

    def _new_file(self, data: bytes) -> int:
        number = next(self._numbers)
        self._bytes[number], self._writes[number] = data, []
        return number

    def _file(self, call: Call) -> int:
        return self._handles[call.handle] if call.handle in self._handles else self._known(call.path)

    def _place(self, path: str) -> tuple[int, str]:
        """Return the directory that a path lies in, and its name there."""
        return self._known(os.path.dirname(path)), os.path.basename(path)

    def _known(self, path: str) -> int:
        number = self._find(path)
        if number is None:
            raise ValueError(f"{path}: nothing was recorded of this")
        return number

    def _find(self, path: str) -> int | None:
        """Return what a path leads to now."""
        number: int | None = self._top
        relative = os.path.relpath(path, self._root)
        for part in () if relative == "." else relative.split(os.sep):
            number = None if number is None else self._names.get(number, {}).get(part)
        return number
