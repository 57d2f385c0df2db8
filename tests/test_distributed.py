"""Real process groups: the ranks' rows together are the epoch, in as many steps on each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

import shardstore

ROWS = 397
BATCH = 16
WORLD_SIZES = (2, 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "s"
    with shardstore.Writer(path, codec="zstd", shard_bytes=4096, chunk_bytes=256) as writer:
        writer.append({"y": np.arange(ROWS)})
    return path


@pytest.fixture(scope="module")
def out(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks of all groups wrote down."""
    out = tmp_path_factory.mktemp("out")
    script = Path(__file__).parent / "ranks.py"
    command = list(map(str, [sys.executable, script, path, out, *WORLD_SIZES]))
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300, check=False, start_new_session=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(params=WORLD_SIZES)
def ranks(request: pytest.FixtureRequest, out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"{rank}-of-{request.param}.json").read_text()) for rank in range(request.param)]


def check_epoch(path: Path, shares: list[list[list[int]]], shuffle: Any, remainder: str, epoch: int) -> None:
    """Check the batches of all ranks, of one epoch, against the plan."""
    world_size = len(shares)
    steps = {len(share) for share in shares}
    size = BATCH * world_size
    assert steps == {ROWS // size if remainder == "drop" else -(-ROWS // size)}, "every rank has as many steps"
    order = shardstore.open(path).plan(BATCH, shuffle=shuffle).rows(epoch, 0, ROWS)
    for step, batches in enumerate(zip(*shares, strict=True)):
        assert sum(batches, []) == order[step * size : (step + 1) * size].tolist()


@pytest.mark.parametrize("remainder", ["drop", "pad"])
@pytest.mark.parametrize("shuffle", [False, "full", "window"])
def test_the_union_of_the_ranks_is_the_epoch(
    path: Path, ranks: list[dict[str, Any]], remainder: str, shuffle: Any
) -> None:
    ways = [way for way in ranks[0] if way.startswith(f"{remainder} {shuffle} ")]
    assert len(ways) >= 3
    for way in ways:
        for epoch in range(2):
            check_epoch(path, [found[way][epoch] for found in ranks], shuffle, remainder, epoch)


@pytest.mark.parametrize("workers", [0, 2])
def test_single_rows_come_once(ranks: list[dict[str, Any]], workers: int) -> None:
    rows = [row for found in ranks for batch in found[f"single rows {workers}"] for row in batch]
    assert sorted(rows) == list(range(ROWS))
    counts = {found[f"single rows {workers} count"] for found in ranks}
    assert counts == {-(-ROWS // len(ranks))}, "every rank has as many rows"


def test_persistent_workers_hear_of_the_epoch(path: Path, ranks: list[dict[str, Any]]) -> None:
    for number, epoch in enumerate((0, 7, 7)):
        check_epoch(path, [found["epochs"][number] for found in ranks], True, "drop", epoch)


def test_a_dataset_that_is_older_than_the_group_finds_it(path: Path, ranks: list[dict[str, Any]]) -> None:
    check_epoch(path, [found["early"] for found in ranks], False, "drop", 0)


def test_a_state_goes_on_with_another_number_of_ranks(path: Path, ranks: list[dict[str, Any]]) -> None:
    before = [row for found in ranks for batch in found["before"] for row in batch]
    after = [row for found in ranks for batch in found["after"] for row in batch]
    assert sorted(before + after) == list(range(ROWS))
    for world_size in (1, 3, 8):
        rest = []
        for rank in range(world_size):
            stream = shardstore.open(path).batches(
                5, shuffle="window", remainder="pad", rank=rank, world_size=world_size
            )
            stream.load_state_dict(ranks[-1]["state"])
            rest += [row for batch in stream for row in batch["y"][batch["mask"]].tolist()]
        assert sorted(before + rest) == list(range(ROWS))


def test_what_would_lose_rows_is_refused(ranks: list[dict[str, Any]]) -> None:
    world_size = len(ranks)
    for found in ranks:
        keep, nothing, keep_too, changed, made = found["errors"]
        assert keep == keep_too
        assert keep.startswith(f"remainder='keep' would give {world_size} ranks batches of different sizes")
        assert nothing.startswith(f"remainder='drop' leaves nothing of 397 rows in batches of 200 × {world_size} ranks")
        assert changed.startswith(f"the world size was {world_size} and is 1 now")
        assert f"of {world_size}, but torch.distributed says 0 of 1 now" in made
