"""Samples out of shards or a COCO folder: which ones, in which order, from where."""
