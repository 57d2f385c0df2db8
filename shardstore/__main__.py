"""`python -m shardstore` and the `shardstore` command."""

from __future__ import annotations

from shardstore.cli import main

if __name__ == "__main__":
    main()
