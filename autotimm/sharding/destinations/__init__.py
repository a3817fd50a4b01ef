"""Where shards go: a local folder or a store. Both keep a journal until all shards are there."""
