"""What is opened is let go of, however reading or writing ends. `python tools/leaks.py` does the same for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' /proc")

# In a process that has nothing else to do: more than a thousand cycles in all, those that warm up among them.
_CHECK = """
import json, sys
from pathlib import Path
from tools.leaks import check
report = []
wrong = check(Path(sys.argv[1]), {"read": 100, "abandon": 24, "fail": 16, "torch": 12, "workers": 2}, report.append)
print(json.dumps([wrong, report]))
"""


def test_nothing_is_left_of_what_was_opened(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wrong, report = json.loads(done.stdout)
    assert not wrong
    assert len(report) > 25


def test_what_is_left_is_found(tmp_path: Path) -> None:
    script = """
import multiprocessing, os, sys, threading, numpy as np, shardstore
from pathlib import Path
from tools.leaks import left_by, name_semaphores
folder = Path(sys.argv[1])
with shardstore.Writer(folder / "s") as writer:
    writer.append({"x": np.zeros(1000)})
kept, stop = [], threading.Event()

def thread(number):
    kept.append(threading.Thread(target=stop.wait))
    kept[-1].start()

def map_file(number):
    kept.append(shardstore.open(folder / "s")["x"][:])

def share(number):
    kept.append(multiprocessing.get_context("spawn").Lock())

name_semaphores()
leaks = {
    "descriptors": lambda number: os.open(folder, os.O_RDONLY),
    "store_maps": map_file,
    "threads": thread,
    "shared": share,
    "partial": lambda number: (folder / f"{number}.partial").touch(),
    "memory": lambda number: kept.append(bytearray(1 << 20)),
}
for what, cycle in leaks.items():
    found = left_by(folder, what, cycle, 30)
    assert found.get(what), (what, found)
assert not left_by(folder, "nothing", lambda number: None, 30)
stop.set()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
