"""Readers in many processes while others write. `python tools/readers.py` has hundreds of them, for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="reads Linux' /proc")

# In a process that has no threads when it forks.
_RUN = """
import json, sys
from tools.readers import at_once, run, total
from tools.workplaces import scratch
readers, writers, seconds, changes = json.loads(sys.argv[1])
with scratch() as folder:
    outcome = run(folder / "s", readers, writers, seconds, changes)
print(json.dumps({
    "errors": outcome.errors, "killed": outcome.killed, "states": len(outcome.states),
    "at once": at_once(outcome.of("reader")), "counts": total(outcome.tallies),
}))
"""


def python(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("readers", "writers", "changes"), [(12, 2, False), (4, 2, True)])
def test_readers_see_the_rows_of_their_generation(readers: int, writers: int, changes: bool) -> None:
    found: dict[str, Any] = json.loads(python(_RUN, json.dumps([readers, writers, 7, changes])))
    assert found["errors"] == []
    assert found["at once"] == readers
    assert found["killed"] > 0
    assert found["states"] > 1
    assert found["counts"]["reads"] >= readers


@pytest.mark.parametrize("holder", ["append", "ingest", "add_column"])
def test_the_second_writer_is_told_of_the_first(holder: str) -> None:
    script = """
import sys
from tools.locking import check_holder
from tools.workplaces import scratch
with scratch() as folder:
    print(check_holder(folder / "s", sys.argv[1]))
"""
    assert int(python(script, holder)) == 7


def test_a_build_is_resumed_by_one_writer_at_a_time() -> None:
    script = """
from tools.locking import check_build
from tools.workplaces import scratch
with scratch() as folder:
    check_build(folder / "s")
"""
    assert python(script) == ""
