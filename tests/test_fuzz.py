"""Hostile bytes, wherever bytes that others made are read: a short `tools.fuzz`, and all that ever failed there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

fuzz = pytest.importorskip("tools.fuzz", reason="limits of memory are those of POSIX")
from tools.hostile import TARGETS, mutated  # noqa: E402


class Prepared:
    """A target with all that it needs in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.target = TARGETS[name]
        self.folder = folder
        (folder / "work").mkdir()
        self.good = [*self.target.prepare(folder / "work"), *fuzz.kept(name)]

    def feed(self, data: bytes) -> None:
        fuzz.watched(self.target, self.folder, data)


@pytest.fixture(scope="module", params=list(TARGETS))
def prepared(request: pytest.FixtureRequest) -> Iterator[Prepared]:
    with fuzz.scratch() as folder:
        yield Prepared(request.param, Path(folder))


def test_inputs_that_once_failed(prepared: Prepared) -> None:
    for data in prepared.good:
        prepared.feed(data)


@given(random=st.randoms(use_true_random=False))
def test_only_errors_of_the_package_come_out(prepared: Prepared, random: Random) -> None:
    data = mutated(prepared.good, random)
    note(repr(data[:2000]))
    prepared.feed(data)


def test_kept_inputs_are_few_and_of_targets() -> None:
    files = [path for path in fuzz.SEEDS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(TARGETS)
    assert len(files) <= 100
    assert sum(path.stat().st_size for path in files) < 300_000


def test_what_fails_is_found(tmp_path: Path) -> None:
    def fails(folder: Path, data: bytes) -> None:
        raise KeyError(data)

    found = []
    target = fuzz.Target("fails", lambda folder: [b"1"], fails)
    assert fuzz.search(target, tmp_path, 0.1, 0, found.append) == len(found) > 0


def test_limits_are_kept_to_and_taken_away(tmp_path: Path) -> None:
    before = fuzz.resource.getrlimit(fuzz.resource.RLIMIT_AS)
    with pytest.raises(MemoryError), fuzz.limited():
        bytearray(2 * fuzz.MOST_MEMORY)
    assert fuzz.resource.getrlimit(fuzz.resource.RLIMIT_AS) == before
