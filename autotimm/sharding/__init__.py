"""COCO folders into WebDataset tar shards, and the manifest that describes them."""
