"""The page about the architecture is true: every module is on it, and imports only what stands above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shardstore"


def listed() -> list[list[str]]:
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| ", page, re.MULTILINE)
    return [re.findall(r"`([\w.]+)`", row) for row in rows]


def modules() -> dict[str, Path]:
    files = [file for file in PACKAGE.rglob("*.py") if file.stem not in ("__init__", "__main__")]
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in files}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shardstore":
            base = node.module.removeprefix("shardstore").removeprefix(".")
            found |= {f"{base}.{alias.name}".removeprefix(".") for alias in node.names} | {base}
    return found & modules().keys()


def test_every_module_is_listed_once() -> None:
    names = [name for row in listed() for name in row]
    assert sorted(names) == sorted(modules())


def test_modules_import_only_what_stands_above_them() -> None:
    row_of = {name: row for row, names in enumerate(listed()) for name in names}
    for name, file in modules().items():
        for other in imports(file):
            assert row_of[other] <= row_of[name], f"{name} imports {other}, which stands below it"


def test_there_are_no_circles() -> None:
    graph = {name: imports(file) for name, file in modules().items()}
    while ready := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in ready:
            del graph[name]
    assert not graph
