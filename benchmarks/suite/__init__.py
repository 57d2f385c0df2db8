"""The suite: every peer on the same jobs, each run in a process of its own, beside ours.

    python -m benchmarks.suite

`jobs` says what the data are, `peer` what a peer has to do, and `peers/` holds one module for each of them. `measuring`
is what happens in a run's process, `schedule` which runs there are and in which order, `results` what is kept of them,
`tables` and `figures` what becomes of that.
"""
