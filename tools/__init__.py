"""Programs that check shardstore for longer than its tests do; the tests run short versions of the same code."""
