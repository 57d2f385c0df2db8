"""Random draws and splits of rows: pure functions of a seed, the same on every machine and for ever."""
