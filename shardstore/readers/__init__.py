"""Readers: rows of one array, from its shard files.

`ContiguousReader` reads raw arrays through one mapping of all shards, `ShardwiseReader` through a plain mapping per
shard where that is impossible, and `ChunkReader` decodes compressed arrays.
"""
