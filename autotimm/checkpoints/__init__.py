"""The checkpoints of a run: saving, retention, resuming and conversion."""
