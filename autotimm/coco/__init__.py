"""COCO's annotation files: read in pieces, checked, one record an image, masks as RLE."""
