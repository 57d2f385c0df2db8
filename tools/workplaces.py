"""A folder in which an operation is tried again and again from the same start, and what must hold after each try."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

import shardstore
from tools.operations import Operation, names_below, state_at


class WrongError(AssertionError):
    """Something that must never be."""


class Workplace:
    """A folder for tries of an operation.

    Args:
        folder: an empty folder.
        operation: what is tried.
        copy: how files come into the working folder.

    Attributes:
        operation: what is tried.
        work: the working folder, which an operation is given.
    """

    def __init__(self, folder: Path, operation: Operation, copy: Callable[..., object] = os.link) -> None:
        self.operation = operation
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)
        self._copy = copy
        self._template = folder / "template"
        self._template.mkdir()
        operation.prepare(self._template)
        self._before = _bytes_below(self._template)
        self._old_names = names_below(self._template)
        self.reset()
        operation.run(self.work)
        self.check_new("without a fault")
        self._new_names = names_below(self.work)

    def clear(self) -> None:
        """Empty the working folder."""
        for entry in list(os.scandir(self.work)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)

    def reset(self) -> None:
        """Go back to the start. Where files are links, whatever is written in place is found by `close`."""
        self.clear()
        shutil.copytree(self._template, self.work, copy_function=self._copy, dirs_exist_ok=True)

    def close(self) -> None:
        """Check that no file was written in its place."""
        if _bytes_below(self._template) != self._before:
            raise WrongError(f"{self.operation.name}: wrote into a file of the store")

    def found(self, where: str) -> str:
        """Check that the store is what it was or what it is to be, whole; return "old", "between" or "new"."""
        operation = self.operation
        state = self._state(where)
        names = {operation.old: "old", operation.new: "new", **dict.fromkeys(operation.between, "between")}
        if state not in names:
            raise WrongError(f"{where}: the store holds neither what it held before nor what it is to hold: {state}")
        return names[state]

    def check_cleared(self, where: str) -> None:
        """Check that a failure has left no file but what the next call goes on with."""
        keeps = self.operation.keeps
        names = {name for name in names_below(self.work) if keeps is None or not name.startswith(keeps)}
        if names != self._old_names:
            raise WrongError(f"{where}: an error left files: {sorted(names ^ self._old_names)}")

    def go_on(self, found: str, where: str) -> None:
        """Check that the next writer succeeds, and leaves nothing of what was there."""
        operation = self.operation
        try:
            with mock.patch.object(os, "fsync", new=_do_nothing):  # nothing is lost here that was not on disk
                if found != "new" or operation.again:
                    operation.run(self.work)
                else:
                    _change_something(self.work / operation.store)
        except Exception as error:
            raise WrongError(f"{where}: the next writer fails: {error!r}") from error
        self.check_new(f"{where}, and done again")
        names = names_below(self.work)
        if names != self._new_names:
            left, missing = sorted(names - self._new_names), sorted(self._new_names - names)
            raise WrongError(f"{where}, and done again: too many files: {left}; missing files: {missing}")

    def check_new(self, where: str) -> None:
        """Check that the store is what it is to be."""
        state = self._state(where)
        if state != self.operation.new:
            raise WrongError(f"{where}: the store holds {state}")

    def _state(self, where: str) -> object:
        try:
            return state_at(self.work / self.operation.store)
        except Exception as error:
            raise WrongError(f"{where}: the store cannot be read: {error!r}") from error


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder, in memory where there is one: disks are slow at making and removing many small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _change_something(path: Path) -> None:
    """Change a store, and put it back."""
    with shardstore.open(path) as store:
        store.add_column("later", np.zeros(len(store))).drop_column("later")


def _do_nothing(descriptor: int) -> None: ...


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
