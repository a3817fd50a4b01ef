"""What a shard folder is: the manifest, the tars, their indexes, the records in them."""
