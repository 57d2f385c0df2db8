"""Side-by-side measurements: each program prints a table and saves its raw numbers; `suite` runs all peers."""
