"""The command line, on top of the public interface: a module holds the commands of one purpose."""

from __future__ import annotations

# isort: off
from shardstore.cli import transfer, show, check, mend, measure  # noqa: F401, in the order of `shardstore --help`
from shardstore.cli.app import app
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app()
