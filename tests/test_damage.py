"""No damage is missed, wrongly named, read or wrongly repaired: `tools.damage` for a few of each kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shardstore
from tools import damage


@pytest.mark.parametrize("kind", damage.KINDS)
def test_every_damage_is_found_named_and_never_read(tmp_path: Path, kind: str) -> None:
    counts = damage.run(tmp_path, kind, each=1, seed=1, repairs=True)
    assert counts.tried.total() == counts.found.total() == counts.repaired.total() > 50
    assert {part for _, part, _ in counts.tried} >= {
        *("manifest", "rest of the group", "array metadata", "chunk", "checksum table", "index", "index checksum")
    }
    assert {name for _, _, name in counts.tried} == {each.__name__ for each in damage.DAMAGES}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("fault", ["kill", "EIO"])
def test_a_repair_that_ends_early_loses_nothing(tmp_path: Path, fault: str) -> None:
    assert damage.interrupt_repairs(tmp_path, fault, step=7) > 8


def test_what_is_missed_would_be_noticed(tmp_path: Path) -> None:
    subject = damage.make_subject(tmp_path, "raw")
    (part,) = [part for part in damage.parts(subject) if part.name == "chunk" and part.file == "x/c/1/0"]
    rng = np.random.default_rng(0)
    damage.apply(subject, damage.flip(subject, part, rng))
    with pytest.raises(damage.MissedError, match=r"expected \[\]"):
        damage.check(subject, {}, rng)
    with shardstore.open(subject.path) as store, pytest.raises(damage.MissedError, match="never written"):
        damage.read_all(store, subject.rows, rng)


_READS = """
import os, sys
import numpy as np
import shardstore

path, when, access, verify = sys.argv[1:]
file = os.path.join(path, "x/c/1/0")
rows = np.arange(256, 512)
if when == "before opening":
    os.truncate(file, 3000)
store = shardstore.open(path, access=access, verify=verify)
if when == "before reading":
    os.truncate(file, 3000)
if when == "between shards":
    assert store["x"][0].shape == (16,)
    os.truncate(file, 3000)
for read in (
    lambda: store["x"][300], lambda: store["x"][:], lambda: store["x"].take(rows),
    lambda: store["x"][200:300], lambda: store["x"][::-1], lambda: list(store.batches(64, shuffle=True, prefetch=2)),
    lambda: list(store.batches(64, shuffle=False, copy=False)), lambda: store.compute_stats("x"),
):
    try:
        read()
    except shardstore.CorruptionError as error:
        assert "x/c/1/0: the shard file is short: expected" in str(error), error
    else:
        sys.exit("nothing was raised")
try:
    store.warm()  # of which compressed columns have nothing
except shardstore.CorruptionError as error:
    assert "the shard file is short" in str(error)
try:
    assert (store["y"][:] >= 0).all()
    print("survived")
finally:
    store.close()
"""


@pytest.mark.parametrize("when", ["before opening", "before reading", "between shards"])
@pytest.mark.parametrize(
    ("kind", "access", "verify"),
    [("raw", "auto", "off"), ("raw", "streaming", "on_read"), ("zstd", "auto", "off")],
)
def test_nothing_dies_of_a_file_that_was_cut_off(
    tmp_path: Path, when: str, kind: str, access: str, verify: str
) -> None:
    """A process that touches a map behind the end of its file is killed (SIGBUS), so such a file is never mapped."""
    path = damage.make_subject(tmp_path, kind).path
    done = subprocess.run(
        [sys.executable, "-c", _READS, str(path), when, access, verify], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="there are no reads by position here")
@pytest.mark.parametrize("verify", ["off", "on_read"])
@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_reads_by_position_notice_that_a_file_becomes_shorter(tmp_path: Path, kind: str, verify: str) -> None:
    """Also while they check what they read, since the check reads in the same way."""
    path = damage.make_subject(tmp_path, kind).path
    with shardstore.open(path, access="streaming", verify=verify) as store:  # type: ignore[arg-type]
        store["x"].take([256])
        os.truncate(path / "x/c/1/0", 5000 if kind == "raw" else 500)
        with pytest.raises(shardstore.CorruptionError, match="x/c/1/0"):
            store["x"].take(np.arange(256, 512))
