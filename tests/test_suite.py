"""The benchmark suite: what is said of peers that work, fail, hang or lose rows, and that the report says the same."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import pagecache
from benchmarks.suite import machine, report, schedule, tables
from benchmarks.suite.jobs import BATCH, JOBS, Dumps, make_dumps, row_numbers
from benchmarks.suite.measuring import Pass
from benchmarks.suite.peer import MODES, Batch, Dataset, Peer, Unsupported
from benchmarks.suite.peers import all_peers
from benchmarks.suite.peers.arrays import InRam
from benchmarks.suite.peers.ours import OURS, Shardstore
from benchmarks.suite.results import Cell, JobResults, Results, Sample, Stored
from benchmarks.suite.schedule import Settings

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at memory and page cache as Linux shows them")

ROOT = Path(__file__).parents[1]
ROWS = 1000


class Fake(InRam):
    """Rows from RAM, in order, that a subclass may spoil."""

    name: ClassVar[str] = "fake"
    lacks: ClassVar = {"takes": "no random access"}

    def open(self, target: Path, data: Dumps) -> Dataset:
        return Spoiled(super().open(target, data), self)

    def rows(self, count: int) -> NDArray[np.int64]:
        return np.arange(count)


class Spoiled(Dataset):
    def __init__(self, inner: Dataset, peer: Fake) -> None:
        self.inner, self.peer = inner, peer

    def shuffled(self, seed: int) -> Iterator[Batch]:
        rows = self.peer.rows(ROWS)
        return (self.inner.take(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH))

    def sequential(self) -> Iterator[Batch]:
        return self.shuffled(0)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return self.inner.take(rows[::-1])


class Losing(Fake):
    name: ClassVar[str] = "losing"

    def rows(self, count: int) -> NDArray[np.int64]:
        return np.arange(count - 3)


class Doubling(Fake):
    name: ClassVar[str] = "doubling"

    def rows(self, count: int) -> NDArray[np.int64]:
        return np.minimum(np.arange(count), count - 2)


class Backwards(Fake):
    name: ClassVar[str] = "backwards"
    lacks: ClassVar = {}

    def rows(self, count: int) -> NDArray[np.int64]:
        return np.arange(count)[::-1]


class Lying(Fake):
    name: ClassVar[str] = "lying"

    def open(self, target: Path, data: Dumps) -> Dataset:
        dataset: Any = super().open(target, data)
        dataset.inner.columns["x"] = dataset.inner.columns["x"][::-1].copy()
        return dataset


class Failing(Fake):
    name: ClassVar[str] = "failing"

    def open(self, target: Path, data: Dumps) -> Dataset:
        raise OSError("the file is too short\nand more")


class Dying(Fake):
    name: ClassVar[str] = "dying"

    def open(self, target: Path, data: Dumps) -> Dataset:
        os._exit(1)


class Hanging(Fake):
    name: ClassVar[str] = "hanging"

    def open(self, target: Path, data: Dumps) -> Dataset:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        (data.directory / "pids.txt").write_text(f"{os.getpid()} {sleeper.pid}")
        time.sleep(1000)
        raise AssertionError


class Refusing(Fake):
    name: ClassVar[str] = "refusing"

    def open(self, target: Path, data: Dumps) -> Dataset:
        raise Unsupported("no such mode")


class Absent(Fake):
    name: ClassVar[str] = "absent"
    distributions: ClassVar = ("a-package-that-nobody-has",)


class Uningestible(Fake):
    name: ClassVar[str] = "uningestible"
    keeps_dumps: ClassVar[bool] = False

    def ingest(self, data: Dumps, target: Path) -> None:
        raise ValueError("too many columns")


class Slow(Fake):
    name: ClassVar[str] = "slow"
    slow_ingest: ClassVar[bool] = True

    def rows(self, count: int) -> NDArray[np.int64]:
        return np.arange(300)


FAKES = (
    Fake, Losing, Doubling, Backwards, Lying, Failing, Dying, Refusing, Absent, Uningestible, Slow,
)  # fmt: skip


def run(
    fakes: tuple[type[Peer], ...], directory: Path, settings: Settings, modes: tuple[str, ...] = MODES
) -> JobResults:
    schedule.preload()
    known = {peer.name: peer for peer in (Shardstore, *fakes)}
    job = JOBS["narrow"]
    job = type(job)(**vars(job) | {"rows": ROWS, "few_rows": 300, "modes": modes, "temperatures": ("warm",)})
    return schedule.run_job(job, [peer.name for peer in fakes], known, OURS, settings, directory, lambda text: None)


def test_what_a_peer_does_is_what_is_said_of_it(tmp_path: Path) -> None:
    results = run(FAKES, tmp_path, Settings(rounds=1, limit=0.1, timeout=60))
    shuffled = {peer.name: results.cells[peer.name, "shuffled", "warm"] for peer in FAKES}
    assert shuffled["fake"].samples[0].again is not None
    assert {name: cell.problem() for name, cell in shuffled.items() if cell.samples} == {
        "fake": "",
        "losing": "3 rows lost",
        "doubling": "1 rows lost, 1 rows more than once",
        "backwards": "",
        "lying": "rows do not belong to their numbers",
        "slow": "",
    }
    assert {name: cell.reason for name, cell in shuffled.items() if not cell.samples} == {
        "failing": "failed: OSError: the file is too short",
        "dying": "failed: its process died",
        "refusing": "no such mode",
        "absent": "not installed: a-package-that-nobody-has",
        "uningestible": "failed: ValueError: too many columns",
    }
    assert results.cells["backwards", "sequential", "warm"].problem() == "not in order"
    assert results.cells["backwards", "takes", "warm"].problem() == "other rows than those asked for"
    assert results.cells["fake", "takes", "warm"].reason == "no random access"
    assert (shuffled["fake"].rows, shuffled["slow"].rows) == (ROWS, 300)
    assert all(sample.ours for cell in shuffled.values() for sample in cell.samples)
    assert results.stored["uningestible"].reason == "failed: ValueError: too many columns"
    assert not list(tmp_path.iterdir())
    row = next(line for line in tables.job_text(results, {}).splitlines() if line.startswith("| losing |"))
    assert "**3 rows lost**" in row
    assert "no random access" in row


def test_a_peer_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    removing = schedule.shutil.rmtree

    def remove(path: Path, **options: Any) -> None:
        found.extend(map(int, (path / "dumps" / "pids.txt").read_text().split()))
        removing(path, **options)

    monkeypatch.setattr(schedule.shutil, "rmtree", remove)
    results = run((Hanging,), tmp_path, Settings(rounds=2, limit=0.1, timeout=4), ("shuffled",))
    assert results.cells["hanging", "shuffled", "warm"].reason == "hung: no result within 4 s"
    assert len(found) == 2
    for process in found:
        deadline = time.monotonic() + 10
        while running(process) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not running(process)


def running(process: int) -> bool:
    """Return whether a process is there and more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_quick_mode_measures_every_peer_or_gives_a_reason(tmp_path: Path) -> None:
    page, saved = tmp_path / "page.md", tmp_path / "results" / "suite.json"
    page.write_text("# Title\n\n<!-- suite: medium -->\n<!-- end -->\n\nThe end.\n")
    names = [OURS, "arrays in RAM", "one np.memmap", "np.memmap per shard"]
    jobs = ["medium", "ragged", "windows", "zstd", "shards-10"]
    options = ["--dir", tmp_path / "data", "--json", saved, "--page", page]
    command = [sys.executable, "-m", "benchmarks.suite", "--quick", "--peers", ",".join(names), "--jobs"]
    subprocess.run([*command, ",".join(jobs), *options], cwd=ROOT, check=True, capture_output=True, timeout=300)
    results = Results.load(saved)
    assert list(results.jobs) == jobs
    assert results.versions["shardstore"]
    for name, job in results.jobs.items():
        peers = [peer for peer in names if name != "shards-10" or peer in (OURS, "np.memmap per shard")]
        expected = {
            (peer, mode, temperature)
            for peer in peers
            for mode in JOBS[name].modes
            for temperature in JOBS[name].temperatures
        }
        assert set(job.cells) == expected
        for cell in job.cells.values():
            assert bool(cell.samples) != bool(cell.reason)
            assert not cell.problem()
            if cell.reason:
                assert cell.reason in ("no rows of different lengths", "no compression") or "page cache" in cell.reason
            assert all(sample.cached <= 0.01 for sample in cell.samples if cell.temperature == "cold")
        assert job.stored[OURS].nbytes > 0
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- suite: medium -->")
    assert text.endswith("<!-- end -->\n\nThe end.\n")
    medium = results.jobs["medium"]
    assert f"| one np.memmap | {tables.speed(medium.cells['one np.memmap', 'shuffled', 'warm'])} |" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {f"suite-{name}.png" for name in tables.FIGURES}
    assert list((tmp_path / "data").iterdir()) == []


