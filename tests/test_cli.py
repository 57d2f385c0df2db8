"""The command line as a user has it: a child process, its output and its exit code."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from stores import flip_bit
from typer.testing import CliRunner

import shardstore
from shardstore import cli
from shardstore.cli import app

ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1"}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, a copy of one that has imported it already."""
    context = multiprocessing.get_context("forkserver")
    command = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = context.Process(target=be_the_command, args=(command, out, err))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def be_the_command(arguments: list[str], out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ |= ENVIRONMENT
    sys.argv = ["shardstore", *arguments]
    cli.main()


def run_fresh(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter, as a user does."""
    command = [sys.executable, "-m", "shardstore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    folder = tmp_path / "dumps"
    folder.mkdir()
    table = np.arange(3000, dtype=np.float32).reshape(-1, 10)
    table[:, -1] %= 7
    for name, rows in (("part-1", slice(0, 100)), ("part-2", slice(100, 101)), ("part-10", slice(101, None))):
        np.save(folder / f"{name}.npy", table[rows])
    return folder


def table_of(dumps: Path) -> np.ndarray:
    return np.concatenate([np.load(dumps / f"part-{i}.npy") for i in (1, 2, 10)])


def test_ingest_info_head_verify_export(tmp_path: Path, dumps: Path) -> None:
    done = run("ingest", dumps, tmp_path / "s", "--split", "x=:-1,y=-1@int64", "--codec", "x=zstd:1", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 rows, columns x, y, 2 shard files" in done.stdout
    expected = table_of(dumps)
    store = shardstore.open(tmp_path / "s")
    assert np.array_equal(store["x"][:], expected[:, :-1])
    assert np.array_equal(store["y"][:], expected[:, -1].astype(np.int64))
    assert store.schema["y"].dtype == np.int64

    done = run("info", tmp_path / "s")
    assert done.returncode == 0
    assert "300 rows" in done.stdout
    assert "zstd:1" in done.stdout
    described = json.loads(run("info", "--json", tmp_path / "s").stdout)
    assert described["rows"] == 300
    assert described["columns"]["y"]["dtype"] == "int64"
    assert [source["name"] for source in described["sources"]] == ["part-1.npy", "part-2.npy", "part-10.npy"]

    done = run("head", tmp_path / "s", "-n", "3")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert run("head", tmp_path / "s", "-n", "0").returncode == 0

    done = run("verify", tmp_path / "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: 5 files")
    assert json.loads(run("verify", tmp_path / "s", "--json").stdout)["ok"] is True

    done = run("export", tmp_path / "s", tmp_path / "out")
    assert done.returncode == 0
    for name in ("x", "y"):
        exported = np.load(tmp_path / "out" / f"{name}.npy")
        assert exported.dtype == store[name].dtype
        assert np.array_equal(exported, store[name][:])
    assert run("export", tmp_path / "s", tmp_path / "out").returncode == 2


def test_a_shells_expansion_keeps_its_order_and_says_so(tmp_path: Path, dumps: Path) -> None:
    expanded = sorted(dumps.glob("*.npy"))
    assert [file.name for file in expanded] == ["part-1.npy", "part-10.npy", "part-2.npy"]
    done = run_fresh("ingest", *expanded, tmp_path / "s")
    assert done.returncode == 0
    assert done.stderr.startswith("note: files are taken in the order given")
    found = shardstore.open(tmp_path / "s")["data"][:]
    assert np.array_equal(found, np.concatenate([np.load(file) for file in expanded]))
    done = run_fresh("ingest", dumps / "*.npy", tmp_path / "t")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(shardstore.open(tmp_path / "t")["data"][:], table_of(dumps))


def test_parallel_files(tmp_path: Path, dumps: Path) -> None:
    for file in dumps.glob("part-*.npy"):
        np.save(dumps / file.name.replace("part", "label"), np.arange(len(np.load(file))))
    columns = ("--column", f"x={dumps}/part-*.npy", "--column", f"y={dumps}/label-*.npy")
    done = run("ingest", *columns, tmp_path / "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(shardstore.open(tmp_path / "s")["x"][:], table_of(dumps))
    assert run("ingest", *columns, dumps, tmp_path / "t").returncode == 2
    assert "named twice" in run("ingest", *columns, *columns, tmp_path / "t").stderr


def test_ragged_columns_text_and_categories(tmp_path: Path) -> None:
    lengths = np.array([3, 0, 280, 2])
    np.save(tmp_path / "v.npy", np.arange(285, dtype=np.int32))
    np.save(tmp_path / "o.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(tmp_path / "pad.npy", np.arange(24, dtype=np.float32).reshape(4, 3, 2))
    np.save(tmp_path / "l.npy", np.array([0, 1, 2, 3]))
    np.savez(tmp_path / "docs.npz", *(np.full(n, 65 + n, np.uint8) for n in (1, 2, 100, 0)))
    np.save(tmp_path / "text.npy", np.array(["plain", "[bold]", "a\nb", "é" * 200]))
    np.save(tmp_path / "label.npy", np.array([["dog"], ["cat"], ["dog"], ["[cow]"]])[:, 0])
    np.save(tmp_path / "x.npy", np.array([0x3F80, 0x4000, 0, 0xBF80], np.uint16))
    names = (
        "tokens.values=v",
        "tokens.offsets=o",
        "box.padded=pad",
        "box.lengths=l",
        "text=text",
        "label=label",
        "x=x",
    )
    columns = [part for name in names for part in ("--column", name.replace("=", f"={tmp_path}/") + ".npy")]
    columns += ["--column", f"raw.rows={tmp_path}/docs.npz"]
    types = ["--type", "label=categorical:cat,dog,[cow]", "--type", "x=bfloat16", "--type", "raw=binary"]
    done = run("ingest", *columns, *types, tmp_path / "s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 rows, columns tokens, box, text, label, x, raw" in done.stdout
    store = shardstore.open(tmp_path / "s")
    assert store["label"][:].tolist() == [1, 0, 1, 2]

    done = run("info", tmp_path / "s")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "ragged int32" in lines["tokens"]
    assert "285 items" in lines["tokens"]
    assert "ragged float32[2]" in lines["box"]
    assert "utf8" in lines["text"]
    assert "categorical of 3" in lines["label"]
    assert "bfloat16" in lines["x"]
    assert "103 bytes" in lines["raw"]
    described = json.loads(run("info", "--json", tmp_path / "s").stdout)["columns"]
    assert described["tokens"]["kind"] == "ragged"
    assert (described["tokens"]["type"], described["tokens"]["items"]) == ("ragged int32", 285)
    assert described["label"]["categories"] == ["cat", "dog", "[cow]"]
    assert "items" not in described["label"]
    assert "categories" not in described["tokens"]

    done = run("head", tmp_path / "s")
    assert done.returncode == 0
    rows = done.stdout.splitlines()
    assert len(rows) == 5
    for row, mentions in enumerate(
        [
            ["[0, 1, 2]", "[]", "'plain'", "dog", "b'B'"],
            ["[]", "[[6. 7.]]", "'[bold]'", "cat", "b'CC'"],
            ["[3, 4, 5, 6, 7, 8, 9, 10, … 280 items]", "'a\\nb'", "b'\\xa5", "… 100 bytes"],
            ["[283, 284]", "'ééé", "… 200 characters", "[cow]", "b''", "-1"],
        ]
    ):
        assert [mention for mention in mentions if mention not in rows[row + 1]] == []
    assert all(len(cell.strip()) <= 60 for row in rows for cell in row.split("  "))

    assert run("export", tmp_path / "s", tmp_path / "out").returncode == 0
    assert run("ingest", tmp_path / "out", tmp_path / "again").returncode == 0
    again = shardstore.open(tmp_path / "again")
    assert again.schema == store.schema
    assert again["text"][:].to_list() == store["text"][:].to_list()


def test_overwrite(tmp_path: Path, dumps: Path) -> None:
    assert run("ingest", dumps, tmp_path / "s").returncode == 0
    done = run("ingest", dumps, tmp_path / "s", "--split", "y=0")
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert run("ingest", dumps, tmp_path / "s", "--split", "y=0", "--overwrite").returncode == 0
    assert shardstore.open(tmp_path / "s").columns == ("y",)


def test_a_damaged_store_is_named_and_fails_the_check(tmp_path: Path, dumps: Path) -> None:
    run("ingest", dumps, tmp_path / "s", "--chunk-bytes", "400")
    shard = tmp_path / "s/data/c/0/0"
    data = bytearray(shard.read_bytes())
    data[8 * 40 * 3] ^= 1
    shard.write_bytes(data)
    done = run("verify", tmp_path / "s")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("damaged: data/c/0/0, chunk 3 (rows 24 to 31): CRC32C is")
    report = json.loads(run("verify", "--json", tmp_path / "s").stdout)
    assert (report["damages"][0]["chunk"], report["damages"][0]["rows"]) == (3, [24, 32])
    shard.unlink()
    assert run("head", tmp_path / "s").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ingest", "gone.npy", "d"), 2, "gone.npy: no such file"),
        (("ingest", "gone-*.npy", "d"), 2, "gone-*.npy: the pattern matches no file"),
        (("ingest", "d"), 2, "name at least one source"),
        (("ingest", "dumps", "d", "--codec", "lzma"), 2, "unknown codec 'lzma'"),
        (("ingest", "dumps", "d", "--codec", "q=raw"), 2, "a codec is given for column 'q'"),
        (("ingest", "dumps", "d", "--shard-bytes", "big"), 2, "not a size in bytes: 'big'"),
        (("ingest", "dumps", "d", "--split", "x=:0"), 2, "overlaps nothing"),
        (("ingest", "dumps", "d", "--split", "x=0,x=1"), 2, "named twice"),
        (("ingest", "dumps", "d", "--split", "a/b=0"), 2, "bad column name 'a/b'"),
        (("ingest", "dumps", "d", "--split", "y=-1@uint8,x=0@int8"), 2, "would change in a cast to int8"),
        (("ingest", "dumps", "dumps/d"), 2, "lies inside the source folder"),
        (("ingest", "--column", "x", "d"), 2, "--column 'x': expected NAME=GLOB"),
        (("ingest", "--column", "x.y=dumps", "d"), 2, "--column 'x.y': expected NAME, or NAME with one of .values,"),
        (("ingest", "--column", "x.values=dumps", "d"), 2, "'x': a ragged column is given by values and offsets"),
        (("ingest", "--column", "x=dumps", "--column", "x.rows=dumps", "d"), 2, "--column: 'x' is named twice"),
        (("ingest", "--column", "x.rows=dumps", "--column", "x=dumps", "d"), 2, "--column: 'x' is named twice"),
        (("ingest", "--column", "x.rows=a", "--column", "x.rows=b", "d"), 2, "--column: 'x.rows' is named twice"),
        (("ingest", "dumps", "d", "--type", "data"), 2, "--type 'data': expected NAME=TYPE"),
        (("ingest", "dumps", "d", "--type", "data=int7"), 2, "the type of column 'data' is 'int7'"),
        (("ingest", "dumps", "d", "--type", "y=int8"), 2, "a type is given for column 'y'"),
        (("ingest", "dumps", "d", "--type", "data=categorical:a,a"), 2, "the category 'a' is named twice"),
        (("ingest", "dumps", "d", "--type", "data=uint8"), 2, "part-1.npy: column 'data', row 25: the value 256.0"),
        (("info", "gone"), 2, "not a shardstore store: no such directory"),
        (("info", "dumps"), 2, "not a shardstore store: no zarr.json"),
        (("verify", "dumps/part-1.npy"), 2, "it is a file"),
        (("head", "gone"), 2, "not a shardstore store"),
        (("export", "gone", "d"), 2, "not a shardstore store"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path,
    dumps: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_usage() -> None:
    assert run_fresh("--version").stdout.strip() == shardstore.__version__
    assert run_fresh("--help").returncode == 0
    assert run_fresh("nonsense").returncode == 2
    assert run_fresh("ingest").returncode == 2
    for command in ("ingest", "info", "head", "verify", "export", "shuffle-report", "profile", "bench", "demo"):
        assert command in CliRunner().invoke(app, "--help").stdout
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_progress_is_drawn_on_a_terminal_only(tmp_path: Path, dumps: Path) -> None:
    assert run("ingest", dumps, tmp_path / "piped").stderr == ""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "shardstore", "ingest", str(dumps), str(tmp_path / "drawn")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        drawn = b""
        try:
            while piece := os.read(leader, 4096):
                drawn += piece
        except OSError:
            pass  # Linux says so when the last writer has gone
        process.communicate()
    os.close(leader)
    assert process.returncode == 0
    assert b"ingest" in drawn
    assert b"KiB" in drawn


def test_damaged_rows_are_not_exported(tmp_path: Path, dumps: Path) -> None:
    assert run("ingest", dumps, tmp_path / "s").returncode == 0
    flip_bit(tmp_path / "s/data/c/0/0", 100)
    done = run("export", tmp_path / "s", tmp_path / "out")
    assert done.returncode == 1
    assert "data/c/0/0, chunk 0 (rows 0 to 299): CRC32C is" in done.stderr
    assert not (tmp_path / "out").exists()
