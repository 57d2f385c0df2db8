"""`shardstore demo`: what a store gives on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardstore.cli.app import app, out, user_errors


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option("--keep", help="Keep the demo's store here.", show_default=False)
    ] = None,
) -> None:
    """Ingest real handwriting, train a small classifier on it and evaluate it."""
    from shardstore.demo import run_demo

    with user_errors():
        run_demo(lambda line: out.print(line, markup=False, soft_wrap=True), directory)
