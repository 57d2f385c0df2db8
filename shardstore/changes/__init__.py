"""Changes to an existing store: one writer at a time, commits, and columns that are computed from others."""
