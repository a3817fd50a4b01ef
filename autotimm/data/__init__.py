"""From samples to batches: augmentation, collation, the LightningDataModule, the demo data."""
