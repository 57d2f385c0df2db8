"""What an ingest reads: `.npy` and `.npz` files, found by path, cut into columns, read block by block.

`paths` finds files, `named` and `exported` those of each column; `npy` and `npz` read them, `split` cuts and casts.
`parts` are rows of one array, `ragged` those of several that belong together, by the `row_ends`; `inputs` puts columns
together from them.
"""
