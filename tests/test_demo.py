"""The demo, which is what a newcomer runs first."""

from __future__ import annotations

from pathlib import Path

import pytest

import shardstore
from shardstore.demo import run_demo

pytest.importorskip("torch", reason="the torch extra is not installed")


def test_the_demo_learns_to_read(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_demo(lines.append, tmp_path / "digits")
    assert result.accuracy >= 0.95
    assert result.held_out > 300
    # Killed in the middle of an epoch, resumed with another batch size: every row of it came once.
    assert result.every_row_once
    assert result.saved_rows == 640
    assert result.saved_rows + result.resumed_rows == 1797 - result.held_out
    text = "\n".join(lines)
    assert "every row of the epoch once: yes" in text
    for figure in ("1,797 rows", "MB/s", "rows/s", "killed in epoch", "accuracy", "peak anonymous memory"):
        assert figure in text
    store = shardstore.open(tmp_path / "digits")
    assert len(store) == 1797
    assert store.verify().ok
