"""The report: the generated sections of a page, and the figures beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.suite import figures, tables
from benchmarks.suite.peer import Peer
from benchmarks.suite.results import Results


def write_report(results: Results, peers: Mapping[str, type[Peer]], ours: str, page: Path) -> list[Path]:
    """Write the results into a page's sections, and figures into its directory.

    A section stands between `<!-- suite: NAME -->` and `<!-- end -->`; what is outside of them stays as it is.

    Args:
        results: what was measured.
        peers: all peers, in the order of the tables.
        ours: the name of ours.
        page: a Markdown file with the sections' marks.

    Returns:
        The page and the figures.

    Raises:
        ValueError: if a section has no name that is known, or no end.
    """
    text = replace_sections(page.read_text(), tables.sections(results, peers))
    page.write_text(text)
    return [page, *figures.draw(results, ours, page.parent)]


def replace_sections(text: str, contents: Mapping[str, str]) -> str:
    """Return a page with the given contents between the marks of its sections."""
    begins = re.findall(r"<!-- suite: (\S+) -->", text)
    unknown = [name for name in begins if name not in contents]
    if unknown:
        raise ValueError(f"the page has sections that nobody fills: {', '.join(unknown)}")

    def filled(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"<!-- suite: {name} -->\n\n{contents[name]}\n\n<!-- end -->"

    replaced, count = re.subn(
        r"<!-- suite: (\S+) -->(?:(?!<!-- suite: ).)*?<!-- end -->", filled, text, flags=re.DOTALL
    )
    if count != len(begins):
        raise ValueError("a section of the page has no end")
    return replaced