def sample(rate: float, ours: float, problem: str = "") -> Sample:
    epoch = Pass(first_seconds=0.25, later_seconds=1000 / rate - 0.25, first_rows=256, rows=1000, ended=True)
    return Sample(0, 0.5, Pass(0.5, 1.5, 256, 1000, True), epoch, 3_000_000, problem, ours, 1.0)


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    job = JobResults("medium", "rows", "", 512, 100, 1_000_000)
    job.stored["peer"] = Stored("peer", 1000, 2.0, 1_500_000)
    job.cells["peer", "shuffled", "warm"] = cell = Cell("peer", "shuffled", "warm", 1000)
    cell.samples += [sample(1000, 4000), sample(2000, 4000), sample(4000, 4000)]
    job.cells["peer", "shuffled", "cold"] = cold = Cell("peer", "shuffled", "cold", 1000)
    cold.samples.append(sample(1000, 100))
    job.cells["peer", "takes", "warm"] = Cell("peer", "takes", "warm", 1000, "no random access")
    assert (cell.rate(), cell.ratio()) == (2000, 2)
    assert (cold.rate(), cold.ratio()) == (400, 0.25)  # from the opening on: 1,000 rows in 2.5 s
    text = tables.job_text(job, {})
    assert "| peer | 2,000 (2 ×) | – | no random access | 400 (0.25 ×) | – | – |" in text
    assert "| peer | 500 rows/s | 1.50 × | 500 ms | 500 ms | 500 ms | 500 rows/s | 3 MB |" in text

    results = Results({"cores": 2}, {"torch": "2"}, {"rounds": 3}, {"medium": job})
    results.save(tmp_path / "suite.json")
    again = Results.load(tmp_path / "suite.json")
    assert again == results
    assert json.loads((tmp_path / "suite.json").read_text())["jobs"][0]["job"] == "medium"

    newer = JobResults("medium", "rows", "", 512, 100)
    newer.cells["other", "takes", "warm"] = Cell("other", "takes", "warm", 1000, "hung: no result within 60 s")
    again.add(newer)
    assert set(again.jobs["medium"].cells) == {*job.cells, ("other", "takes", "warm")}
    assert again.jobs["medium"].dump_nbytes == 1_000_000


