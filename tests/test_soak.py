"""Everything at once on one store. `python tools/soak.py` does the same for ten minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardstore
from tools.growing import needless_files

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")

_SOAK = """
import json
from tools.soak import run
from tools.workplaces import scratch
report = []
with scratch() as folder:
    wrong = run(folder, 30, report.append)
print(json.dumps([wrong, report]))
"""
_LEAK = """
import json, os, threading
from tools.soak import Watched

kept, stop = [], threading.Event()

def thread():
    kept.append(threading.Thread(target=stop.wait))
    kept[-1].start()

leaks = {
    "nothing": lambda: None,
    "memory": lambda: kept.append(bytearray(os.urandom(8 << 20))),
    "descriptors": lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(60)],
    "threads": thread,
}
found = {}
for what, leak in leaks.items():
    watched = Watched(what, os.getpid())
    for _ in range(16):
        leak()
        watched.sample()
    found[what] = watched.growth()
stop.set()
print(json.dumps(found))
"""


def python(script: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_everything_at_once_loses_nothing_and_leaves_nothing() -> None:
    wrong, report = python(_SOAK)
    assert wrong == []
    assert len(report) > 20


def test_a_process_that_takes_more_and_more_is_found() -> None:
    found = python(_LEAK)
    assert found.pop("nothing") == []
    assert all(f"{what} has grown" in "".join(growth) for what, growth in found.items()), found


def test_files_that_are_not_the_stores_are_found(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"x": np.arange(3), "b": [[1], [], [2, 3]]})
    assert needless_files(tmp_path / "s") == []
    for name in ("x/c/1", "x/c/.0.tail-2", "b/values/.zarr.json.partial-1", "other"):
        (tmp_path / "s" / name).touch()
    assert needless_files(tmp_path / "s") == ["b/values/.zarr.json.partial-1", "other", "x/c/.0.tail-2", "x/c/1"]
