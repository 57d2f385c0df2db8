"""How rows get from sources into a store: copied shard by shard, or in blocks through encoders and transforms."""
