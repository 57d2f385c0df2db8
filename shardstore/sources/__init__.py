"""What an ingest reads: `.npy` and `.npz` files, found by path, cut into columns, read block by block.

`paths` finds files, `npy` and `npz` read them, `split` cuts and casts, `inputs` puts columns together from them.
"""
