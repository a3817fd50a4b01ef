"""Metrics during training, and official COCO AP."""