def test_sections_are_replaced_and_nothing_else() -> None:
    text = "a\n<!-- suite: one -->\nold\n<!-- end -->\nb <!-- end -->\n<!-- suite: two --><!-- end -->\n"
    replaced = report.replace_sections(text, {"one": "1\\1", "two": "2"})
    assert replaced == (
        "a\n<!-- suite: one -->\n\n1\\1\n\n<!-- end -->\nb <!-- end -->\n<!-- suite: two -->\n\n2\n\n<!-- end -->\n"
    )
    assert report.replace_sections(replaced, {"one": "1\\1", "two": "2"}) == replaced
    with pytest.raises(ValueError, match="nobody fills: two"):
        report.replace_sections(text, {"one": ""})
    with pytest.raises(ValueError, match="has no end"):
        report.replace_sections("<!-- suite: one -->\n<!-- suite: two -->\n<!-- end -->", {"one": "", "two": ""})


def test_the_page_has_a_section_for_all_that_is_known() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    contents = tables.sections(Results(), all_peers())
    report.replace_sections(page, contents)
    assert all(f"<!-- suite: {name} -->" in page for name in contents)


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if not job.group])
def test_dumps_hold_every_row_once_with_its_number(name: str, tmp_path: Path) -> None:
    job = JOBS[name].of_rows(300)
    data = make_dumps(job, tmp_path / "dumps")
    blocks = list(data.blocks(50))
    np.testing.assert_array_equal(np.concatenate([block["y"] for block in blocks]), np.arange(300))
    for block in blocks:
        np.testing.assert_array_equal(row_numbers(job, block["x"]), block["y"])
    if job.layout == "ragged":
        offsets, values = data.offsets(), data.array("values")
        rows = [row for block in blocks for row in block["x"]]
        np.testing.assert_array_equal(np.diff(offsets), [len(row) for row in rows])
        np.testing.assert_array_equal(np.concatenate(rows), values)
        assert 260 < len(values) / 300 < 300
    else:
        np.testing.assert_array_equal(np.concatenate([block["x"] for block in blocks]), data.table()["x"])


def test_the_page_cache_is_emptied_as_mincore_tells(tmp_path: Path) -> None:
    if machine.describe(tmp_path)["disk"] == "tmpfs":
        pytest.skip("tmpfs has no disk that pages could go to")
    path = tmp_path / "sub" / "file"
    path.parent.mkdir()
    path.write_bytes(os.urandom(4 << 20))
    pagecache.warm([tmp_path])
    assert pagecache.resident_nbytes(path) == 4 << 20
    pagecache.drop([tmp_path])
    assert pagecache.resident_nbytes(path) == 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE])
        with pytest.raises(RuntimeError, match="still in the page cache"):
            pagecache.drop([tmp_path])


def test_peers_are_told_apart_and_say_what_they_are() -> None:
    peers = all_peers()
    for peer in peers.values():
        assert peer.how, peer
        assert peer.stored_as is None or peer.stored_as in peers
        assert set(peer.lacks) <= {*MODES, "array", "ragged", "windows", "zstd"}
        assert peer.slow_ingest == peers[peer.stored_as or peer.name].slow_ingest
    assert len(peers) == len({peer.name.lower() for peer in peers.values()})
