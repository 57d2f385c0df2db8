"""What an import brings along."""

from __future__ import annotations

import subprocess
import sys

import shardstore


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_shardstore_imports_nothing_heavy() -> None:
    modules = imported_by("import shardstore")
    assert "numpy" in modules
    assert not modules & {"torch", "zarr", "numcodecs", "rich", "typer", "asyncio"}
    assert not modules & {"shardstore.ingesting", "shardstore.order.measuring"}


def test_reading_a_raw_store_imports_nothing_more() -> None:
    statement = (
        "import tempfile, numpy as np, shardstore\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with shardstore.Writer(folder + '/s') as writer: writer.append({'x': np.arange(10)})\n"
        "    assert len(list(shardstore.open(folder + '/s').batches(3, shuffle=True))) == 4"
    )
    assert not imported_by(statement) & {"torch", "zarr", "numcodecs", "rich", "typer", "numpy.ma"}


def test_no_threads_before_they_are_needed() -> None:
    code = "import threading, shardstore; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_public_names_exist() -> None:
    for name in shardstore.__all__:
        assert getattr(shardstore, name) is not None
