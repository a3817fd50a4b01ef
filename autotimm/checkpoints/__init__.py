"""The checkpoints of a run: written whole, kept or removed, found again, converted."""
