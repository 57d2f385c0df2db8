"""An interrupt at the very moment of a commit: what was committed stays, whatever cleans up behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import write_store

import shardstore

X, Y = np.arange(100, dtype="i4").reshape(50, 2), np.arange(50)


def append(store: Path) -> None:
    with shardstore.Writer(store, mode="append") as writer:
        writer.append({"x": X, "y": Y})


CHANGES: dict[str, tuple[Callable[[Path], Any], Callable[[shardstore.Store], bool]]] = {
    "append": (append, lambda s: np.array_equal(s["x"][:], np.concatenate([X, X]))),
    "add": (lambda p: shardstore.open(p).add_column("z", Y * 2), lambda s: s["z"][:].tolist() == (Y * 2).tolist()),
    "compute": (
        lambda p: shardstore.open(p).add_column("z", lambda batch: batch["y"] * 2, columns="y"),
        lambda s: s["z"][:].tolist() == (Y * 2).tolist(),
    ),
    "rename": (lambda p: shardstore.open(p).rename_column("x", "z"), lambda s: np.array_equal(s["z"][:], X)),
    "drop": (lambda p: shardstore.open(p).drop_column("x"), lambda s: s.columns == ("y",)),
    "overwrite": (
        lambda p: shardstore.ingest([{"a": 1}, {"a": 2}], p, mode="overwrite"),
        lambda s: s["a"][:].tolist() == [1, 2],
    ),
}


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error")])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_committed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, error: Any, is_lost: bool
) -> None:
    """A signal may come while the system changes the name, and a file system may only say that it failed."""
    store = write_store(tmp_path / "s", {"x": X, "y": Y})
    replace, load = Path.replace, shardstore.manifest.load_manifest  # type: ignore[attr-defined]
    armed = True

    def replaced(path: Path, target: Path) -> Path:
        nonlocal armed
        found = replace(path, target)
        if armed and Path(target) == store.absolute() / "zarr.json":
            armed = False
            if is_lost:  # and then nobody can tell
                monkeypatch.setattr("shardstore.changes.commits.load_manifest", unreadable)
            raise error
        return found

    def unreadable(path: Path) -> Any:
        raise OSError(5, "Input/output error")

    run, holds = CHANGES[change]
    monkeypatch.setattr(Path, "replace", replaced)
    if change == "overwrite":
        run(store)  # which is committed by another call
    else:
        with pytest.raises((KeyboardInterrupt, OSError, shardstore.ShardStoreError)):
            run(store)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr("shardstore.changes.commits.load_manifest", load)
    for _ in range(2):
        found = shardstore.open(store)
        assert holds(found)
        assert found.verify().ok
        found.compute_stats()  # the next change, which finishes what is left
