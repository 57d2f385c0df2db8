"""The code in the documentation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


FRAMEWORKS = [
    # How they use torch, and what Lightning thinks of several loaders of one page.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


EXAMPLES = [f"docs/examples/{file.name}" for file in sorted((ROOT / "docs/examples").glob("*.md"))]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/guide.md",
        "docs/memory.md",
        "docs/order.md",
        *EXAMPLES,
        pytest.param("docs/frameworks.md", marks=FRAMEWORKS),
    ],
)
def test_the_code_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "docs/frameworks.md":
        for library in ("torchdata", "lightning", "accelerate", "grain"):
            pytest.importorskip(library, reason=f"{library} is not installed")
    if page == "docs/examples/tokens.md":
        pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    Path("docs").symlink_to(ROOT / "docs")  # as in a checkout
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], page, "exec"), names)


@pytest.mark.parametrize(
    "page", ["README.md", *(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_tests_that_hold_the_guarantees_exist() -> None:
    listed = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/order.md").read_text())
    assert len(listed) >= 8
    for file, name in listed:
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


def test_every_guarantee_names_a_test() -> None:
    rows = re.findall(r"^\| \*\*(\d)\. .*? \| (.*) \|$", (ROOT / "docs/order.md").read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [str(number) for number in range(1, 9)]
    assert all("::test_" in tests for _, tests in rows)


def test_every_promise_has_a_test_and_a_command() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    tests = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", page)
    assert len(tests) > 30
    for file, name in tests:
        source = (ROOT / file).read_text()
        assert not name or re.search(rf"def {name}\(", source), f"{file}::{name}"
    commands = re.findall(r"`(?:\w+=\w+ )?python (?:-m )?((?:tools|benchmarks)[./]\w+)(?:\.py)?[ `]", page)
    assert len(commands) > 10
    for command in commands:
        assert (ROOT / f"{command.replace('.', '/')}.py").exists(), command
