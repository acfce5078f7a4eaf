"""Raw data to pairs, truncations and shards."""
