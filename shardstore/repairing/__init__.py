"""Repair of damaged stores, from what is left of them and from the files that they were made of."""
